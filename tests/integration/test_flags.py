"""PyTorch's process-wide flags: what the program sets holds for its ops on the executor, and for no other session."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from warm_python import run_program

from remora.ops.flags import PRISTINE, current, key_of, write


@pytest.fixture(autouse=True)
def untouched() -> Iterator[None]:
    """Every flag goes back to what it was."""
    before = current()
    yield
    for setter, values in before:
        write(setter, values)


def _attention(device: str) -> torch.Tensor:
    qkv = [torch.rand(1, 2, 300, 16, generator=torch.Generator().manual_seed(n)).to(device) for n in range(3)]
    with torch.no_grad():
        return functional.scaled_dot_product_attention(*qkv).cpu()


def test_the_choice_of_attention_kernels_travels(connected: ModuleType) -> None:
    flash = _attention("cpu")
    with sdpa_kernel(SDPBackend.MATH):
        math = _attention("cpu")
        assert not torch.equal(flash, math)  # or this test could not fail
        assert torch.equal(_attention("remora"), math)
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            assert torch.equal(_attention("remora"), flash)
    assert torch.equal(_attention("remora"), flash)


def test_a_flag_holds_from_its_place_in_the_program_on(connected: ModuleType) -> None:
    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run
    before = connected.stats()
    tiny = torch.tensor([1e-39], device="remora")
    kept = tiny * 2
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    flushed = tiny * 2
    torch.set_flush_denormal(False)
    again = tiny * 2
    assert (connected.stats() - before).round_trips == 0
    assert [bool(t.item()) for t in (kept, flushed, again)] == [True, False, True]


def test_deterministic_algorithms_fill_new_memory_and_refuse(connected: ModuleType) -> None:
    assert torch.empty(3, device="remora").tolist() == [0, 0, 0]
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3, device="remora").isnan().all()
    assert (
        torch.empty(2, dtype=torch.int32, device="remora").tolist()
        == torch.empty(2, dtype=torch.int32).tolist()
    )
    x, at = torch.zeros(3, device="remora"), torch.tensor([0, 0], device="remora")
    with pytest.raises(RuntimeError, match="deterministic"):
        x.put_(at, torch.ones(2, device="remora")).cpu()
    torch.utils.deterministic.fill_uninitialized_memory = False
    assert torch.empty(3, device="remora").tolist() == [0, 0, 0]
    torch.utils.deterministic.fill_uninitialized_memory = True


@contextmanager
def _precision() -> Iterator[None]:
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision("highest")


@contextmanager
def _no_mkldnn() -> Iterator[None]:
    torch.backends.mkldnn.enabled = False  # by flags() PyTorch warns of another flag
    yield
    torch.backends.mkldnn.enabled = True


SETTINGS: dict[str, Callable[[], Any]] = {
    "cudnn": lambda: torch.backends.cudnn.flags(enabled=False, benchmark=True, allow_tf32=False),
    "mkldnn": _no_mkldnn,
    "precision": _precision,
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_executor_has_the_flags_of_the_client(
    connected: ModuleType, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remora.session.session import Session

    told: list[tuple[str, Any]] = []
    original = Session.flag
    monkeypatch.setattr(Session, "flag", lambda *a: (told.append(a[1:]), original(*a)))
    with SETTINGS[setting]():
        here = {key_of(*item): item[1] for item in current()}
        x = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(functional.conv2d(x.to("remora"), x.to("remora")).cpu(), functional.conv2d(x, x))
    said = {key_of(*item): item[1] for item in told}
    assert said
    assert {key for key, values in here.items() if PRISTINE.get(key, values) != values} & set(said)
    torch.remora.synchronize()


def test_another_session_keeps_its_own(connected: ModuleType, executor: Any) -> None:
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1, device="remora").isnan().all()
    code = (
        "import remora, torch\n"
        f"remora.connect({executor.url!r})\n"
        "assert torch.empty(1, device='remora').tolist() == [0]"
    )
    done = run_program(code)
    assert done.returncode == 0, done.stderr
    assert torch.empty(1, device="remora").isnan().all()


def test_what_was_set_before_the_session_holds_in_it(executor: Any) -> None:
    import remora

    torch.use_deterministic_algorithms(True)
    remora.connect(executor.url)
    try:
        assert torch.empty(1, device="remora").isnan().all()
    finally:
        remora.disconnect()


def test_a_flag_that_the_executor_does_not_know_is_named(connected: ModuleType) -> None:
    from remora.device.sink import bound

    assert bound.sink is not None
    for setter, values in (("_set_nothing", (True,)), ("_set_mkldnn_enabled", ("x",)), ("os.system", ("x",))):
        bound.sink.flag(setter, values)
        with pytest.raises(NotImplementedError, match=setter):
            torch.remora.synchronize()
    assert torch.ones(1, device="remora").item() == 1


def test_pytorch_starts_with_what_this_table_says() -> None:
    code = (
        "import torch\n"
        "from remora.ops.flags import PRISTINE, current, key_of\n"
        "print([item for item in current() if PRISTINE.get(key_of(*item), item[1]) != item[1]])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
