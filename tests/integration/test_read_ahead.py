"""What a program reads right behind a branch comes with it; what is read is what is there then."""

from __future__ import annotations

import pytest
import torch

import remora

pytestmark = pytest.mark.usefixtures("connected")


def there(*numbers):
    """Integers that the client does not know."""
    return torch.tensor(numbers, dtype=torch.float32).to("remora").long()


def ended(counts):
    """Branches as a loop does that ends by itself."""
    more = counts + 1
    return more, bool((more.max() > 3).all())


def blocked(run):
    before = remora.stats().round_trips
    found = run()
    return found, remora.stats().round_trips - before


def test_a_result_comes_with_the_branch_before_it():
    def run():
        result, over = ended(counts)
        return over, result.cpu().tolist()

    counts = there(1, 2, 3)
    for _ in range(4):
        assert blocked(run) == ((True, [2, 3, 4]), 1)


def test_what_is_not_read_does_not_come_again():
    def run(read):
        result, over = ended(counts)
        if read:
            return result.tolist()
        return over

    counts = there(1, 2, 3)
    assert [blocked(lambda: run(False))[1] for _ in range(3)] == [1, 1, 1]
    assert blocked(lambda: run(True)) == ([2, 3, 4], 2)


def test_a_write_behind_the_branch_is_seen():
    for write in (lambda x: x.add_(5), lambda x: x.copy_(torch.tensor([6, 7, 8])), lambda x: x[:3].mul_(2)):
        for _ in range(3):
            result, _ = ended(there(1, 2, 3))
            expected = torch.tensor([2, 3, 4])
            write(result)
            write(expected)
            assert torch.equal(result.cpu(), expected)


def test_a_write_before_the_branch_is_seen():
    for _ in range(3):
        result = there(1, 2, 3) + 0
        view = result[1:]
        result += 1
        assert bool((view.max() > 3).all())
        result_here, view_here = result.cpu(), view.cpu()
        assert (result_here.tolist(), view_here.tolist()) == ([2, 3, 4], [3, 4])


def test_large_and_fractional_values_are_read_when_they_are_asked_for():
    def run():
        large = torch.zeros(1 << 12, device="remora").long() + 1
        part = torch.ones(3, device="remora") * 0.5
        assert bool((part.sum() > 1).all())
        return large.cpu().sum().item(), part.cpu().tolist()

    (found, waits) = blocked(run)
    assert (found, waits) == ((1 << 12, [0.5, 0.5, 0.5]), 3)
