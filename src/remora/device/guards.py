"""Dynamo as a source of guards: what a module's call depends on, and the graph that it computes then.

Dynamo traces a call on ghosts (device/scratch.py), in a thread of its own and outside the interpreter's frame
evaluation, so that the program runs on as it is meanwhile. What is changed in Dynamo for that holds in the thread
that traces for this purpose only; whether the trace is right is seen from the rows (capture/calls.py), which have to
be those that the same call records op by op.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, ModuleType
from typing import Any

import torch

from remora.device.branches import Checks, change_jumps
from remora.device.compile import frames
from remora.device.tensor import RemoraTensor
from remora.device.traced_code import TracedCode

_CONFIG = {
    "allow_unspec_int_on_nn_module": True,  # a number that counts calls
    # modules whose tables have not been written to are not walked through again
    "use_recursive_dict_tags_for_guards": True,
    "max_saved_pointers_for_recursive_dict_tags_check": 1 << 16,
}


@dataclass(frozen=True)
class Traced:
    """A call as Dynamo understood it.

    check: whether a call with these locals (module, args, kwargs) is that one, if `code` is what it was.
    bind: makes the function that calls it, around one from the graph's inputs to its outputs.
    graph: computes the outputs. branches: what it takes for granted besides. inputs: what stood for them in the
    trace, fake tensors and symbolic numbers.
    shapes: of the trace.
    """

    check: Callable[[dict[str, Any]], bool]
    code: TracedCode
    bind: Callable[[Callable[..., Any]], Callable[..., Any]]
    graph: Callable[..., Any]
    branches: Checks
    inputs: list[Any]
    shapes: Any


class Tree:
    """The modules below a module, and their hooks. Dynamo has guards for hooks, which cost as much as all others."""

    def __init__(self, module: torch.nn.Module) -> None:
        found = list(module.modules())
        self._tables = [each._modules for each in found if each._modules]
        self._children = self._now()  # not the module itself, which would then live as long as its guards
        kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        self._hooks = [getattr(each, kind) for each in found for kind in kinds]

    def _now(self) -> list[Any]:
        return [*itertools.chain.from_iterable(map(dict.values, self._tables))]

    def unchanged(self) -> bool:
        """Whether these are still the same modules, without hooks."""
        return not any(self._hooks) and self._now() == self._children


def trampoline(number: int) -> FunctionType:
    """A function that calls a module's forward, with code of its own: Dynamo remembers sizes by code."""

    def call(module: Any, args: Any, kwargs: Any) -> Any:
        return module.forward(*args, **kwargs)

    code = call.__code__.replace(co_name=f"call_{number}", co_firstlineno=number + 1)
    return FunctionType(code, globals(), code.co_name)


def trace(call: FunctionType, module: Any, args: Any, kwargs: Any) -> Traced:
    """Traces a call. Raises whatever Dynamo raises for what it cannot trace without a break."""
    import torch._dynamo
    from torch._dynamo import convert_frame
    from torch._dynamo.hooks import Hooks
    from torch._dynamo.utils import dynamo_timed, get_metrics_context

    install()
    with _ours(), torch._dynamo.config.patch(**_CONFIG), get_metrics_context(), dynamo_timed("remora"):
        captured = convert_frame.fullgraph_capture(call, (module, args, kwargs), {})
        backend, found = captured.backend_input, captured.graph_capture_output
        if backend is None:
            raise ValueError("the call has no ops")
        nodes = [node for node in backend.graph_module.graph.nodes if node.op == "placeholder"]
        hooks = Hooks(guard_filter_fn=functools.partial(_kept, _sources(found.output_graph, len(nodes))))
        checks = found.build_guards(call.__code__, hooks)
    names = {**vars(builtins), **found.f_globals}
    return Traced(
        checks.guard_manager.check,
        TracedCode(found.traced_code, (module, args, kwargs)),
        lambda function: captured.forward_callable(compiled_fn=function, extra_globals=names),
        backend.graph_module.forward,
        Checks(backend.graph_module),
        [node.meta["example_value"] for node in nodes],
        backend.fake_mode.shape_env,
    )


def _sources(output_graph: Any, n_inputs: int) -> frozenset[str]:
    """What Dynamo calls the inputs of the graph; nothing if it tells of others, too."""
    found = output_graph.export_metadata.graph_input_idx_to_local_source
    if len(found) != n_inputs:
        return frozenset()
    return frozenset(_name(source) for source in found.values() if source is not None)


def _name(source: Any) -> str:
    return str(source.name() if callable(source.name) else source.name)


def _kept(sources: frozenset[str], guards: Any) -> list[bool]:
    """Without those for tensors that are inputs: whoever calls the graph looks at all that there is to know of them."""
    ours = ("TENSOR_MATCH", "TYPE_MATCH")
    return [not (guard.guard_type in ours and _name(guard.orig_guard) in sources) for guard in guards]


@contextlib.contextmanager
def _ours() -> Iterator[None]:
    frames.here.ours = True
    try:
        yield
    finally:
        frames.here.ours = False


# -- what is changed in Dynamo


def _take_tensors_in(dynamo: Any) -> None:
    """A remora tensor is traced as a tensor, not as a subclass with Python of its own."""
    builder = dynamo.variables.builder.VariableBuilder
    for traces_numpy in (False, True):
        builder._type_dispatch_impl(traces_numpy)[RemoraTensor] = builder.wrap_tensor


def _run_as_not_compiled(dynamo: Any) -> None:
    """Models that ask take the way that they take without a compiler, which is what is recorded op by op. Only what
    keeps away from context variables for Dynamo's sake is told of it, for Dynamo cannot trace these."""
    variables = dynamo.variables.torch
    handlers = variables.TorchInGraphFunctionVariable._get_handlers()
    asked = (
        dynamo.external_utils.is_compiling,
        torch._utils.is_compiling,
        torch.compiler.is_compiling,
        torch.compiler.is_dynamo_compiling,
    )
    for function in asked:
        handlers[function] = _answer(handlers[function], _keeps_from_context)
    for function in (torch.cuda.is_current_stream_capturing, torch.compiler.is_exporting):
        handlers[function] = _answer(handlers.get(function), lambda tx: False)


def _keeps_from_context(tx: Any) -> bool:
    while tx.parent is not None and tx.f_code.co_name.startswith("is_"):
        tx = tx.parent
    return "ContextVar" in tx.f_code.co_qualname


def _answer(handler: Any, answer: Callable[[Any], bool]) -> Any:
    from torch._dynamo.variables.base import VariableTracker

    def handle(self: Any, tx: Any, *args: Any, **kwargs: Any) -> Any:
        if frames.here.ours:
            return VariableTracker.build(tx, answer(tx))
        return handler(self, tx, *args, **kwargs) if handler is not None else None

    return handle


def _see_no_capture(dynamo: Any) -> None:
    """Models ask the drivers of devices whether a stream is being captured; Dynamo refuses some of these calls."""
    from torch._dynamo.variables.base import VariableTracker

    skipped = dynamo.variables.functions.SkipFunctionVariable
    refuse = skipped.call_function

    @functools.wraps(refuse)
    def call_function(self: Any, tx: Any, args: Any, kwargs: Any) -> Any:
        if frames.here.ours and getattr(self.value, "__name__", "") == "is_current_stream_capturing":
            return VariableTracker.build(tx, False)
        return refuse(self, tx, args, kwargs)

    skipped.call_function = call_function


def _share_symbols(dynamo: Any) -> None:
    """Sizes that are equal get one symbol: a cache of 32 layers has one length. It is several times faster."""
    from torch.fx.experimental.symbolic_shapes import DimDynamic

    builder = dynamo.variables.builder
    automatic = builder._automatic_dynamic

    @functools.wraps(automatic)
    def automatic_dynamic(*args: Any, **kwargs: Any) -> Any:
        found = automatic(*args, **kwargs)
        sizes = getattr(found, "dynamic_sizes", None)
        if frames.here.ours and sizes is not None:
            sizes[:] = [DimDynamic.DUCK if size is DimDynamic.DYNAMIC else size for size in sizes]
        return found

    builder._automatic_dynamic = automatic_dynamic


def _leave_the_process_alone(dynamo: Any) -> None:
    """Dynamo puts random state and flags back to what they were before a trace; the program has gone on since."""
    convert = dynamo.convert_frame
    guarded = convert.trace_frame
    plain = guarded._torchdynamo_orig_backend

    @functools.wraps(guarded)
    def trace_frame(*args: Any, **kwargs: Any) -> Any:
        if not frames.here.ours:
            return guarded(*args, **kwargs)
        with torch._C._PreserveDispatchKeyGuard(), torch.inference_mode(False), torch.no_grad():
            return plain(*args, **kwargs)

    convert.trace_frame = trace_frame


_CHANGES = (
    _take_tensors_in,
    _run_as_not_compiled,
    _see_no_capture,
    _share_symbols,
    _leave_the_process_alone,
    change_jumps,
)


def install() -> None:
    """When the first call is traced: importing Dynamo takes a second. Idempotent."""
    import torch._dynamo
    import torch._dynamo.convert_frame
    import torch._dynamo.variables.builder
    import torch._dynamo.variables.functions
    import torch._dynamo.variables.torch

    if not hasattr(torch._dynamo, "_remora_guards"):
        torch._dynamo._remora_guards = True
        for change in _CHANGES:
            change(torch._dynamo)


def probe() -> str | None:
    """Traces a call on a tensor that has no session, if Dynamo is loaded for that."""
    dynamo: ModuleType | None = sys.modules.get("torch._dynamo")
    if dynamo is None or not hasattr(dynamo, "_remora_guards"):
        return None
    from remora.device.tensor import nobodys

    module = torch.nn.ReLU()
    with torch.no_grad():
        traced = trace(trampoline(0), module, (nobodys(),), {})
        seen = traced.check({"module": module, "args": (nobodys(),), "kwargs": {}})
        if not seen or len(traced.inputs) != 1:
            return "the guards of a traced call do not hold for it"
        stays = _length_of_a_product()
    return None if stays else "a trace of a product holds at one length only"


def _length_of_a_product() -> bool:
    """Whether a size that changes is a symbol still when a product of the tensor was traced."""
    from remora.device.meta import contiguous_meta
    from remora.device.scratch import ghost_of
    from remora.device.tensor import nobodys

    rows = ghost_of(nobodys(), contiguous_meta((2, 5, 3), torch.float32))
    torch._dynamo.maybe_mark_dynamic(rows, 1)
    weight = ghost_of(nobodys(), contiguous_meta((4, 3), torch.float32))
    traced = trace(trampoline(0), _Product(), (rows, weight), {})
    return any(
        isinstance(size, torch.SymInt) and size.node.expr.free_symbols
        for item in traced.inputs
        if isinstance(item, torch.Tensor)
        for size in item.shape
    )


class _Product(torch.nn.Module):
    def forward(self, rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(rows, weight)
