"""Ops of Remora's own, beside PyTorch's: known to client and executor alike, in the namespace `remora`.

`resized`: another tensor for `self`'s storage, with the sizes, strides (elements) and offset given. The storage
grows where they reach beyond it, for every tensor that shares it, as `resize_` makes it grow; what is new is zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from remora.ops.layout import span_of

NAMESPACE = "remora"

_library = torch.library.Library(NAMESPACE, "DEF")
_library.define("resized(Tensor(a) self, SymInt[] size, SymInt[] stride, SymInt storage_offset) -> Tensor(a)")


def _resized(
    self: torch.Tensor, size: Sequence[int], stride: Sequence[int], storage_offset: int
) -> torch.Tensor:
    if len(size) != len(stride) or storage_offset < 0 or any(n < 0 for n in (*size, *stride)):
        raise ValueError(f"no tensor has sizes {size}, strides {stride} and offset {storage_offset}")
    span = span_of(size, stride)
    storage = self.untyped_storage()
    before, needed = storage.nbytes(), (storage_offset + span) * self.element_size() if span else 0
    if needed > before:
        if not storage.resizable():
            raise NotImplementedError(
                "a tensor that was uploaded in bulk cannot grow in place; make it with .clone() first"
            )
        storage.resize_(needed)
        grown = torch.empty(0, dtype=torch.uint8, device=self.device)
        grown.set_(storage, before, (needed - before,), (1,)).zero_()
    return self.as_strided(size, stride, storage_offset)


_library.impl("resized", _resized, "CompositeExplicitAutograd")
RESIZED = torch.ops.remora.resized.default
OWN = frozenset({"remora.resized.default"})
"""Names of all of them: an executor allows these and nothing else of the namespace."""
