"""What a pool session still holds when a program has let go of its tensors."""

from __future__ import annotations

import gc

import torch

from remora.capture.value import Value
from remora.session.connect import current


def nothing_is_left() -> None:
    """Asserts that the pool holds what living tensors hold, and nothing else."""
    gc.collect()
    torch.remora.synchronize()
    current().idle()
    holdings = current().placement.holdings
    held = living()
    assert holdings.places.keys() == held
    if held:  # a backward pass that made a graph of its own: PyTorch itself never lets go of what it leads to
        storages = {place.storage.number: place.storage for place in holdings.places.values()}
        assert sum(holdings.held_nbytes) == sum(storage.nbytes for storage in storages.values())
        return
    assert (holdings.places, holdings.batches, holdings.held_nbytes) == (
        {},
        {},
        [0] * len(holdings.held_nbytes),
    )


def living() -> set[tuple[int, int]]:
    """Names of the session's values that something still refers to: a tensor that PyTorch's engine keeps may have no
    Python object."""
    here = current().recorder
    values = [each for each in gc.get_objects() if issubclass(type(each), Value)]
    return {(value.segment, value.code) for value in values if value.home is here}
