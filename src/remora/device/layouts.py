"""Kinds of tensors that live on no executor: their ops say so by name, where PyTorch would list its backends."""

from __future__ import annotations

from typing import Any

import torch

from remora.errors import NotSupported

_KINDS = {
    "SparsePrivateUse1": "sparse tensors; convert with .to_dense() before moving them",
    "SparseCsrPrivateUse1": "sparse compressed tensors; convert with .to_dense() before moving them",
    "NestedTensorPrivateUse1": "nested tensors with layout=torch.strided; layout=torch.jagged works",
    "QuantizedPrivateUse1": "quantized tensors; convert with .dequantize() before moving them",
}


def refuse_by_name() -> list[Any]:
    """Registers the refusals, which end when the libraries that are returned die."""
    library = torch.library.Library("_", "IMPL")
    for key, kind in _KINDS.items():
        library.fallback(_refusal(kind), key)
    return [library]


def _refusal(kind: str) -> Any:
    def refuse(op: Any, *args: Any, **kwargs: Any) -> Any:
        raise NotSupported(f"{op}: the remora device has no {kind}")

    return refuse
