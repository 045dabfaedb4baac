"""Values that leave memory which something overwrites: they keep bits, aliases and account."""

from __future__ import annotations

import pytest
import torch

from remora.executor.worker.parked import FEW, MAX_BATCHES, MAX_NBYTES
from remora.executor.worker.values import Values


def lent(values, storage_of):
    values.lend(storage_of.untyped_storage()._cdata)
    return torch.empty(0, dtype=torch.uint8).set_(storage_of.untyped_storage())


@pytest.mark.parametrize("n", [1, FEW, FEW + 3])
def test_parked_values_come_back_with_bits_and_aliases(n):
    values = Values()
    made = [torch.rand(3, 5, dtype=torch.float64)[:, :4] for _ in range(n)]
    whole = [lent(values, tensor) for tensor in made]
    for at, tensor in enumerate(made):
        values.keep((1, at, 0), tensor)
        values.keep((2, at, 0), tensor[1:, ::2])
    assert values.used_nbytes == 0  # lent memory is its owner's
    values.park(whole)
    assert values.used_nbytes == values.parked.nbytes > 0
    expected = [tensor.clone() for tensor in made]
    for tensor in made:
        tensor.fill_(7)
    assert values.count == 2 * n
    values.unpark([(2, 0, 0), (9, 9, 9)])
    assert values.parked.nbytes == 0
    for at, tensor in enumerate(expected):
        one, two = values.tensors[1, at, 0], values.tensors[2, at, 0]
        assert torch.equal(one, tensor)
        assert one.stride() == tensor.stride() or one.stride() == made[at].stride()
        assert torch.equal(two, tensor[1:, ::2])
        two.fill_(3)
        assert torch.equal(one[1:, ::2], two)
    for at in range(n):
        values.free((1, at, 0))
        values.free((2, at, 0))
    assert values.used_nbytes == values.held_nbytes == 0


def test_what_is_freed_while_parked_gives_its_memory_back():
    values = Values()
    tensor = torch.rand(100)
    whole = lent(values, tensor)
    values.keep((1, 0, 0), tensor)
    values.keep((1, 1, 0), tensor[3:])
    values.park([whole])
    values.free((1, 0, 0))
    assert values.parked.nbytes > 0
    values.free((1, 1, 0))
    values.free((1, 1, 0))
    assert values.parked.nbytes == values.used_nbytes == values.count == 0


@pytest.mark.parametrize("floats", [100, 1 << 16])
def test_the_few_that_stay_do_not_keep_the_memory_of_all(floats):
    values = Values()
    tensors = [torch.rand(floats) for _ in range(FEW + 1)]
    whole = [lent(values, tensor) for tensor in tensors]
    most = MAX_BATCHES if floats < 1000 else MAX_NBYTES // ((FEW + 1) * 4 * floats)
    for round_ in range(most + 3):
        for at, tensor in enumerate(tensors):
            values.keep((round_, at, 0), tensor.fill_(round_))
        values.park(whole)
        for at in range(1, FEW + 1):
            values.free((round_, at, 0))
    assert values.tensors[0, 0, 0].untyped_storage().nbytes() == 4 * floats
    assert values.tensors[2, 0, 0].tolist() == [2] * floats
    assert values.used_nbytes == 3 * 4 * floats + values.parked.nbytes
    values.clear()
    assert values.used_nbytes == values.count == 0


def test_memory_that_its_owner_gives_up_counts_as_the_values_in_it():
    values = Values()
    tensor = torch.rand(100)
    lent(values, tensor)
    values.keep((1, 0, 0), tensor)
    values.given(tensor.untyped_storage()._cdata)
    assert values.used_nbytes == 400
    values.free((1, 0, 0))
    assert values.used_nbytes == 0
