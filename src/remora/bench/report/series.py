"""What the pictures of latency, bytes, round trips and links show, from records. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from remora.bench.intervals import of_median, of_ratio
from remora.bench.records import SIMULATED, Sample
from remora.bench.report.evidence import Evidence, preferred
from remora.bench.report.figures import Bars, Grid, Head, Heat, Line, Lines, Missing, Panel, Value, value

K = TypeVar("K")
# Arms that pictures show in this order, the worst first; others follow as they come.
ORDER = (
    "naive",
    "full KV both ways",
    "blind",
    "split",
    "delta KV",
    "aware",
    "handle",
    "semantic",
    "resident",
)
SEED, CACHE = "seed", "cache_tokens"
BASE = "blind"  # what gains are of
PUBLISHED = (BASE, "aware", "resident")  # the arms of the seed's figure, and the one that needs no wait
SAVED = (0.5, 0.9)


def arms_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    found = dict.fromkeys(sample.arm for sample in samples)
    known = [arm for arm in ORDER if arm in found]
    return (*known, *(arm for arm in found if arm not in ORDER))


def runs_of(samples: Iterable[Sample]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(sample.run for sample in samples))


def per_unit_ms(sample: Sample) -> Value:
    """Milliseconds of a step, a token, …"""
    ms = [seconds / sample.units * 1e3 for seconds in sample.seconds]
    return value(of_median(ms), sample.how == SIMULATED)


def per_unit_nbytes(sample: Sample) -> Value | None:
    """Bytes of a step, all ways together; None: they were not counted."""
    if not sample.nbytes:
        return None
    totals = [sum(trial) / sample.units for trial in zip(*sample.nbytes.values(), strict=True)]
    return value(of_median(totals), sample.how == SIMULATED)


def units_per_s(sample: Sample) -> Value:
    rates = [sample.units / seconds for seconds in sample.seconds]
    return value(of_median(rates), sample.how == SIMULATED)


def rate_name(gbit_per_s: float | None) -> str:
    return "no limit" if gbit_per_s is None else f"{gbit_per_s:g} Gbit/s"


def count(number: float) -> str:
    """128, 2k, 131k: whole powers of two by 1024."""
    if number >= 1024 and number % 1024 == 0:
        return f"{number / 1024:g}k"
    return f"{number:g}"


def _by(samples: Iterable[Sample], key: Callable[[Sample], K]) -> dict[K, list[Sample]]:
    found: dict[K, list[Sample]] = {}
    for sample in samples:
        found.setdefault(key(sample), []).append(sample)
    return found


def _seed(evidence: Evidence) -> list[Sample]:
    """The seed's workload on links with a rate, by the usual transport, on this kind of machine."""
    return [
        sample
        for sample in preferred(evidence.standing())
        if sample.experiment == SEED
        and sample.workload == SEED
        and sample.transport == "websocket"
        and sample.link.gbit_per_s is not None
        and not sample.link.rtt_ms
        and CACHE in sample.shape
    ]


def latency(evidence: Evidence) -> Bars | Missing:
    """The seed's published figure, at each rate: its smallest cache."""
    name, title = "latency", "A step of the seed's workload, by link"
    samples = _seed(evidence)
    if not samples:
        return Missing(name, title, "`remora bench seed`")
    tokens = min(sample.shape[CACHE] for sample in samples)
    samples = [sample for sample in samples if sample.shape[CACHE] == tokens and sample.arm in PUBLISHED]
    rates = sorted({sample.link.gbit_per_s for sample in samples if sample.link.gbit_per_s is not None})
    return Bars(
        Head(
            name,
            title,
            f"A cache of {tokens:g} tokens, batch 1; lower is better. blind: the cache travels every step; aware: "
            "the token does; resident: nothing does, and steps are pipelined. Whiskers: 95 % interval of the "
            "median. Hatched: simulated.",
            runs_of(samples),
        ),
        "ms per step",
        tuple(rate_name(rate) for rate in rates),
        arms_of(samples),
        {(rate_name(sample.link.gbit_per_s), sample.arm): per_unit_ms(sample) for sample in samples},
    )


def wire_bytes(evidence: Evidence) -> Bars | Missing:
    """Bytes of a step by arm: of the seed at its smallest cache, and of the modes."""
    name, title = "bytes", "What crosses the wire"
    counted = [sample for sample in evidence.standing() if sample.nbytes and sample.transport == "websocket"]
    counted = [
        sample
        for sample in counted
        if sample.experiment in (SEED, "modes") and (sample.workload == SEED or CACHE not in sample.shape)
    ]
    if not counted:
        return Missing(name, title, "`remora bench seed`, `remora bench modes`")
    groups: list[str] = []
    values: dict[tuple[str, str], Value] = {}
    drawn: list[Sample] = []
    for (workload, unit, device), samples in _by(
        counted, lambda sample: (sample.workload, sample.unit, sample.device)
    ).items():
        group = f"{workload}, per {unit}" + ("" if device == "cpu" else f", {device}")
        tokens = min(sample.shape.get(CACHE, 0.0) for sample in samples)
        groups.append(group)
        for sample in samples:
            found = per_unit_nbytes(sample)
            if found and sample.shape.get(CACHE, 0.0) == tokens and (group, sample.arm) not in values:
                values[group, sample.arm] = found
                drawn.append(sample)
    caption = (
        "All ends together, framing included, counted at the sockets; lower is better. Hatched: simulated."
    )
    return Bars(
        Head(name, title, caption, runs_of(drawn)),
        "bytes",
        tuple(groups),
        arms_of(drawn),
        values,
        sideways=True,
    )


def round_trips(evidence: Evidence) -> Lines | Missing:
    """Tokens a second against RTT, a panel for each workload that was measured at two of them."""
    name, title = "rtt", "Tokens a second behind a round trip"
    tokens = [
        sample
        for sample in preferred(evidence.standing())
        if sample.unit == "token" and (sample.link.rtt_ms is not None or sample.link.by == "loopback")
    ]
    panels, drawn = [], []
    for workload, samples in _by(tokens, _workload_name).items():
        if len({sample.link.rtt_ms or 0.0 for sample in samples}) < 2:
            continue
        lines = [
            Line(arm, _points(_by(samples, lambda sample: sample.arm)[arm], _rtt_ms, units_per_s))
            for arm in arms_of(samples)
        ]
        panels.append(Panel(workload, "round trip, ms", "tokens/s", tuple(lines)))
        drawn += samples
    if not panels:
        return Missing(name, title, "a workload that makes tokens, at two round trips or more")
    caption = "Higher is better. Whiskers: 95 % interval of the median; hollow: one trial or simulated."
    return Lines(Head(name, title, caption, runs_of(drawn)), tuple(panels))


def _workload_name(sample: Sample) -> str:
    shape = ", ".join(f"{key.replace('_', ' ')} {count(size)}" for key, size in sorted(sample.shape.items()))
    device = "" if sample.device == "cpu" else sample.device
    rate = "" if sample.link.gbit_per_s is None else rate_name(sample.link.gbit_per_s)
    return ", ".join(part for part in (sample.workload, shape, device, rate) if part)


def _rtt_ms(sample: Sample) -> float:
    return sample.link.rtt_ms or 0.0


def _points(
    samples: Sequence[Sample], x: Callable[[Sample], float], y: Callable[[Sample], Value]
) -> tuple[tuple[float, Value], ...]:
    """One point for each x, the first sample that has it."""
    found: dict[float, Value] = {}
    for sample in samples:
        found.setdefault(x(sample), y(sample))
    return tuple(sorted(found.items(), key=lambda point: point[0]))


def gains(evidence: Evidence) -> Heat | Missing:
    """The share of blind's time that an arm saves, by rate and cache."""
    name, title = "gain", "Time saved against moving the cache, by link and context"
    samples = _seed(evidence)
    arms = [arm for arm in arms_of(samples) if arm not in (BASE, "split")]
    at = {(sample.arm, sample.link.gbit_per_s, sample.shape[CACHE]): sample for sample in samples}
    rates = sorted({rate for arm, rate, _ in at if arm == BASE and rate is not None})
    contexts = sorted({tokens for arm, _, tokens in at if arm == BASE})
    if len(rates) * len(contexts) < 2 or not arms:
        return Missing(name, title, "`remora bench seed` at several rates or caches")
    grids = []
    for arm in arms:
        saved = {
            (rate_name(rate), count(tokens)): _saved(at[arm, rate, tokens], at[BASE, rate, tokens])
            for rate in rates
            for tokens in contexts
            if (arm, rate, tokens) in at and (BASE, rate, tokens) in at
        }
        grids.append(Grid(f"{arm} against {BASE}", saved))
    caption = (
        "Share of blind's time saved per step. Framed: measured on real sockets; unframed: simulated; "
        "empty: not there."
    )
    return Heat(
        Head(name, title, caption, runs_of(samples)),
        "link, Gbit/s",
        "cache, tokens",
        tuple(rate_name(rate) for rate in rates),
        tuple(count(tokens) for tokens in contexts),
        tuple(grids),
    )


def _saved(sample: Sample, base: Sample) -> Value:
    """By trials that took turns where they did; by medians where the two are not of one run."""
    simulated = SIMULATED in (sample.how, base.how)
    ours, theirs = ([seconds / one.units for seconds in one.seconds] for one in (sample, base))
    if sample.run == base.run and len(ours) == len(theirs):
        ratio = of_ratio(ours, theirs)
        return Value(1 - ratio.median, 1 - ratio.high, 1 - ratio.low, ratio.trials, simulated)
    share = 1 - of_median(ours).median / of_median(theirs).median
    return Value(share, share, share, 1, simulated)
