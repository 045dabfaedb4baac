"""Changes to modules are made when these are loaded, also by a module that asks while it is being loaded."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from remora.device import late


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes and imports a module of a name that nobody else has."""

    def load(name: str, source: str):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(tmp_path)
    yield load
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)
        late._changes.pop(path.stem, None)


def _change(module) -> None:
    module.value += 1


def test_now_if_it_is_loaded_else_as_soon_as_it_is(module) -> None:
    loaded = module("late_loaded", "value = 1")
    late.when_loaded("late_loaded", _change)
    assert loaded.value == 2
    late.when_loaded("late_to_come", _change)
    assert late.waits("late_to_come")
    assert module("late_to_come", "value = 1").value == 2
    assert not late.waits("late_to_come")


def test_a_module_that_is_being_loaded_is_changed_behind_its_end(module) -> None:
    half = module(
        "late_half",
        "from remora.device import late\n"
        "late.when_loaded('late_half', lambda module: setattr(module, 'value', module.value + 1))\n"
        "assert late.waits('late_half')\n"
        "value = 1\n",
    )
    assert half.value == 1
    module("late_next", "")  # any other import
    assert half.value == 2
    assert not late.waits("late_half")
