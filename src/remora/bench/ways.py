"""Ways to run one program: locally, or on an executor behind a round trip, with run-ahead or without.

Each way has a process of its own (bench/forks.py), where a `Client` does what it is asked.
"""

from __future__ import annotations

import hashlib
import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers

import remora
from remora.bench import loops
from remora.bench.modes import MODES
from remora.errors import UsageError

CONNECT_S, LOAD_S, WARM_S, TRIAL_S = 60.0, 120.0, 120.0, 180.0  # beyond this a way hangs
COUNTED = ("speculated", "confirmed", "wasted", "bytes_sent", "bytes_received", "round_trips")
STANDING = ("depth", "capture_route")  # what is so now; the others grow
Numbers = dict[str, float | str]


@dataclass(frozen=True)
class Way:
    """rtt_ms: of the link to the executor; None: there is none, the program is local."""

    rtt_ms: float | None = None
    run_ahead: bool = False

    @property
    def name(self) -> str:
        if self.rtt_ms is None:
            return "local"
        return f"{'run-ahead' if self.run_ahead else 'no run-ahead'}, RTT {self.rtt_ms:g} ms"

    @property
    def device(self) -> str:
        return "cpu" if self.rtt_ms is None else "remora"


LOCAL = Way()


@dataclass(frozen=True)
class Generated:
    """One greedy generate. steady: from a quarter of its tokens on, means, so that bursts hide nothing.

    nbytes: both ways, a steady token. spent: what the session counted, the whole call; see `COUNTED`, `STANDING`.
    """

    tokens: list[int]
    token_ms: float  # the whole call
    steady_ms: float
    steady_cpu_ms: float  # of the client's process
    nbytes: float
    spent: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Looped:
    """One loop. digest: of every bit of its result."""

    ms: float
    digest: str
    spent: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class First:
    """A generate of one token."""

    ms: float
    tokens: list[int]
    spent: Numbers = field(default_factory=dict)


def connect(url: str, run_ahead: bool, exact: bool = True) -> None:
    """Opens the session, with run-ahead or without.

    Raises:
        UsageError: it is asked for, and this Remora has none.
    """
    if not exact:
        remora.connect(url, run_ahead=run_ahead, exact=False)
    elif "run_ahead" in inspect.signature(remora.connect).parameters:
        remora.connect(url, run_ahead=run_ahead)
    elif run_ahead:
        raise UsageError("this Remora has no run-ahead to turn on")
    else:
        remora.connect(url)


def counters() -> Numbers:
    """The session's counters, as many of them as this Remora has."""
    stats = remora.stats()
    found = {name: getattr(stats, name, None) for name in (*COUNTED, *STANDING)}
    return {name: value for name, value in found.items() if value is not None}


def spent(before: Numbers, after: Numbers) -> Numbers:
    """What was counted in between; of what stands, how it stands after."""
    return {name: value if name in STANDING else value - before.get(name, 0) for name, value in after.items()}


class Stamps(transformers.LogitsProcessor):
    """Reads clocks and counters when a token's forward has been called. Adds no op, and no hook to the model."""

    def __init__(self) -> None:
        self.stamps: list[tuple[float, float, Numbers]] = []

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.stamps.append((time.perf_counter(), time.process_time(), counters()))
        return scores


class Client:
    """What the process of one way does; all its answers are JSON."""

    def __init__(self, way: Way, url: str | None, models: Mapping[str, Any]) -> None:
        """models: by name, on the CPU; each is moved when it is first asked for."""
        self.way, self.url, self.models = way, url, models
        self._moved: set[str] = set()

    def open(self) -> None:
        torch.set_num_threads(1)
        if self.url is not None:
            connect(self.url, self.way.run_ahead)

    def load(self, model: str) -> None:
        if model not in self._moved:
            self.models[model].to(self.way.device)
            self._moved.add(model)
        self._settle()

    def wait_warm(self, timeout_s: float) -> dict[str, Any]:
        """seconds: until the fast routes were in; nothing, where this Remora has none to wait for."""
        wait = getattr(remora, "wait_warm", None)
        if wait is None or self.url is None:
            return {}
        started = time.perf_counter()
        warm = wait(timeout_s)
        return {"seconds": time.perf_counter() - started, "warm": warm is not False}

    def generate(
        self, model: str, ids: Sequence[Sequence[int]], tokens: int, eos: int | None = None
    ) -> dict[str, Any]:
        """A `Generated`. eos: a token that ends it; None: the model's own."""
        stamps, prompt = Stamps(), torch.tensor(ids).to(self.way.device)
        self._settle()
        before, started = counters(), time.perf_counter()
        out = self._greedy(model, prompt, tokens, eos, logits_processor=[stamps]).cpu()
        seconds = time.perf_counter() - started
        self._settle()  # what had run ahead in vain is known by now
        made = out.shape[1] - prompt.shape[1]
        found = measured(stamps.stamps)
        return {
            "tokens": out[0, prompt.shape[1] :].tolist(),
            "token_ms": seconds / made * 1e3,
            **found,
            "spent": spent(before, counters()),
        }

    def first(self, model: str, ids: Sequence[Sequence[int]]) -> dict[str, Any]:
        """A `First`: until a program has its first token."""
        prompt = torch.tensor(ids).to(self.way.device)
        self._settle()
        before, started = counters(), time.perf_counter()
        out = self._greedy(model, prompt, 1, None).cpu()
        ms = (time.perf_counter() - started) * 1e3
        return {"ms": ms, "tokens": out[0, prompt.shape[1] :].tolist(), "spent": spent(before, counters())}

    def mode(self, family: str, mode: str, tokens: int) -> dict[str, Any]:
        """The tokens of a mode of `generate`."""
        self.load(family)
        return {"tokens": MODES[mode](self.models[family], self.way.device, tokens)}

    def turning(self, steps: int, turns: Sequence[int]) -> dict[str, Any]:
        return self._loop(lambda device: loops.turning(device, steps, frozenset(turns)))

    def wandering(self, steps: int, seed: int) -> dict[str, Any]:
        return self._loop(lambda device: loops.wandering(device, steps, seed))

    def close(self) -> None:
        remora.disconnect()

    def _greedy(self, model: str, prompt: torch.Tensor, tokens: int, eos: int | None, **more: Any) -> Any:
        options = {"max_new_tokens": tokens, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
        if eos is not None:
            options["eos_token_id"] = eos
        return self.models[model].generate(prompt, **options, **more)

    def _loop(self, run: Any) -> dict[str, Any]:
        self._settle()
        before, started = counters(), time.perf_counter()
        result = run(self.way.device).cpu()
        ms = (time.perf_counter() - started) * 1e3
        self._settle()
        digest = hashlib.sha256(result.numpy().tobytes()).hexdigest()
        return {"ms": ms, "digest": digest, "spent": spent(before, counters())}

    def _settle(self) -> None:
        if self.url is not None:
            torch.remora.synchronize()  # type: ignore[attr-defined]


def measured(stamps: Sequence[tuple[float, float, Numbers]]) -> dict[str, float]:
    """The steady part of a call: from a quarter of its tokens to the last one.

    Raises:
        ValueError: fewer than two tokens have no steady part.
    """
    if len(stamps) < 2:
        raise ValueError(f"{len(stamps)} tokens have no steady part")
    steady = stamps[len(stamps) // 4 :]
    (wall, cpu, before), (last_wall, last_cpu, after) = steady[0], steady[-1]
    steps, passed = len(steady) - 1, spent(before, after)
    return {
        "steady_ms": (last_wall - wall) / steps * 1e3,
        "steady_cpu_ms": (last_cpu - cpu) / steps * 1e3,
        "nbytes": (passed.get("bytes_sent", 0) + passed.get("bytes_received", 0)) / steps,
    }
