"""Settings. The only module that reads the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def _text(name: str) -> str | None:
    return os.environ.get(name) or None


def _float(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{name}={text!r} is not a number; give seconds, such as {default}") from None


@dataclass(frozen=True)
class ClientSettings:
    """What a client reads from its environment, once, when it connects."""

    url: str | None = field(default_factory=lambda: _text("REMORA_URL"))
    placement: str | None = field(default_factory=lambda: _text("REMORA_PLACEMENT"))
    passes: str = field(default_factory=lambda: _text("REMORA_PASSES") or "none")
    token: str | None = field(default_factory=lambda: _text("REMORA_TOKEN"))
    ca_file: str | None = field(default_factory=lambda: _text("REMORA_CA"))
    transport: str = field(default_factory=lambda: _text("REMORA_TRANSPORT") or "websocket")
    run_ahead: bool = field(default_factory=lambda: os.environ.get("REMORA_RUN_AHEAD") != "0")
    exact: bool = field(default_factory=lambda: os.environ.get("REMORA_EXACT") != "0")
    record: str | None = field(default_factory=lambda: _text("REMORA_RECORD"))
    connect_timeout_s: float = field(default_factory=lambda: _float("REMORA_CONNECT_TIMEOUT", 2.0))
    grace_s: float = field(default_factory=lambda: _float("REMORA_GRACE", 60.0))


def captures_whole_calls() -> bool:
    """Whether calls of modules that repeat are captured as a whole: not with REMORA_CAPTURE=lazy."""
    chosen = os.environ.get("REMORA_CAPTURE") or "guarded"
    if chosen not in ("lazy", "guarded"):
        raise ValueError(f"REMORA_CAPTURE={chosen!r}: use `guarded`, which is the default, or `lazy`")
    return chosen == "guarded"


def is_executor() -> bool:
    """Whether this process belongs to an executor, where the device must never be registered."""
    return bool(os.environ.get("REMORA_EXECUTOR"))


def is_asked_for() -> bool:
    """Whether the environment asks for the device, whatever the program says; `remora run` does."""
    return bool(os.environ.get("REMORA_URL") or os.environ.get("REMORA_AUTOLOAD"))


def cache_dir() -> Path:
    """Folder of the caches that make a new process start warm; deleting it is always safe."""
    chosen = os.environ.get("REMORA_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "remora"
