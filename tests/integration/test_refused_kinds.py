"""Sparse, nested and quantised tensors: refused by name, or right."""

from __future__ import annotations

import pytest
import torch

from remora.errors import NotSupported, UnsupportedOp

KINDS = {
    "sparse moved": lambda: torch.eye(2).to_sparse().to("remora"),
    "sparse made": lambda: torch.sparse_coo_tensor([[0]], [1.0], (2,), device="remora"),
    "to_sparse": lambda: torch.eye(2, device="remora").to_sparse(),
    "compressed made": lambda: torch.sparse_csr_tensor([0, 1], [0], [1.0], (1, 1), device="remora"),
    "compressed moved": lambda: torch.eye(2).to_sparse_csr().to("remora") @ torch.eye(2, device="remora"),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(2, device="remora"), 0.1, 0, torch.qint8),
    "quantized moved": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8).to("remora"),
    "nested moved": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]).to("remora"),
    "nested used": lambda: torch.nested.nested_tensor([torch.ones(2)], device="remora") * 2,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_refused_by_name(connected, kind):
    with pytest.raises((NotSupported, UnsupportedOp), match=r"sparse|quantized|nested"):
        KINDS[kind]()


@pytest.mark.filterwarnings("ignore")
def test_jagged_tensors_work(connected):
    parts = [torch.arange(2.0), torch.arange(3.0)]
    for made in (
        torch.nested.nested_tensor(parts, layout=torch.jagged, device="remora"),
        torch.nested.nested_tensor(parts, layout=torch.jagged).to("remora"),
    ):
        first, second = (made * 2).unbind()
        assert (first.tolist(), second.tolist()) == ([0, 2], [0, 2, 4])
