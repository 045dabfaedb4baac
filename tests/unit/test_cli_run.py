"""`remora run`: the script's arguments, exit code and traceback are its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, os, sys
told = {name: os.environ.get(name) for name in ("REMORA_URL", "REMORA_TOKEN", "REMORA_PLACEMENT")}
print(json.dumps([sys.argv, __name__, sys.path[0], "remora" in sys.modules, told]))
if "--boom" in sys.argv:
    1 / 0
if "--code" in sys.argv:
    sys.exit(7)
if "--words" in sys.argv:
    sys.exit("bye")
if "--interrupt" in sys.argv:
    raise KeyboardInterrupt
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def _remora(*args: str) -> subprocess.CompletedProcess[str]:
    code = "from remora.cli.main import main; main()"
    return subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)


def test_arguments_behind_the_script_are_the_scripts(script: Path) -> None:
    done = _remora(
        "run", "--url", "http://a:1", "--token", "t", str(script), "--help", "--url", "b", "--", "-x"
    )
    argv, name, folder, loaded, told = json.loads(done.stdout)
    assert argv == [str(script), "--help", "--url", "b", "--", "-x"]
    assert (name, folder, loaded) == ("__main__", str(script.parent), True)
    assert told == {"REMORA_URL": "http://a:1", "REMORA_TOKEN": "t", "REMORA_PLACEMENT": None}
    assert done.returncode == 0


def test_a_placement_is_for_whatever_session_the_script_opens(script: Path) -> None:
    done = _remora("run", "--url", "http://a:1,http://b:1", "--placement", "split", str(script))
    *_, told = json.loads(done.stdout)
    assert told == {"REMORA_URL": "http://a:1,http://b:1", "REMORA_TOKEN": None, "REMORA_PLACEMENT": "split"}


def test_a_placement_that_does_not_exist_is_one_line(script: Path) -> None:
    done = _remora("run", "--placement", "best", str(script))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("remora run: no placement 'best'; there are semantic, ")


@pytest.mark.parametrize("url", ["gpu-box:8470", "http://a:1,ftp://b"])
def test_a_url_that_cannot_be_one_is_a_line_before_the_script_runs(script: Path, url: str) -> None:
    done = _remora("run", "--url", url, str(script))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"remora run: '{url.rpartition(',')[2]}' has ")
    assert "looks like http://10.0.0.7:8470" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("argument", "code", "stderr"), [("--code", 7, ""), ("--words", 1, "bye\n"), ("--nothing", 0, "")]
)
def test_exit_code_is_the_scripts(script: Path, argument: str, code: int, stderr: str) -> None:
    done = _remora("run", str(script), argument)
    assert (done.returncode, done.stderr) == (code, stderr)


def test_traceback_is_the_one_python_prints(script: Path) -> None:
    done = _remora("run", str(script), "--boom")
    plain = subprocess.run([sys.executable, str(script), "--boom"], capture_output=True, text=True)
    assert done.stderr == plain.stderr
    assert "line 6" in done.stderr
    assert done.returncode == plain.returncode == 1


def test_syntax_error_is_the_one_python_prints(tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text("x = (\n")
    plain = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert _remora("run", str(path)).stderr.splitlines()[-3:] == plain.stderr.splitlines()[-3:]


def test_interrupt_ends_with_130(script: Path) -> None:
    done = _remora("run", str(script), "--interrupt")
    assert done.returncode == 130
    assert done.stderr.splitlines()[-1] == "KeyboardInterrupt"


def test_missing_script_is_one_line() -> None:
    done = _remora("run", f"{os.sep}nowhere{os.sep}train.py")
    assert done.returncode == 2
    assert done.stderr == "remora run: there is no file '/nowhere/train.py'\n"
