"""Tensors that change their own shape, and results written with `out=`: as on the CPU, aliases included."""

from __future__ import annotations

import warnings

import pytest
import torch

from remora.errors import RemoraError


def both(program):
    """What a program gives on the CPU and on remora, as CPU tensors with shapes and strides."""
    here, there = program("cpu"), program("remora")
    for a, b in zip(here, there, strict=True):
        assert (b.shape, b.stride(), b.storage_offset()) == (a.shape, a.stride(), a.storage_offset())
        assert b.device.type == "remora"
        assert torch.equal(b.detach().cpu(), a.detach())
    return there


IN_PLACE_VIEWS = {
    "t_": lambda x: x.select(2, 0).t_(),
    "transpose_": lambda x: x.transpose_(0, 2),
    "swapaxes_": lambda x: x.swapaxes_(1, 2),
    "unsqueeze_": lambda x: x.unsqueeze_(1),
    "squeeze_": lambda x: x[:, :1].squeeze_(),
    "squeeze_ of a dimension": lambda x: x[:, :1].squeeze_(1),
    "as_strided_": lambda x: x.as_strided_((2, 3), (5, 2), 1),
}


@pytest.mark.parametrize("name", IN_PLACE_VIEWS)
def test_an_in_place_view_is_the_same_tensor_and_the_same_memory(connected, name):
    def program(device):
        x = torch.arange(24.0, device=device).view(2, 3, 4)
        kept = x.detach()
        view = IN_PLACE_VIEWS[name](x)
        view.mul_(2)
        return view, kept, x + 0

    both(program)


def test_in_place_views_have_gradients(connected):
    def program(device):
        x = torch.arange(6.0, device=device).requires_grad_()
        y = x.view(2, 3) * 2
        assert y.t_() is y
        y.unsqueeze_(0).mul_(torch.arange(6.0, device=device).view(3, 2))
        y.square().sum().backward()
        return x.grad, y.detach()

    both(program)


def test_a_tensor_grows_and_shrinks_with_all_that_share_its_memory(connected):
    def program(device):
        x = torch.arange(6.0, device=device)
        tail = x[4:]
        x.resize_(2, 2)
        x.resize_(10)
        x[6:] = 7
        tail.fill_(9)
        y = torch.arange(4, device=device).resize_as_(x)
        y[4:] = 1
        return x, tail, y

    both(program)


def test_resizing_keeps_a_memory_format(connected):
    def program(device):
        x = torch.zeros(8, device=device)
        return (x.resize_(1, 2, 2, 2, memory_format=torch.channels_last),)

    both(program)


def test_set_takes_over_another_tensors_memory(connected):
    def program(device):
        x, y = torch.zeros(2, device=device), torch.arange(6.0, device=device).view(2, 3)
        x.set_(y)
        x[0] = 5
        empty = torch.ones(3, device=device)
        empty.set_()
        return x, y, empty

    both(program)


@pytest.mark.parametrize(
    "call",
    [
        lambda x, out: torch.add(x, 1, out=out),
        lambda x, out: torch.matmul(x, x.t(), out=out),
        lambda x, out: torch.nonzero(x > 2, out=out.long()),
        lambda x, out: torch.masked_select(x, x > 2, out=out),
        lambda x, out: torch.cat([x, x], 1, out=out),
        lambda x, out: torch.diff(x, out=out),
        lambda x, out: torch.linalg.inv(x[:, :2] + torch.eye(2, device=x.device), out=out),
        lambda x, out: torch.linalg.matrix_rank(x, out=out.long()),
        lambda x, out: torch.linalg.qr(x, out=(out, out.clone()))[0],
        lambda x, out: torch.max(x, 1, out=(out, out.long()))[0],
    ],
    ids=["add", "matmul", "nonzero", "masked_select", "cat", "diff", "inv", "matrix_rank", "qr", "max"],
)
@pytest.mark.parametrize("numel", [0, 100])
def test_out_takes_the_shape_of_the_result(connected, call, numel):
    def program(device):
        x, out = torch.arange(6.0, device=device).view(2, 3), torch.zeros(numel, device=device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a tensor with elements was resized
            result = call(x, out)
        return (result, out)

    both(program)


def test_what_was_uploaded_in_bulk_cannot_grow(connected):
    x = torch.zeros(1 << 18).to("remora")
    with pytest.raises(RemoraError, match=r"make it with \.clone\(\) first"):
        x.resize_(1 << 19).cpu()
    torch.zeros(1, device="remora").cpu()


def test_a_tensor_that_grew_is_saved_whole_and_shares_its_memory(connected, tmp_path):
    results = []
    for device in ("cpu", "remora"):
        x = torch.arange(3.0, device=device)
        held, first = x.detach(), x[:1]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x.resize_(2, 3).mul_(2)[1] = 7
        turned = x.detach().t_()
        assert turned.untyped_storage()._cdata == x.untyped_storage()._cdata == first.untyped_storage()._cdata
        torch.save([x, held, turned], tmp_path / "tensors")
        loaded = torch.load(tmp_path / "tensors", map_location=device)
        loaded[0][0, 0] = 9
        results.append([t.tolist() for t in (*loaded, first)] + [x.untyped_storage().nbytes()])
    assert results[0] == results[1]


def test_set_to_a_storage_of_the_device_shares_it(connected):
    x, other = torch.zeros(2, device="remora"), torch.arange(3.0, device="remora")
    before = x[:1]
    assert x.set_(other.untyped_storage(), 1, (2,), (1,)) is x
    x.add_(5)
    assert (x.tolist(), other.tolist(), before.tolist()) == ([6, 7], [0, 6, 7], [0])


def test_grown_memory_is_counted(connected):
    held = torch.zeros(4, device="remora")
    with pytest.raises(MemoryError):
        held.resize_(3 << 28).cpu()  # 3 GiB of 2


def test_conjugates_are_views(connected):
    def program(device):
        x = torch.complex(torch.arange(3.0, device=device), torch.ones(3, device=device))
        y = x.conj()
        assert y.is_conj()
        z = y.resolve_conj()
        assert not z.is_conj()
        y.mul_(1j)
        z.add_(1)
        return x, y, z, torch.view_as_real(z), x.conj().imag

    both(program)


def test_what_has_no_elements_is_made_there(connected):
    def program(device):
        empty = torch.tensor([], device=device)
        grown = torch.cat([empty, torch.arange(3.0, device=device)])
        wide = torch.zeros(2, 0, dtype=torch.int16).to(device)
        resized = torch.tensor([], device=device).resize_(2).fill_(1)
        return empty, grown, wide, resized

    both(program)
    tensor = torch.tensor([], device="remora")
    assert not tensor._value.uploaded
