"""A virtual environment for each peer, with pinned versions: all on one Python and one PyTorch, so that ratios compare.

    python benchmarks/peers/environments.py --cache FOLDER [--python PYTHON]

SkyTorch asks for Python 3.12. Both peers build an extension against the PyTorch that is there, so PyTorch comes first
and their own requirements by name. Where only PyTorch's CUDA build is on the index, it is some gigabytes.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TORCH = ("torch==2.13.0", "transformers==5.23.0", "numpy==2.4.6")
# Built against that PyTorch, without what they would bring of their own.
EXTENSIONS = {"base": (), "skytorch": ("skytorch==0.2.0",), "mycelya": ("mycelya-torch==0.1.7",)}
WITH = {
    "base": (  # Remora's own requirements, and torch RPC's: none
        "msgspec==0.22.0",
        "blake3==1.0.11",
        "websockets==17.4",
        "aiohttp==3.14.5",
        "uvloop==0.23.0",
        "typer==0.29.2",
        "rich==15.0.0",
    ),
    "skytorch": (
        "setuptools==84.2.1",
        "wheel==0.48.0",
        "ninja==1.13.2",
        "grpcio==1.85.1",
        "kubernetes==37.0.2",
        "protobuf==7.36.2",
        "aiohttp==3.14.5",
        "pydantic==2.14.3",
        "six==1.17.0",  # imported, and not among its requirements
    ),
    "mycelya": ("setuptools==84.2.1", "wheel==0.48.0", "ninja==1.13.2", "modal==1.6.4", "cloudpickle==3.1.2"),
}
DONE = ".made"  # what is in an environment that is complete


class NoEnvironment(Exception):
    """An environment cannot be made; says what pip or venv said."""


def python_of(name: str, cache: Path) -> Path:
    return cache / name / "bin" / "python"


def make(name: str, cache: Path, python: str) -> Path:
    """The environment's Python; made if it is not there, or was made with other versions.

    Raises:
        NoEnvironment: it cannot be.
    """
    folder, wanted = cache / name, "\n".join((python, *TORCH, *WITH[name], *EXTENSIONS[name]))
    made = folder / DONE
    if made.exists() and made.read_text() == wanted:
        return python_of(name, cache)
    if sys.stderr.isatty() or not folder.exists():
        print(f"making {folder}: some minutes", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    _run([python, "-m", "venv", str(folder)])
    install = [str(python_of(name, cache)), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    _run([*install, TORCH[0]])  # alone and first: left to itself, pip takes the newest
    _run([*install, *TORCH, *WITH[name]])
    if EXTENSIONS[name]:
        _run([*install, "--no-build-isolation", "--no-deps", *EXTENSIONS[name]])
    made.write_text(wanted)
    return python_of(name, cache)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoEnvironment(f"{' '.join(command)}: {done.stderr.strip()[-800:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True, help="folder for the environments")
    parser.add_argument("--python", default="python3.12")
    options = parser.parse_args()
    for name in EXTENSIONS:
        print(make(name, options.cache, options.python))


if __name__ == "__main__":
    main()
