"""Every shape rule says nothing or exactly what torch gives, on CPU and on meta, for any layout of inputs."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from shape_calls import STRATEGIES
from shape_layouts import Layout

from remora.ops import shapes_convolve
from remora.ops.layout import contiguous, is_contiguous
from remora.ops.schema import resolve, traits
from remora.ops.shapes import DECLARED, SHAPE_RULES, Meta
from remora.ops.torch_shapes import shape_rules

RULES = shape_rules()
EXAMPLES = 40


def filled(value: Any, device: str) -> Any:
    """The arguments for `device`: "rule", "meta" or "cpu"."""
    if isinstance(value, Layout):
        return Meta(*value[:4]) if device == "rule" else value.tensor(device)
    if isinstance(value, list):
        return [filled(v, device) for v in value]
    if isinstance(value, dict):
        return {k: filled(v, device) for k, v in value.items()}
    return device if value == "?" else value


def measured(result: Any) -> Any:
    if isinstance(result, torch.Tensor):
        return Meta(tuple(result.shape), result.stride(), result.storage_offset(), result.dtype)
    return tuple(measured(r) for r in result)


def listed(outputs: Any) -> list[Any]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def without_strides(result: Any) -> Any:
    return [r._replace(stride=()) for r in ([result] if isinstance(result, Meta) else result)]


def plain(result: Any) -> list[Meta]:
    """With contiguous strides wherever those and the given ones are the same layout."""
    return [
        meta._replace(stride=contiguous(meta.shape)) if is_contiguous(meta.shape, meta.stride) else meta
        for meta in ([result] if isinstance(result, Meta) else result)
    ]


def tensors_of(value: Any) -> list[torch.Tensor]:
    if isinstance(value, list):
        return [t for v in value for t in tensors_of(v)]
    return [value] if isinstance(value, torch.Tensor) else []


def all_plain(value: Any) -> bool:
    """Every tensor is contiguous and has no dimension of size 0 or 1.

    Elsewhere torch's own meta and CPU kernels disagree about strides: always where sizes are 0 or 1 or an
    operand is expanded, and in logical_* and floor division wherever an operand is permuted. CPU is right.
    """
    return all(t.is_contiguous() and all(size > 1 for size in t.shape) for t in tensors_of(value))


def test_every_rule_is_tested() -> None:
    assert set(RULES) <= set(STRATEGIES)


@pytest.mark.parametrize("name", sorted(RULES))
def test_rule_takes_the_arguments_of_its_op(name: str) -> None:
    arguments = resolve(name)._schema.arguments
    parameters = list(inspect.signature(SHAPE_RULES[name]).parameters.values())[1:]
    keyword_only = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert [a.name for a in arguments if a.kwarg_only] == keyword_only
    optional = [p.default is not p.empty for p in parameters]
    assert [a.has_default_value() for a in arguments] == optional


@pytest.mark.parametrize("name", sorted(RULES))
@given(data=st.data())
@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
def test_rule_agrees_with_torch(name: str, data: st.DataObject) -> None:
    args, kwargs = STRATEGIES[name](data.draw)
    said = RULES[name](*filled(args, "rule"), **filled(kwargs, "rule"))
    event("no rule" if said is None else "rule")
    if said is None:
        return
    op = resolve(name)
    for device in ("cpu", "meta"):
        inputs = filled(args, device)
        outputs = op(*inputs, **filled(kwargs, device))
        found = measured(outputs)
        if name in DECLARED or (device == "meta" and not traits(op).views and not all_plain(inputs)):
            assert without_strides(said) == without_strides(found), device
        elif name in shapes_convolve.RULES:
            assert plain(said) == plain(found), device
        else:
            assert said == found, device
        if traits(op).views and device == "cpu":
            start = inputs[0].untyped_storage().data_ptr()
            assert all(view.untyped_storage().data_ptr() == start for view in listed(outputs))
