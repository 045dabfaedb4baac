"""The composites kept whole meet the criteria: decomposable, fresh outputs, one meaning on meta and CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from remora.ops.composites import COMPOSITES, DIFFERENTIABLE
from remora.ops.permission import allowed
from remora.ops.schema import resolve, traits

X = torch.randn

# Calls of each composite; the last of each is the one most likely to give an input back.
CALLS: dict[str, list[tuple[Any, ...]]] = {
    "scaled_dot_product_attention.default": [
        (X(1, 2, 3, 4), X(1, 2, 5, 4), X(1, 2, 5, 4)),
        (X(1, 1, 1),) * 3,
    ],
    "linear.default": [(X(2, 3), X(4, 3), X(4)), (X(1), X(1, 1))],
    "matmul.default": [(X(2, 3), X(3, 4)), (X(3), X(3)), (X(2, 2), X(5, 2, 2)), (X(1, 1), X(1, 1))],
    "bilinear.default": [(X(2, 3), X(2, 4), X(5, 3, 4)), (X(1, 1), X(1, 1), X(1, 1, 1))],
    "tensordot.default": [(X(2, 3), X(3, 4), [1], [0]), (X(2, 3), X(()), [], [])],
    "layer_norm.default": [(X(2, 3), [3], X(3), X(3)), (X(1), [1])],
    "rms_norm.default": [(X(2, 3), [3], X(3)), (X(1), [1])],
    "group_norm.default": [(X(2, 4, 3), 2, X(4), X(4)), (X(1, 1), 1)],
    "softmax.int": [(X(2, 3), -1, torch.float64), (X(()), 0)],
    "log_softmax.int": [(X(2, 3), -1, torch.float64), (X(()), 0)],
    "repeat_interleave.self_int": [(X(2, 3), 2, 1), (X(2, 3), 1, 0), (X(3), 1)],
    "conv1d.default": [(X(2, 3, 8), X(4, 3, 3), X(4)), (X(1, 1, 1), X(1, 1, 1))],
    "conv2d.default": [(X(2, 3, 8, 8), X(4, 3, 3, 3), X(4)), (X(1, 1, 1, 1), X(1, 1, 1, 1))],
    "conv3d.default": [(X(2, 3, 4, 4, 4), X(4, 3, 2, 2, 2), X(4)), (X(1, 1, 1, 1, 1), X(1, 1, 1, 1, 1))],
    "conv1d.padding": [(X(2, 3, 8), X(4, 3, 3), X(4), [1], "same"), (X(1, 1, 1), X(1, 1, 1))],
    "conv2d.padding": [(X(2, 3, 8, 8), X(4, 3, 2, 2), None, [1, 1], "same")],
    "conv3d.padding": [(X(2, 3, 4, 4, 4), X(4, 3, 2, 2, 2), None, [1, 1, 1], "valid")],
    "conv_transpose1d.default": [(X(2, 3, 8), X(3, 4, 3), X(4)), (X(1, 1, 1), X(1, 1, 1))],
    "conv_transpose2d.input": [(X(2, 3, 5, 5), X(3, 4, 3, 3)), (X(1, 1, 1, 1), X(1, 1, 1, 1))],
    "conv_transpose3d.input": [(X(1, 2, 3, 3, 3), X(2, 2, 2, 2, 2)), (X(1, 1, 1, 1, 1), X(1, 1, 1, 1, 1))],
    "max_pool1d.default": [(X(2, 3, 8), [2]), (X(1, 3, 4), [1])],
    "max_pool2d.default": [(X(2, 3, 8, 8), [2, 2]), (X(1, 3, 4, 4), [1, 1])],
    "max_pool3d.default": [(X(2, 3, 4, 4, 4), [2, 2, 2]), (X(1, 3, 4, 4, 4), [1, 1, 1])],
    "adaptive_avg_pool2d.default": [
        (X(2, 3, 8, 8), [2, 2]),
        (X(2, 3, 4, 4), [4, 4]),
        (X(2, 3, 1, 1), [1, 1]),
    ],
    "upsample_nearest2d.vec": [(X(1, 2, 3, 3), [6, 6], None), (X(1, 2, 3, 3), [3, 3], None)],
    "upsample_bilinear2d.vec": [
        (X(1, 2, 3, 3), None, True, [2.0, 2.0]),
        (X(1, 2, 3, 3), [3, 3], False, None),
    ],
    "upsample_bicubic2d.vec": [(X(1, 2, 3, 3), [6, 6], False, None), (X(1, 2, 3, 3), [3, 3], False, None)],
    "cross_entropy_loss.default": [(X(4, 5), torch.zeros(4, dtype=torch.int64)), (X(4, 5), X(4, 5), None, 0)],
    "nll_loss_nd.default": [
        (X(4, 5), torch.zeros(4, dtype=torch.int64)),
        (X(1, 1), torch.zeros(1).long(), None, 0),
    ],
    "cosine_similarity.default": [(X(2, 3), X(2, 3), 1), (X(1), X(1), 0)],
    "silu_backward.default": [(X(2, 3), X(2, 3)), (X(()), X(()))],
    "mish_backward.default": [(X(2, 3), X(2, 3)), (X(()), X(()))],
    "native_channel_shuffle.default": [(X(2, 4, 3, 3), 2), (X(1, 1, 1, 1), 1)],
}


def recurrent(gates: int) -> list[tuple[Any, ...]]:
    """Two layers, both directions; and one step of one layer."""
    calls = []
    for layers, directions, steps in ((2, 2, 5), (1, 1, 1)):
        params = [
            p
            for layer in range(layers)
            for _ in range(directions)
            for p in (
                X(gates * 4, 3 if layer == 0 else 4 * directions),
                X(gates * 4, 4),
                X(gates * 4),
                X(gates * 4),
            )
        ]
        state = X(layers * directions, 2, 4)
        hidden = [state, state.clone()] if gates == 4 else state
        calls += [(X(2, steps, 3), hidden, params, True, layers, 0.0, False, directions == 2, True)]
        calls += [(X(steps, 2, 3), hidden, params, True, layers, 0.0, False, directions == 2, False)]
    return calls


for kind, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
    CALLS[f"{kind}.input"] = recurrent(gates)

EVERY = [
    pytest.param(f"aten.{name}", call, id=f"{name}-{i}")
    for name, calls in CALLS.items()
    for i, call in enumerate(calls)
]


def tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


def on_meta(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return type(value)(on_meta(v) for v in value) if isinstance(value, list | tuple) else value


def test_every_composite_has_calls() -> None:
    assert set(COMPOSITES) == {f"aten.{name}" for name in CALLS}


@pytest.mark.parametrize("name", COMPOSITES)
def test_composite_meets_the_criteria_of_the_schema(name: str) -> None:
    op = resolve(name)
    found = traits(op)
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd")
    assert not found.mutates
    assert not found.views
    assert not found.dynamic_shape
    assert not found.may_alias
    assert not found.random or found.dropout_arg is not None
    assert allowed(op)


@pytest.mark.parametrize(("name", "args"), EVERY)
def test_outputs_are_fresh(name: str, args: tuple[Any, ...]) -> None:
    with torch.no_grad():
        outputs = list(tensors(resolve(name)(*args)))
    storages = [t.untyped_storage().data_ptr() for t in outputs]
    assert not set(storages) & {t.untyped_storage().data_ptr() for t in tensors(args)}
    assert len(set(storages)) == len(storages)


@pytest.mark.parametrize(("name", "args"), EVERY)
def test_meta_kernel_foretells_the_outputs(name: str, args: tuple[Any, ...]) -> None:
    op = resolve(name)
    with torch.no_grad():
        real, meta = list(tensors(op(*args))), list(tensors(op(*on_meta(args))))
    assert [(t.shape, t.dtype) for t in real] == [(t.shape, t.dtype) for t in meta]


def test_composites_with_a_derivative_and_a_cpu_kernel_stay_whole_under_grad() -> None:
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    found = {
        name
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("aten::")
        and all(has(name, key) for key in ("CompositeImplicitAutograd", "Autograd", "CPU"))
    }
    assert found == {resolve(name).name() for name in DIFFERENTIABLE}


def test_left_out_because_they_alias() -> None:
    x = X(2, 3)
    assert torch.ops.aten.einsum("ij->ji", [x]).data_ptr() == x.data_ptr()
    assert torch.ops.aten.dropout(x, 0.5, False).data_ptr() == x.data_ptr()
    assert traits(resolve("aten.one_hot.default")).dynamic_shape
    assert traits(resolve("aten.batch_norm.default")).mutates == (3, 4)
