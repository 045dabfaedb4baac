"""`remora explain`: the script runs as it would, then the explanation; the exit code is the script's."""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import remora
from remora.cli.main import app
from remora.errors import UsageError
from remora.plan.explain import Executor, Explanation, from_json

ALIVE: weakref.WeakSet[object] = weakref.WeakSet()
TREE = Explanation("semantic", (Executor("http://10.0.0.2:8470", "cpu"),))


@pytest.fixture
def explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs `remora explain` on a script with these lines; what would be explained is TREE."""
    monkeypatch.setattr(remora, "explain", lambda: TREE, raising=False)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("REMORA_AUTOLOAD", "1")
    monkeypatch.setenv("REMORA_PLACEMENT", "")  # the command sets it
    script = tmp_path / "script.py"

    def run(text: str, *options: str, after: tuple[str, ...] = ()) -> Result:
        script.write_text(text)
        return CliRunner().invoke(app, ["explain", *options, str(script), *after])

    return run


def test_the_script_runs_and_is_explained(explained) -> None:
    result = explained("import sys; print(sys.argv[1:])", after=("--json", "x"))
    assert result.exit_code == 0, result.output
    assert result.stdout == "['--json', 'x']\n"  # behind its name, all belongs to the script
    assert result.stderr == str(TREE)


def test_what_the_script_made_still_lives_when_it_is_explained(
    explained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remora, "explain", lambda: print(len(ALIVE)) or TREE, raising=False)
    text = "class Thing: pass\nthing = Thing()\n"
    text += f"import sys; sys.modules[{__name__!r}].ALIVE.add(thing)\n"
    assert explained(text).stdout == "1\n"
    assert explained(text + "1 / 0\n").stdout.endswith("1\n")


@pytest.mark.parametrize(
    ("options", "before", "chosen"),
    [((), None, "semantic"), ((), "blind", "blind"), (("--placement", "split"), "blind", "split")],
)
def test_sessions_are_placed(
    explained, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], before: str | None, chosen: str
) -> None:
    monkeypatch.setenv("REMORA_PLACEMENT", before or "")
    result = explained("import os; print(os.environ['REMORA_PLACEMENT'])", *options)
    assert result.stdout == f"{chosen}\n"


def test_json_is_the_last_line_and_html_a_file(explained, tmp_path: Path) -> None:
    page = tmp_path / "plan.html"
    result = explained("print('mine')", "--json", "--html", str(page))
    mine, last = result.stdout.splitlines()
    assert mine == "mine"
    assert from_json(last) == TREE
    assert json.loads(last)["policy"] == "semantic"
    assert result.stderr == ""
    assert page.read_text() == TREE.to_html()


@pytest.mark.parametrize(("text", "code"), [("import sys; sys.exit(7)", 7), ("1 / 0", 1)])
def test_a_script_that_fails_is_explained_and_keeps_its_exit_code(explained, text: str, code: int) -> None:
    result = explained(text)
    assert result.exit_code == code
    assert str(TREE) in result.stderr


def test_without_a_session_there_is_one_line(explained, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise UsageError("there is no session; nothing was placed")

    monkeypatch.setattr(remora, "explain", refuse, raising=False)
    result = explained("print('mine')")
    assert result.exit_code == 1
    assert result.stderr == "remora explain: there is no session; nothing was placed\n"
    assert explained("import sys; sys.exit(7)").exit_code == 7


def test_a_page_that_cannot_be_written_is_one_line(explained, tmp_path: Path) -> None:
    result = explained("print('mine')", "--html", str(tmp_path / "no" / "plan.html"))
    assert result.exit_code == 1
    assert "remora explain: [Errno 2] No such file" in result.stderr


def test_a_script_that_is_not_there_is_refused(explained) -> None:
    result = CliRunner().invoke(app, ["explain", "absent.py"])
    assert result.exit_code == 2
    assert "there is no file 'absent.py'" in result.stderr
