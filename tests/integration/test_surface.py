"""What Python sees of a remora tensor: the same as of any tensor of a device that is not the CPU."""

from __future__ import annotations

import copy
import ctypes
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from remora.errors import NotSupported


def _outcome(program: Callable[[str], Any], device: str) -> Any:
    try:
        return program(device)
    except Exception as error:
        return type(error).__name__, str(error)


def _with_gradient(device: str) -> torch.Tensor:
    return torch.arange(3.0, device=device).requires_grad_() * 2


SHOWN: dict[str, Callable[[str], torch.Tensor]] = {
    "integers": lambda d: torch.arange(3, device=d),
    "number": lambda d: torch.tensor(3.5, device=d),
    "empty": lambda d: torch.ones(0, 3, device=d),
    "empty integers": lambda d: torch.ones(0, dtype=torch.int64, device=d),
    "half": lambda d: torch.ones(3, dtype=torch.float16, device=d),
    "long half": lambda d: torch.linspace(0, 1, 24, device=d).half(),
    "bfloat16": lambda d: torch.tensor([1.5, 2], dtype=torch.bfloat16, device=d),
    "float8": lambda d: torch.tensor([1.5, 2], device=d).to(torch.float8_e4m3fn),
    "complex": lambda d: torch.ones(2, dtype=torch.complex64, device=d),
    "extremes": lambda d: torch.tensor([1.5, float("nan"), float("inf"), 1e10], device=d),
    "leaf": lambda d: torch.ones(2, device=d, requires_grad=True),
    "computed": _with_gradient,
    "view": lambda d: _with_gradient(d).view(3, 1),
    "parameter": lambda d: nn.Parameter(torch.ones(2, device=d)),
    "large": lambda d: torch.arange(5000, device=d).reshape(50, 100),
    "large, one dimension": lambda d: torch.arange(1001.0, device=d) / 7,
    "large, three dimensions": lambda d: torch.arange(9600.0, device=d).reshape(8, 6, 200),
    "large, half, with gradient": lambda d: torch.ones(
        40, 30, dtype=torch.float16, device=d
    ).requires_grad_(),
    "large with seven columns": lambda d: torch.arange(7000, device=d).reshape(1000, 7),
}


@pytest.mark.parametrize("name", SHOWN)
def test_repr_is_that_of_the_cpu_with_the_device(connected: ModuleType, name: str) -> None:
    local, ours = repr(SHOWN[name]("cpu")), repr(SHOWN[name]("remora"))
    assert ours.count("device='remora:0'") == 1
    without = re.sub(r",\s*device='remora:0'", "", ours)
    assert "".join(without.split()) == "".join(local.split())  # the longer text may break at another place
    assert f"{SHOWN[name]('remora')}" == (ours if name != "number" else "3.5")


def test_a_large_tensor_downloads_only_what_it_prints(connected: ModuleType) -> None:
    large = torch.zeros(1000, 1000, device="remora")
    before = connected.stats()
    text = repr(large)
    spent = connected.stats() - before
    assert text.replace(", device='remora:0'", "") == repr(torch.zeros(1000, 1000))
    assert spent.bytes_received < 5000
    assert spent.round_trips == 1


PROGRAMS: dict[str, Callable[[str], Any]] = {
    "item": lambda d: torch.tensor(3.5, device=d).item(),
    "item of two": lambda d: torch.tensor([3.5, 2], device=d).item(),
    "bool of two": lambda d: bool(torch.tensor([1, 2], device=d)),
    "bool of none": lambda d: bool(torch.ones(0, device=d)),
    "len": lambda d: len(torch.ones(3, 2, device=d)),
    "len of a number": lambda d: len(torch.tensor(1, device=d)),
    "iteration": lambda d: [x.item() for x in torch.arange(3, device=d)],
    "iteration over a number": lambda d: list(torch.tensor(1, device=d)),
    "in": lambda d: (2 in torch.arange(3, device=d), 7 in torch.arange(3, device=d)),
    "text in": lambda d: "a" in torch.arange(3, device=d),
    "as index": lambda d: "abc"[torch.tensor(1, device=d)],
    "float as index": lambda d: "abc"[torch.tensor(1.0, device=d)],
    "numbers": lambda d: (int(torch.tensor(3.7, device=d)), complex(torch.tensor(3, device=d))),
    "format": lambda d: f"{torch.tensor(3.14159, device=d):.2f}",
    "format of two": lambda d: f"{torch.ones(2, device=d):>50}",
    "tolist": lambda d: torch.ones(2, 2, dtype=torch.bfloat16, device=d).tolist(),
    "numpy index": lambda d: torch.arange(5, device=d)[np.array([1, 2])].tolist(),
    "numpy number": lambda d: (np.float64(2) * torch.ones(2, device=d)).tolist(),
    "tensor of tensors": lambda d: torch.tensor([torch.tensor(1.0, device=d), 2], device=d).tolist(),
    "as_tensor is the same": lambda d: (lambda t: torch.as_tensor(t, device=d) is t)(torch.ones(2, device=d)),
    "as_tensor of numpy": lambda d: torch.as_tensor(np.arange(2.0), device=d).tolist(),
    "from_numpy": lambda d: torch.from_numpy(np.arange(3)).to(d).add_(1).tolist(),
    "frombuffer": lambda d: torch.frombuffer(bytearray(b"ab"), dtype=torch.uint8).to(d).tolist(),
    "new_tensor": lambda d: torch.ones(2, device=d).new_tensor([1, 2]).tolist(),
    "new_full": lambda d: torch.ones(2, device=d).new_full((2,), 3.0).tolist(),
    "new": lambda d: torch.ones(2, device=d).new([3, 4.0]).tolist(),
    "type": lambda d: torch.ones(2, device=d).type(torch.float16).dtype,
    "type of the cpu": lambda d: str(torch.ones(2, device=d).type("torch.LongTensor")),
    "size of an element": lambda d: (lambda t: (t.element_size(), t.nbytes, t.itemsize))(
        torch.ones(2, device=d)
    ),
    "requires_grad_ of integers": lambda d: torch.ones(2, dtype=torch.int32, device=d).requires_grad_(),
    "wrong gradient": lambda d: setattr(torch.ones(2, device=d), "grad", torch.ones(3, device=d)),
    "versions": lambda d: (lambda t: (t.add_(1), t._version)[1])(torch.ones(2, device=d)),
    "index out of range": lambda d: torch.ones(2, device=d)[5],
    "wrong shapes": lambda d: torch.ones(2, 3, device=d) @ torch.ones(2, 3, device=d),
    "wrong view": lambda d: torch.ones(2, 3, device=d).view(4),
    "wrong dim": lambda d: torch.ones(2, 3, device=d).sum(7),
    "not broadcastable": lambda d: torch.ones(2, device=d) + torch.ones(3, device=d),
    "cat of shapes": lambda d: torch.cat([torch.ones(2, 1, device=d), torch.ones(3, 2, device=d)]),
    "unknown argument": lambda d: torch.ones(2, device=d).sum(nonsense=1),
    "in-place on a leaf": lambda d: torch.ones(2, device=d, requires_grad=True).add_(1),
    "deepcopy of a result": lambda d: copy.deepcopy(_with_gradient(d)),
    "set_ to another dtype": lambda d: torch.ones(2, device=d).set_(
        torch.ones(2, dtype=torch.int32, device=d)
    ),
}
WORDED_OTHERWISE = {"set_ to another dtype"}  # the error's type is the same


@pytest.mark.parametrize("name", PROGRAMS)
def test_values_and_errors_are_those_of_the_cpu(connected: ModuleType, name: str) -> None:
    expected, got = _outcome(PROGRAMS[name], "cpu"), _outcome(PROGRAMS[name], "remora")
    if name in WORDED_OTHERWISE:
        expected, got = expected[0], got[0]
    assert got == expected
    assert torch.ones(2, device="remora").sum().item() == 2  # the session is as before


def test_what_needs_memory_here_is_refused(connected: ModuleType) -> None:
    tensor = torch.ones(2, device="remora")
    for needs in (
        tensor.data_ptr,
        lambda: ctypes.c_void_p(tensor.data_ptr()),
        lambda: tensor.untyped_storage().data_ptr(),
        lambda: tensor.untyped_storage().resize_(0),
        lambda: torch.from_dlpack(tensor),
        lambda: torch.utils.dlpack.to_dlpack(tensor),
    ):
        with pytest.raises(NotSupported, match="executor"):
            needs()
    assert not hasattr(tensor, "__cuda_array_interface__")
    for needs in (tensor.numpy, lambda: np.asarray(tensor), lambda: np.ones(2)[tensor]):
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            needs()
    assert tensor.numpy(force=True).tolist() == [1, 1]


def test_data_takes_over_shape_and_dtype(connected: ModuleType) -> None:
    def program(device: str) -> list[Any]:
        tensor = torch.ones(4, device=device)
        view = tensor.view(2, 2)
        tensor.data = torch.zeros(3, dtype=torch.int64, device=device)
        tensor.add_(5)
        weight = nn.Parameter(torch.ones(2, device=device))
        twice = weight * 2
        weight.data.add_(1)  # behind autograd's back, as PyTorch allows
        weight.data.mul_(torch.tensor(3.0, device=device))
        twice.sum().backward()
        weight.data = weight.data[:1]
        return [tensor.tolist(), tensor.dtype, view.tolist(), weight.tolist(), weight.grad, weight._version]

    *expected, gradient, version = program("cpu")
    *got, our_gradient, our_version = program("remora")
    assert got == expected
    assert (our_gradient.tolist(), our_version) == (gradient.tolist(), version)


def test_data_refuses_what_it_cannot_take_over(connected: ModuleType) -> None:
    tensor = torch.ones(2, device="remora")
    with pytest.raises(NotSupported, match="move it first"):
        tensor.data = torch.ones(2)
    with pytest.raises(TypeError, match="has to be a tensor"):
        tensor.data = 3
    weight = nn.Parameter(torch.ones(2, device="remora"))
    with pytest.raises(RuntimeError, match="floating point"):
        weight.data = torch.ones(2, dtype=torch.int64, device="remora")
    assert tensor.tolist() == weight.tolist() == [1, 1]


def test_storages_know_who_shares_memory(connected: ModuleType) -> None:
    def shares(device: str) -> list[bool]:
        base = torch.arange(6.0, device=device).reshape(2, 3).clone()
        views = [base[0], base.t(), base.detach()[1], base.view(-1)[2:].detach().view(2, 2), base.data[0]]
        others = [base.clone(), base + 1, base.to(torch.float64), torch.ones(6, device=device)]
        before = base.view(-1)
        key = before.untyped_storage()._cdata
        kept = [t.untyped_storage()._cdata == key for t in (*views, *others)]
        base.data = others[0]
        after = [
            t.untyped_storage()._cdata == base.untyped_storage()._cdata for t in (before, base[0], others[0])
        ]
        return [*kept, *after]

    assert shares("remora") == shares("cpu")


def test_storages_have_the_bytes(connected: ModuleType) -> None:
    def facts(device: str) -> list[Any]:
        tensor = torch.arange(6.0, device=device).reshape(2, 3)
        storage = tensor.t().untyped_storage()
        return [
            storage.nbytes(),
            len(storage),
            storage.tolist(),
            storage[7],
            storage.cpu().tolist(),
            tensor[1].storage_offset(),
            tensor[:, 1].untyped_storage().nbytes(),
            tensor.is_set_to(tensor.view(2, 3)),
            tensor.is_set_to(tensor.clone()),
        ]

    assert facts("remora") == facts("cpu")


def test_set_shares_memory(connected: ModuleType) -> None:
    def program(device: str) -> list[Any]:
        base = torch.arange(6.0, device=device)
        taker = torch.ones(2, device=device)
        seen = [taker.set_(base.view(2, 3)).tolist()]
        taker.set_(base, 2, (2,), (1,))
        taker.zero_()
        seen += [base.tolist(), taker.set_(base.untyped_storage(), 1, (2, 2), (1, 3)).tolist()]
        return [*seen, taker.set_().tolist(), list(taker.shape), taker._version]

    assert program("remora") == program("cpu")
    with pytest.raises(RuntimeError, match="devices must match"):
        torch.ones(2, device="remora").set_(torch.ones(2))
    with pytest.raises(RuntimeError, match="out of bounds"):
        torch.ones(2, device="remora").set_(torch.ones(2, device="remora").untyped_storage(), 1, (2,), (1,))


def test_hooks_and_parameters(connected: ModuleType) -> None:
    seen: list[Any] = []
    tensor = torch.ones(2, device="remora", requires_grad=True)
    tensor.register_hook(lambda gradient: seen.append(gradient.tolist()))
    tensor.register_post_accumulate_grad_hook(lambda t: seen.append(t.grad.tolist()))
    (tensor * 3).sum().backward()
    assert seen == [[3, 3], [3, 3]]
    layer = nn.Linear(2, 2)
    weight = layer.weight
    layer.to("remora").half()
    assert layer.weight is weight
    assert isinstance(weight, nn.Parameter)
    assert weight.is_shared() is torch.ones(2, device="remora").share_memory_().is_shared() is True


class Marked(torch.Tensor):
    """As fastai's and torchvision's: PyTorch's default keeps the class through every op."""


class Counting(torch.Tensor):
    calls: list[str] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.calls.append(func.__name__)
        return super().__torch_function__(func, types, args, kwargs)


def test_subclasses_of_tensor_keep_their_class(connected: ModuleType) -> None:
    def program(device: str) -> list[Any]:
        marked = torch.arange(4.0).as_subclass(Marked).to(device)
        marked.add_(1)
        leaf = torch.ones(2, device=device).as_subclass(Marked).requires_grad_()
        (leaf * 3).sum().backward()
        Counting.calls.clear()
        counted = torch.ones(2, device=device).as_subclass(Counting) + 1
        made = torch.Tensor._make_subclass(Marked, torch.ones(2, device=device), True)
        return [
            [
                type(x).__name__
                for x in (marked, marked[0], marked + torch.ones(4, device=device), marked.cpu(), made)
            ],
            isinstance(marked, Marked),
            marked.tolist(),
            leaf.grad.tolist(),
            (type(counted).__name__, list(Counting.calls)),
            made.requires_grad,
            repr(marked[:2]).replace(", device='remora:0'", ""),
        ]

    assert program("remora") == program("cpu")


def test_lazy_modules_made_on_the_device(connected: ModuleType) -> None:
    layer = nn.LazyLinear(3, device="remora")
    assert layer(torch.ones(2, 4, device="remora")).shape == (2, 3)
    assert str(layer.weight.device) == "remora:0"
    assert isinstance(layer.weight, nn.Parameter)
    assert not nn.parameter.is_lazy(layer.weight)


def test_moves_keep_identity_and_ties(connected: ModuleType) -> None:
    def program(device: str) -> list[Any]:
        first, second = nn.Linear(2, 2), nn.Linear(2, 2)
        second.weight = first.weight
        weight, model = first.weight, nn.Sequential(first, second)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        seen = []
        for convert in (
            lambda m: m.to(device),
            lambda m: m.half(),
            lambda m: m.float().cpu(),
            lambda m: m.to(device),
        ):
            convert(model)
            loss = model.float()(torch.ones(1, 2, device=weight.device)).sum()
            loss.backward()
            optimizer.step()
            seen += [
                first.weight is second.weight is weight,
                isinstance(weight, nn.Parameter),
                weight.grad.dtype,
            ]
        return [*seen, len(list(model.parameters())), type(model.cpu()[0].weight)]

    assert program("remora") == program("cpu")
