"""Cost of real programs, op by op as PyTorch dispatches them, against PyTorch's own counter of operations."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from remora.bench.networks import ResNet18, TinyGpt, mlp
from remora.ir.annotated import Facts, Row
from remora.ir.node import Arg, Const, Hole, Items, Node, Slot, Symbol
from remora.ops.cost import Kind, Work, work
from remora.ops.dtypes import NAMES
from remora.ops.schema import op_name, traits

COUNTED = (Kind.PRODUCT, Kind.CONVOLUTION, Kind.ATTENTION)


def facts_of(tensor: torch.Tensor) -> Facts:
    return Facts(NAMES[tensor.dtype], tuple(tensor.shape), tensor.element_size())


class NoCost(Exception):
    """A rule failed."""


class Costs(TorchDispatchMode):
    """Sees each op as a row and adds up its cost."""

    def __init__(self) -> None:
        super().__init__()
        self.works: list[tuple[str, Work]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        dense = all(
            item.layout is torch.strided
            for item in tree_leaves((args, out))
            if isinstance(item, torch.Tensor)
        )
        if func.namespace == "aten" and dense:
            try:
                done = self._cost(func, args, kwargs or {}, out)
            except Exception as error:
                raise NoCost(op_name(func)) from error
            self.works.append((op_name(func), done))
        return out

    def _cost(self, func: Any, args: Any, kwargs: Any, out: Any) -> Work:
        inputs: list[torch.Tensor] = []
        holes: list[int | float] = []

        def encode(item: Any) -> Arg:
            if isinstance(item, torch.Tensor):
                inputs.append(item)
                return Slot(len(inputs) - 1)
            if isinstance(item, (list, tuple)):
                return Items(tuple(map(encode, item)))
            if item is None or isinstance(item, (bool, str)):
                return Const(item)
            if isinstance(item, (int, float)):
                holes.append(item)
                return Hole("int" if isinstance(item, int) else "float")
            return Symbol("dtype", str(item).split(".")[-1])

        node = Node(
            op_name(func),
            tuple(map(encode, args)),
            tuple((name, encode(item)) for name, item in kwargs.items()),
        )
        outs = (
            []
            if out is None
            else [item for item in tree_leaves(out) if isinstance(item, torch.Tensor) or item is None]
        )
        homes = [item.untyped_storage()._cdata for item in inputs]
        shares = [None if o is None else _position(o.untyped_storage()._cdata, homes) for o in outs]
        written = [args[at] if isinstance(at, int) else kwargs.get(at) for at in traits(func).writes(args)]
        ids = {id(item) for item in tree_leaves(written) if isinstance(item, torch.Tensor)}
        writes = tuple(at for at, item in enumerate(inputs) if id(item) in ids)
        row = Row(node, tuple(None if o is None else facts_of(o) for o in outs), tuple(shares), writes)
        return work(row, [facts_of(item) for item in inputs], holes)

    def flops(self) -> int:
        return sum(done.flops for _, done in self.works if done.kind in COUNTED)


def _position(home: int, homes: list[int]) -> int | None:
    return homes.index(home) if home in homes else None


def _forward(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _backward(grad: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(grad, q, k, v)


# the counter's own formulas, which it knows for CUDA's kernels alone
ATTENTION_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


def resnet() -> Any:
    model = ResNet18().eval()
    images = torch.randn(2, 3, 64, 64)
    return lambda: model(images)


def resnet_training() -> Any:
    model = ResNet18()
    images = torch.randn(2, 3, 64, 64)
    return lambda: model(images).sum().backward()


def perceptron() -> Any:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    inputs, labels = torch.randn(16, 784), torch.randint(0, 10, (16,))

    def step() -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def decoder() -> Any:
    model = TinyGpt()
    ids = torch.randint(0, 16, (2, 8))
    return lambda: model(ids).sum().backward()


def encoder() -> Any:
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    x = torch.randn(2, 7, 32)
    return lambda: model(x).sum().backward()


def attention() -> Any:
    q, k, v = (torch.randn(1, 4, n, 16, requires_grad=True) for n in (6, 10, 10))
    return lambda: functional.scaled_dot_product_attention(q, k, v).sum().backward()


@pytest.mark.parametrize("make", [resnet, resnet_training, perceptron, encoder, attention])
def test_flops_are_those_of_the_flop_counter(make: Any) -> None:
    counts, costs = _count(make())
    assert sum(counts.values()) > 0
    assert costs.flops() == sum(counts.values()), _by_kind(costs)


def test_a_causal_mask_leaves_less_to_compute_than_the_flop_counter_says() -> None:
    tokens = 8
    counts, costs = _count(decoder())
    masked = {name: n for name, n in counts.items() if "attention" in name}
    assert len(masked) == 2  # forward, backward
    seen = sum(masked.values()) * (tokens + 1) / (2 * tokens)  # of each row's keys, those up to its own
    assert costs.flops() == sum(counts.values()) - sum(masked.values()) + seen, _by_kind(costs)


def _count(program: Any) -> tuple[dict[str, int], Costs]:
    counter, costs = FlopCounterMode(display=False, custom_mapping=ATTENTION_ON_CPU), Costs()
    with counter, costs:
        program()
    return {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}, costs


def _by_kind(costs: Costs) -> Counter[Kind]:
    found: Counter[Kind] = Counter()
    for _, done in costs.works:
        found[done.kind] += done.flops
    return found


def test_an_optimizer_moves_its_states_once() -> None:
    """Adam, fused: parameter, gradient and two moments in one pass."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(1000))
    weight.grad = torch.randn(1000)
    optimizer = torch.optim.Adam([weight], fused=True)
    optimizer.step()
    costs = Costs()
    with costs:
        optimizer.step()
    (update,) = [done for name, done in costs.works if "_fused_adam" in name]
    assert update.bytes_read == pytest.approx(4 * 4000, abs=16)
    assert update.bytes_written == 4 * 4000  # the schema counts the gradient among what may be written


def test_reading_a_row_of_a_table_is_no_reading_of_the_table() -> None:
    table, ids = torch.randn(10_000, 64), torch.tensor([3, 5])
    costs = Costs()
    with costs:
        functional.embedding(ids, table)
    assert sum(done.bytes_read for _, done in costs.works) == 2 * 64 * 4 + 2 * 8


@pytest.mark.filterwarnings("ignore")
def test_one_in_six_of_the_ops_in_pytorchs_own_tests_has_a_cost() -> None:
    """Each with its first sample; all of them take too long. Rules look at arguments, and must bear all that a
    schema allows."""
    from torch.testing._internal.common_methods_invocations import op_db

    seen: set[str] = set()
    for op in op_db[::6]:
        costs = Costs()
        try:
            sample = next(iter(op.sample_inputs("cpu", torch.float32, requires_grad=False)))
            with costs:
                op(sample.input, *sample.args, **sample.kwargs)
        except (RuntimeError, TypeError, ValueError, AssertionError, StopIteration):
            continue  # PyTorch has none for this dtype
        for name, done in costs.works:
            seen.add(name)
            assert 0 <= done.flops < 10**9, name
            assert 0 <= done.bytes_read < 10**8, name
            assert 0 <= done.bytes_written < 10**8, name
            assert done.kernels >= 1, name
    assert len(seen) > 60
