"""torch.save, torch.load, pickle, copy and safetensors: as with any device."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from remora.errors import NotSupported


def _tensors(device: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    base = torch.randn(4, 3)
    moved = base.to(device)
    return {
        "base": moved,
        "row": moved[1],
        "turned": moved.t(),
        "detached": moved.detach()[2:],
        "parameter": nn.Parameter(moved * 2),
        "integers": torch.arange(3).to(device),
        "half": moved.half(),
        "float8": moved.to(torch.float8_e4m3fn),
        "uint16": torch.arange(3).to(torch.uint16).to(device),
        "conjugated": torch.complex(base, base).to(device).conj(),
        "number": torch.tensor(3.5).to(device),
        "mask": torch.tensor([True, False]).to(device),
        "empty": torch.empty(0, 3).to(device),
        "channels_last": torch.randn(1, 2, 3, 4).to(memory_format=torch.channels_last).to(device),
        "expanded": torch.ones(1).to(device).expand(3),
        "leaf": torch.ones(2).to(device).requires_grad_(),
    }


def _saved(item: Any, **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(item, file, **options)
    file.seek(0)
    return file


def _check(got: dict[str, torch.Tensor], device: str) -> None:
    for name, expected in _tensors("cpu").items():
        tensor = got[name]
        assert str(tensor.device) == device, name
        assert torch.equal(
            tensor.detach().cpu().to(expected.dtype).double() if not expected.is_complex() else tensor.cpu(),
            expected.detach().double() if not expected.is_complex() else expected,
        ), name
        assert (tensor.dtype, tensor.shape, tensor.stride()) == (
            expected.dtype,
            expected.shape,
            expected.stride(),
        )
        assert tensor.requires_grad == expected.requires_grad, name
        assert isinstance(tensor, nn.Parameter) == (name == "parameter")


def _check_sharing(got: dict[str, torch.Tensor]) -> None:
    got["base"][1, 0] = 7
    got["detached"].zero_()
    assert got["row"][0].item() == got["turned"][0, 1].item() == 7
    assert got["base"][2:].abs().sum().item() == got["turned"][:, 2:].abs().sum().item() == 0
    assert got["half"][2:].abs().sum().item() > 0


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize(
    ("place", "device"),
    [
        (None, "remora:0"),
        ("remora", "remora:0"),
        (torch.device("cpu"), "cpu"),
        ({"remora:0": "cpu"}, "cpu"),
        (lambda storage, location: storage, "cpu"),
        (lambda storage, location: storage.to(device="remora:0"), "remora:0"),
        (lambda storage, location: storage.remora(), "remora:0"),
    ],
)
def test_what_is_saved_loads_to_its_place(
    connected: ModuleType, place: Any, device: str, new_format: bool
) -> None:
    file = _saved(_tensors("remora"), _use_new_zipfile_serialization=new_format)
    got = torch.load(file, map_location=place)
    _check(got, device)
    _check_sharing(got)


@pytest.mark.parametrize("place", ["remora", "remora:0", {"cpu": "remora"}])
def test_what_the_cpu_saved_loads_to_remora(connected: ModuleType, place: Any, tmp_path: Path) -> None:
    torch.save(_tensors("cpu"), tmp_path / "file")
    for memory_mapped in (False, True):
        before = connected.stats()
        got = torch.load(tmp_path / "file", map_location=place, mmap=memory_mapped)
        assert (connected.stats() - before).round_trips == 0
        _check(got, "remora:0")
        _check_sharing(got)


def test_a_place_that_does_not_exist_is_an_error(connected: ModuleType) -> None:
    with pytest.raises(RuntimeError, match="remora:3 does not exist"):
        torch.load(_saved(torch.ones(2)), map_location="remora:3")


def test_a_file_loads_where_remora_is_not(connected: ModuleType, tmp_path: Path) -> None:
    torch.save({**_tensors("remora"), "model": nn.Linear(2, 2).to("remora").state_dict()}, tmp_path / "file")
    code = f"""
import torch
try:
    torch.load({str(tmp_path / "file")!r})
except RuntimeError as error:
    print(error)
got = torch.load({str(tmp_path / "file")!r}, map_location="cpu")
print(sorted({{str(t.device) for t in got.values() if hasattr(t, "device")}}))
import sys; print("remora" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *said, devices, imported = done.stdout.splitlines()
    assert "remora:0" in said[0]
    assert (devices, imported) == ("['cpu']", "False")


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 7, bias=False))
    model[3].weight = model[0].weight
    return model.to("remora")


def _trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    model = _model()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.arange(5).to("remora")).square().sum().backward()
    optimizer.step()
    return model, optimizer


def _same(first: Any, second: Any) -> bool:
    pairs = zip(first.state_dict().items(), second.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x.cpu(), y.cpu()) for (a, x), (b, y) in pairs)


def test_models_and_optimizers_go_round(connected: ModuleType) -> None:
    model, optimizer = _trained()
    again = pickle.loads(pickle.dumps(model))
    local = torch.load(_saved(model), map_location="cpu", weights_only=False)
    for got, device in ((again, "remora:0"), (local, "cpu"), (copy.deepcopy(model), "remora:0")):
        assert _same(got, model)
        assert got[3].weight is got[0].weight
        assert {str(p.device) for p in got.parameters()} == {device}
        assert all(isinstance(p, nn.Parameter) for p in got.parameters())
    state = torch.load(_saved(optimizer.state_dict()))
    other = torch.optim.Adam(again.parameters())
    other.load_state_dict(state)
    for each, of in ((optimizer, model), (other, again)):
        each.zero_grad()
        of(torch.arange(5).to("remora")).square().sum().backward()
        each.step()
    assert _same(again, model)
    kept = pickle.loads(pickle.dumps(optimizer))
    assert {str(v.device) for s in kept.state.values() for n, v in s.items() if n != "step"} == {"remora:0"}


def test_copies(connected: ModuleType) -> None:
    tensors = _tensors("remora")
    shallow = copy.copy(tensors["base"])
    shallow[0, 0] = 5
    assert tensors["base"][0, 0].item() == 5
    deep = copy.deepcopy(_tensors("remora"))
    _check(deep, "remora:0")
    _check_sharing(deep)
    leaf = torch.ones(2, device="remora", requires_grad=True)
    leaf.grad = torch.full((2,), 3.0, device="remora")
    leaf.note = ["kept"]
    deeper = copy.deepcopy(leaf)
    assert (deeper.grad.tolist(), deeper.note, deeper.grad is leaf.grad) == ([3, 3], ["kept"], False)
    noted = torch.load(_saved(leaf))
    assert (noted.note, str(noted.device), noted.requires_grad) == (["kept"], "remora:0", True)


def test_a_tensor_pickled_alone_comes_back_to_the_device(connected: ModuleType) -> None:
    for name, tensor in _tensors("remora").items():
        got = pickle.loads(pickle.dumps(tensor))
        assert str(got.device) == "remora:0", name
        assert got.cpu().tolist() == tensor.cpu().tolist(), name


def test_safetensors_both_ways(connected: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file, load_model, save_file, save_model

    path = tmp_path / "model.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
    save_file({name: tensor.to("remora") for name, tensor in tensors.items()}, path)
    for device, shown in (("cpu", "cpu"), ("remora", "remora:0")):
        got = load_file(path, device=device)
        assert {str(t.device) for t in got.values()} == {shown}
        assert all(torch.equal(got[name].cpu(), tensor) for name, tensor in tensors.items())
    base = torch.ones(2, 2, device="remora")
    with pytest.raises(RuntimeError, match="share memory"):
        save_file({"a": base, "b": base}, path)
    model, _ = _trained()
    save_model(model, str(path))
    assert set(load_file(path)) == set(model.state_dict()) - {"3.weight"}  # tied, and saved once
    other = _model()
    assert load_model(other, str(path)) == (set(), [])
    assert _same(other, model)


def test_storages_of_the_device_refuse_what_they_cannot_do(connected: ModuleType) -> None:
    storage = torch.ones(2, device="remora").untyped_storage()
    with pytest.raises(NotSupported, match=r"fill_\(\) of a storage"):
        storage.fill_(0)
    local = storage.cpu()
    assert (local.device.type, local.tolist()) == ("cpu", torch.ones(2).untyped_storage().tolist())


def _wide() -> nn.Module:
    return nn.Sequential(*[nn.Linear(8, 8) for _ in range(10)]).to("remora").apply(_doubled)


def _doubled(module: nn.Module) -> None:
    for parameter in module.parameters(recurse=False):
        parameter.data.mul_(2)


def test_a_model_leaves_in_few_round_trips(connected: ModuleType, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    def spent(leave: Any, model: nn.Module) -> int:
        before = connected.stats()
        leave(model)
        return (connected.stats() - before).round_trips

    model = _wide()
    expected = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    assert spent(lambda m: torch.save(m.state_dict(), tmp_path / "model.pt"), model) == 1
    assert spent(lambda m: save_file(m.state_dict(), tmp_path / "model.safetensors"), model) == 1
    assert spent(lambda m: m.cpu(), model) == 2  # the first one tells where they go
    for got in (
        torch.load(tmp_path / "model.pt", map_location="cpu"),
        load_file(tmp_path / "model.safetensors"),
        model.state_dict(),
    ):
        assert all(torch.equal(got[name], tensor) for name, tensor in expected.items())


def test_what_came_early_is_not_used_behind_a_write(connected: ModuleType) -> None:
    first, second = (torch.ones(4, device="remora") + 1 for _ in range(2))
    storages = [tensor.__reduce_ex__(2)[1][0]._untyped_storage for tensor in (first, second)]
    before = connected.stats()
    one = torch.empty(0).set_(storages[0].cpu())
    second.add_(5)
    two = torch.empty(0).set_(storages[1].cpu())
    assert (one.tolist(), two.tolist()) == ([2] * 4, [7] * 4)
    assert (connected.stats() - before).round_trips == 2
