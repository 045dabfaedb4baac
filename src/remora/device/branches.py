"""Branches on values that the client knows: a trace takes the way that they tell, and a call checks them first.

Dynamo ends a trace where a program branches on a tensor. Small tensors that came from the client have shadows
(device/shadow.py), and capture branches on these without asking anybody. So does a trace: what it found stays in the
graph as a call of `expect`, and before the graph's call is appended the same ops run on the shadows of its inputs.
"""

from __future__ import annotations

import dis
from collections.abc import Callable, Sequence
from typing import Any

import torch

from remora.device.compile import frames
from remora.device.shadow import known
from remora.device.tensor import RemoraTensor

_CPU = torch.device("cpu")


def expect(tensor: Any, truth: bool) -> None:
    """Stands in a graph behind a tensor that a branch was taken by."""


def change_jumps(dynamo: Any) -> None:
    """Makes Dynamo's jumps look at shadows, in the threads that trace calls."""
    torch.fx.node.has_side_effect(expect)  # nothing uses what it gives
    symbolic = dynamo.symbolic_convert
    base = symbolic.InstructionTranslatorBase
    kinds = [base, *_below(base)]
    for opcode, jump in enumerate(base.dispatch_table):
        name = dis.opname[opcode]
        if jump is not None and "JUMP" in name and name.endswith(("IF_TRUE", "IF_FALSE", "OR_POP")):
            for kind in kinds:
                kind.dispatch_table[opcode] = _looking(jump)


def _below(kind: type) -> list[type]:
    found = [*kind.__subclasses__()]
    return found + [each for one in found for each in _below(one)]


def _looking(jump: Callable[..., Any]) -> Callable[..., Any]:
    from torch._dynamo.variables import ConstantVariable, TensorVariable

    def look_and_jump(self: Any, instruction: Any) -> Any:
        if frames.here.ours:
            value = self.stack[-1]
            value = value.realize() if hasattr(value, "realize") else value
            if type(value) is TensorVariable:
                truth = _truth(value.proxy.node)
                if truth is not None:
                    self.output.create_proxy("call_function", expect, (value.proxy, truth), {})
                    self.stack[-1] = ConstantVariable.create(truth)
        return jump(self, instruction)

    return look_and_jump


class _NotKnown(Exception):
    """A tensor that has no shadow."""


def _truth(node: Any) -> bool | None:
    """What a tensor in the graph of a trace is, by the shadows of the arguments."""
    try:
        with torch.no_grad(), torch.utils._python_dispatch._disable_current_modes():
            return bool(_value(node, {}))
    except Exception:  # whatever an op on shadows raises: then it is not known
        return None


def _value(node: Any, done: dict[Any, Any]) -> Any:
    if node in done:
        return done[node]
    if node.op == "placeholder":
        example = node.meta["grapharg"].example
        if isinstance(example, RemoraTensor):
            found = known(example._value)
            if found is None:
                raise _NotKnown
        else:
            found = int(example.node.hint if isinstance(example, torch.SymInt) else example)
    else:
        args, kwargs = _here((node.args, node.kwargs), lambda each: _value(each, done))
        if node.op == "call_method":
            found = getattr(args[0], node.target)(*args[1:], **kwargs)
        elif node.op == "call_function":
            found = node.target(*args, **kwargs)
        else:
            raise _NotKnown
    done[node] = found
    return found


def _here(arguments: Any, value_of: Callable[[Any], Any]) -> Any:
    """Arguments of a node with values for nodes, and this machine's device for any."""
    arguments = torch.fx.node.map_arg(arguments, value_of)
    return torch.utils._pytree.tree_map(
        lambda item: _CPU if isinstance(item, torch.device) else item, arguments
    )


class Checks:
    """The branches of a graph module, as ops on the shadows of its inputs."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        branches = [node for node in module.graph.nodes if node.target is expect]
        self._truths = [node.args[1] for node in branches]
        self._run: Callable[..., Any] | None = None
        self._used: list[int] = []
        if branches:
            self._extract(module, [node.args[0] for node in branches])

    def _extract(self, module: torch.fx.GraphModule, nodes: Sequence[Any]) -> None:
        graph = torch.fx.Graph()
        copies: dict[Any, Any] = {}

        def copied(node: Any) -> Any:
            if node not in copies:
                if node.op != "placeholder":
                    for each in node.all_input_nodes:
                        copied(each)
                copies[node] = graph.node_copy(node, lambda each: copies[each])
                copies[node].args, copies[node].kwargs = _here(
                    (copies[node].args, copies[node].kwargs), lambda each: each
                )
            return copies[node]

        places = [node for node in module.graph.nodes if node.op == "placeholder"]
        for number, node in enumerate(places):
            if _leads_to(node, nodes):
                copied(node)
                self._used.append(number)
        graph.output([copied(node) for node in nodes])
        self._run = torch.fx.GraphModule(torch.nn.Module(), graph).forward

    def hold(self, inputs: Sequence[Any]) -> bool:
        """Whether a call with these inputs of the graph branches as the trace did, as far as the client knows."""
        if self._run is None:
            return True
        given = []
        for number in self._used:
            item = inputs[number]
            if isinstance(item, RemoraTensor):
                item = known(item._value)
                if item is None:
                    return False
            given.append(item)
        with torch.no_grad():
            return [bool(found) for found in self._run(*given)] == self._truths


def _leads_to(node: Any, nodes: Sequence[Any]) -> bool:
    """Whether one of `nodes` is computed from it."""
    seen: set[Any] = set()
    pending = list(nodes)
    while pending:
        each = pending.pop()
        if each is node:
            return True
        if each not in seen:
            seen.add(each)
            pending.extend(each.all_input_nodes)
    return False
