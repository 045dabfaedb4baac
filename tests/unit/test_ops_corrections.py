"""Corrections of meta kernels give what the CPU gives."""

from __future__ import annotations

import itertools

import pytest
import torch

from remora.ops.corrections import CORRECTIONS
from remora.ops.layout import Meta
from remora.ops.schema import resolve


def meta(item):
    if isinstance(item, torch.Tensor):
        return Meta(tuple(item.shape), item.stride(), 0, item.dtype)
    return [meta(x) for x in item] if isinstance(item, list) else item


def listed(outs):
    return list(outs) if isinstance(outs, (list, tuple)) else [outs]


def on_meta(item):
    if isinstance(item, torch.Tensor):
        return torch.empty_strided(item.shape, item.stride(), dtype=item.dtype, device="meta")
    return [on_meta(x) for x in item] if isinstance(item, list) else item


X = torch.randn(4, 3, 5)
ROWS = torch.randint(0, 3, (2, 6))
SQUARE = torch.randn(2, 4, 4)
STATISTICS = (torch.ones(3), torch.zeros(3), torch.zeros(3), torch.ones(3))
CALLS = {
    "aten.linalg_eig.default": [(SQUARE,)],
    "aten._linalg_svd.default": [(torch.randn(2, 3, 5),), (SQUARE, False, False)],
    "aten.nonzero_static.default": [()],
    "aten.max_unpool2d.default": [
        (x, torch.arange(8).view(1, 2, 2, 2).to(memory_format=form), [4, 4])
        for form in (torch.contiguous_format, torch.channels_last)
        for x in [torch.randn(1, 2, 2, 2).to(memory_format=form)]
    ],
    "aten.native_batch_norm.default": [(X, *STATISTICS, train, 0.1, 1e-5) for train in (True, False)],
    "aten._native_batch_norm_legit.default": [(X, *STATISTICS, train, 0.1, 1e-5) for train in (True, False)],
    "aten._native_batch_norm_legit.no_stats": [(X, *STATISTICS[:2], True, 0.1, 1e-5)],
    "aten.index.Tensor": [
        (x, indices)
        for x in (X, X.transpose(0, 2), X.permute(1, 2, 0), X[..., 1:2], X[:, :1])
        for i, j in itertools.product((ROWS, ROWS.t(), ROWS[:, :1], ROWS[0], ROWS[:, ::3].t()), repeat=2)
        if i.dim() != j.dim() or i.shape == j.shape
        for indices in ([i], [None, i], [i, None, i], [i, j], [None, i, j], [i, i, i])
    ],
}
CALLS["aten.nonzero_static.default"] = []  # its size is keyword-only: below
EVERY = [(name, args) for name, calls in CALLS.items() for args in calls]


def test_every_correction_is_tried():
    assert set(CALLS) == set(CORRECTIONS)


@pytest.mark.parametrize(("name", "args"), EVERY, ids=[f"{name}-{n}" for n, (name, _) in enumerate(EVERY)])
def test_a_correction_says_what_the_cpu_does(name, args):
    op = resolve(name)
    try:
        expected = [meta(out) for out in listed(op(*args))]
    except (IndexError, RuntimeError):
        pytest.skip("the CPU refuses these indices")
    claimed = [meta(out) for out in listed(op(*on_meta(list(args))))]
    found = CORRECTIONS[name](claimed, [meta(item) for item in args], "cpu")
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert [s for n, s in zip(a.shape, a.stride, strict=True) if n > 1] == [
            s for n, s in zip(b.shape, b.stride, strict=True) if n > 1
        ]


def test_rows_of_nonzero_static_are_contiguous():
    expected = torch.ops.aten.nonzero_static(torch.ones(2, 2), size=7)
    claimed = torch.ops.aten.nonzero_static(torch.ones(2, 2, device="meta"), size=7)
    (found,) = CORRECTIONS["aten.nonzero_static.default"]([meta(claimed)], [], "cpu")
    assert found.stride == expected.stride()
