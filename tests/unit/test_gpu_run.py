"""Every workload once on a GPU: which parts run, and what is left out is named."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("gpu_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["gpu_run"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    for name in ("gpu_run", "shapes"):
        sys.modules.pop(name, None)


def test_parts_run_in_order_and_what_has_no_time_is_left_out_by_name(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    clock = iter([0.0, 0.0, 45.0, 80.0])
    monkeypatch.setattr(run.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(run, "run_part", lambda part, *_: ran.append(part.name) or {"status": 0})
    monkeypatch.setattr(
        sys, "argv", ["run.py", "--out", str(tmp_path), "--parts", "seed,peers,checks", "--budget-s", "100"]
    )
    assert run.main() == 1
    assert ran == ["seed", "peers"]
    assert json.loads(capsys.readouterr().out.strip().splitlines()[-1]) == {
        "seed": {"status": 0},
        "peers": {"status": 0},
        "checks": {"error": "left out: 20 s were left"},
    }


def test_an_unknown_part_is_refused(
    run: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", "--out", str(tmp_path), "--parts", "seed,chess"])
    with pytest.raises(SystemExit):
        run.main()
    assert "there is no part chess; there is: modes, seed, decode" in capsys.readouterr().err


def test_every_script_that_a_part_starts_is_there(run: Any) -> None:
    assert all((FOLDER / part.script).is_file() for part in run.PARTS if part.script)
    assert all(part.script or part.measure for part in run.PARTS)


def test_the_models_have_the_evaluations_sizes(run: Any) -> None:
    model = run.make("gpt-j", "meta", False)
    sizes = run.Sizes.of(model.config, model.dtype.itemsize, 0)
    assert (sizes.kv_nbytes, sizes.logits_nbytes) == (458_752, 100_800)
    assert 6.0e9 < sum(weight.numel() for weight in model.parameters()) < 6.1e9
