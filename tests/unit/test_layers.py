"""The layer table of docs/DESIGN: a module imports only from below itself, torch only where the table says.

Imports are read from the source, wherever they stand: at the head, in a function, under TYPE_CHECKING,
or spelled as a call of `import_module` with a literal name.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

SRC = Path(__file__).parents[2] / "src"

# From the top. A layer imports from the rows below its own; those of one row do not know each other.
ROWS: list[tuple[str, ...]] = [
    ("",),  # remora/__init__.py: the interface, composed from everything
    ("cli",),
    ("bench",),
    ("sim",),
    ("session",),
    ("pool",),
    ("device",),
    ("capture",),
    ("executor.front", "executor.worker"),
    ("executor.hop",),
    ("executor",),
    ("runahead", "store"),
    ("plan",),
    ("semantics",),
    ("transport",),
    ("wire",),
    ("ops",),
    ("ir",),
    ("config",),
    ("errors",),
]
RANK = {layer: rank for rank, row in enumerate(ROWS) for layer in row}
CLIENT = {"session", "pool", "device", "capture"}
EXECUTOR = {"executor", "executor.front", "executor.worker", "executor.hop"}
MAY_USE_TORCH = {"", "bench", "device", "capture", "executor.worker", "ops"}
MAY_USE_TOP = {"cli", "bench"}  # these two stand above the interface as any user does


class Import(NamedTuple):
    target: str  # "torch.nn", "remora.ir.node", or "remora:name" for `from remora import name`
    line: int


def imports(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every module that the source names in an import, relative ones resolved against `module`."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names):
                for alias in names:
                    yield Import(alias.name, node.lineno)
            case ast.ImportFrom(level=level, module=name, names=names):
                base = _absolute(module, is_package, level, name)
                for alias in names:
                    yield Import(f"{base}:{alias.name}", node.lineno)
            case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]) if _imports_by_call(func):
                yield Import(name, node.lineno)


def _absolute(module: str, is_package: bool, level: int, name: str | None) -> str:
    if level == 0:
        return name or ""
    parts = module.split(".")
    base = parts[: len(parts) - level + is_package]
    return ".".join([*base, *([name] if name else [])])


def _imports_by_call(func: ast.expr) -> bool:
    match func:
        case ast.Name("__import__" | "import_module") | ast.Attribute(attr="import_module"):
            return True
    return False


def layer_of(module: str) -> str:
    """The row's name of `remora.x.y`; '' for the package itself and for what the table does not know."""
    inside = module.split(".")[1:]
    for length in (2, 1):
        if ".".join(inside[:length]) in RANK:
            return ".".join(inside[:length])
    assert not inside, f"{module} is in no layer; give it a row here and in DESIGN"
    return ""


def target_layer(target: str) -> str | None:
    """The layer that an import reaches into, or None outside of remora."""
    base, _, name = target.partition(":")
    if base.split(".")[0] != "remora":
        return None
    joined = f"{base}.{name}" if name else base
    inside = joined.split(".")[1:]
    if base in ("remora", "remora.executor") and name:
        path = SRC.joinpath(*joined.split("."))
        if not (path.exists() or path.with_suffix(".py").exists() or ".".join(inside) in RANK):
            return layer_of(base)  # a name that the package itself holds
    return layer_of(joined)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """What the source of `module` imports and must not, one line each."""
    layer = layer_of(module)
    found = []
    for target, line in imports(source, module, is_package):
        reason = _reason(layer, target)
        if reason:
            found.append(f"{module}:{line}: imports {target.replace(':', '.')}: {reason}")
    return found


def _reason(layer: str, target: str) -> str | None:
    if target.partition(":")[0].split(".")[0] == "torch":
        return None if layer in MAY_USE_TORCH else f"{layer} does without torch"
    below = target_layer(target)
    if below is None or below == layer or target == "remora:__version__":
        return None
    if below == "":
        return None if layer in MAY_USE_TOP else "only cli and bench use the package as its users do"
    if (layer in CLIENT and below in EXECUTOR) or (layer in EXECUTOR and below in CLIENT):
        return "client and executor never import each other"
    if RANK[below] <= RANK[layer]:
        return f"{below} is not below {layer}"
    return None


def modules() -> dict[str, Path]:
    paths = sorted((SRC / "remora").rglob("*.py"))
    names = [
        ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for path in paths
    ]
    return dict(zip(names, paths, strict=True))


@pytest.mark.parametrize("module", modules())
def test_module_imports_only_from_below(module: str) -> None:
    path = modules()[module]
    assert violations(path.read_text(), module, path.name == "__init__.py") == []


BREACHES = [
    ("remora.ir.node", "import remora.wire.messages", "wire is not below ir"),
    ("remora.ir.node", "from remora import wire", "wire is not below ir"),
    ("remora.ir.node", "from ..wire import codec", "wire is not below ir"),
    ("remora.ir.node", "from remora import connect", "only cli and bench"),
    ("remora.ir.node", "def f():\n    import torch", "ir does without torch"),
    ("remora.session.flush", "def f():\n    from torch.nn import Module", "session does without torch"),
    ("remora.session.flush", "from importlib import import_module\nimport_module('torch')", "without torch"),
    (
        "remora.session.flush",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import torch",
        "without",
    ),
    ("remora.cli.run", "import torch", "cli does without torch"),
    ("remora.executor.front.app", "import torch", "executor.front does without torch"),
    ("remora.executor.front.app", "from remora.executor import worker", "not below executor.front"),
    ("remora.executor.front.app", "from ..worker import main", "not below executor.front"),
    ("remora.executor.worker.main", "from remora.executor.front.app import x", "not below executor.worker"),
    ("remora.executor.hop", "from remora.executor.worker import main", "not below executor.hop"),
    ("remora.executor.worker.main", "from remora.capture import recorder", "never import each other"),
    ("remora.device.tensor", "from remora.executor.hop import packet", "never import each other"),
    ("remora.device.tensor", "from remora.session import flush", "session is not below device"),
    ("remora.store.names", "from remora.runahead import predict", "runahead is not below store"),
    ("remora.errors", "import remora.config", "config is not below errors"),
]


@pytest.mark.parametrize(("module", "source", "reason"), BREACHES)
def test_checker_catches_a_breach(module: str, source: str, reason: str) -> None:
    found = violations(source, module)
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("remora.cli.run", "import remora\nfrom remora.executor.front import app"),
        ("remora.wire.codec", "from remora.errors import ProtocolError\nfrom .messages import Run"),
        (
            "remora.executor.front.app",
            "from remora import __version__\nfrom remora.executor.hop import packet",
        ),
        ("remora.executor.worker.main", "import torch\nfrom remora.executor import hop"),
        ("remora.session.flush", "import msgspec\nfrom remora.device import tensor"),
        ("remora.ir.text", "import torchless\nimport json"),
    ],
)
def test_checker_lets_the_allowed_pass(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_unknown_folder_needs_a_row() -> None:
    with pytest.raises(AssertionError, match="give it a row"):
        violations("import json", "remora.helpers.strings")


def test_torchless_layers_run_without_torch() -> None:
    """The sources may be clean and torch still arrive through the package's own __init__."""
    torchless = [
        name
        for name in modules()
        if layer_of(name) not in MAY_USE_TORCH | CLIENT and not name.endswith("__main__")
    ]
    code = f"""
import importlib, sys
for name in {torchless!r}:
    importlib.import_module(name)
    assert "torch" not in sys.modules, name + " brings torch"
"""
    environment = {**os.environ, "REMORA_EXECUTOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
