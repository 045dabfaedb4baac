"""What the pictures of predictions, growth, peers and bars show, from records. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median

from remora.bench.intervals import of_ratio
from remora.bench.records import MEASURED, SIMULATED, Bar, Sample
from remora.bench.report.evidence import Evidence, place
from remora.bench.report.figures import (
    Bars,
    Head,
    Line,
    Lines,
    Missing,
    Panel,
    Scatter,
    Value,
    Verdict,
    Verdicts,
)
from remora.bench.report.series import arms_of, per_unit_ms, runs_of

SCALE, PEERS, LOCAL = "scale", "peers", "local"
WIDE = 8  # a quantity that grows by more than this is on a logarithmic axis


def predictions(evidence: Evidence) -> Scatter | Missing:
    """Measured samples against what the cost model said of them, and against their simulated twins."""
    name, title = "predicted", "Predicted against measured"
    standing = evidence.standing()
    simulated = {place(sample): sample for sample in standing if sample.how == SIMULATED}
    clouds: dict[str, list[tuple[Value, float]]] = {}
    drawn = []
    for sample in standing:
        if sample.how != MEASURED:
            continue
        if sample.predicted_s is not None:
            predicted_ms = sample.predicted_s / sample.units * 1e3
            clouds.setdefault(f"cost model, {sample.experiment}", []).append(
                (per_unit_ms(sample), predicted_ms)
            )
            drawn.append(sample)
        if (twin := simulated.get(place(sample))) is not None:
            pair = per_unit_ms(sample), per_unit_ms(twin).median
            clouds.setdefault(f"simulator, {sample.experiment}", []).append(pair)
            drawn.append(sample)
    pairs_of_rows = list(_simulated_rows(evidence))
    if pairs_of_rows:
        clouds.setdefault("simulator", []).extend(pair for _, pair in pairs_of_rows)
    if not clouds:
        return Missing(name, title, "measurements with a prediction, or simulated as well")
    caption = (
        "Above 1: it took less time than predicted. The bands are 10 % and 25 %. Whiskers: 95 % interval of "
        "the measured median. "
        + " ".join(
            f"{cloud}: {errors_text([abs(predicted / measured.median - 1) for measured, predicted in pairs])}"
            for cloud, pairs in clouds.items()
        )
    )
    return Scatter(
        Head(
            name, title, caption, tuple(dict.fromkeys((*runs_of(drawn), *(run for run, _ in pairs_of_rows))))
        ),
        tuple((cloud, tuple(pairs)) for cloud, pairs in clouds.items()),
    )


def _simulated_rows(evidence: Evidence) -> Iterator[tuple[str, tuple[Value, float]]]:
    """Of each measure that was measured and simulated in one run: that run, and both in milliseconds."""
    rows = {(row.experiment, row.measure, row.arm): row for row in evidence.standing_rows()}
    for (experiment, measure, arm), row in rows.items():
        twin = rows.get((experiment, measure, SIMULATED))
        if arm != MEASURED or twin is None or twin.run != row.run or (row.unit, twin.unit) != ("ms", "ms"):
            continue
        if row.median is None or twin.median is None:
            continue
        low = row.median if row.low95 is None else row.low95
        high = row.median if row.high95 is None else row.high95
        yield row.run, (Value(row.median, low, high, row.trials), twin.median)


def errors_text(errors: list[float]) -> str:
    points = "1 point" if len(errors) == 1 else f"{len(errors)} points"
    return f"{points}, median error {median(errors):.1%}, worst {max(errors):.0%}."


def growth(evidence: Evidence) -> Lines | Missing:
    """The cost of a step against each quantity that the experiment `scale` varied, the others as they were most."""
    name, title = "growth", "How the cost of a step grows"
    samples = [
        sample for sample in evidence.standing() if sample.experiment == SCALE and sample.how == MEASURED
    ]
    panels, drawn = [], []
    for workload in dict.fromkeys(sample.workload for sample in samples):
        mine = [sample for sample in samples if sample.workload == workload]
        for quantity in _quantities(mine):
            varied = _varied(mine, quantity)
            if len({_amount(sample, quantity) for sample in varied}) < 2:
                continue
            panels.append(_growth_panel(quantity, varied))
            drawn += varied
    if not panels:
        return Missing(name, title, "`remora bench scale`")
    caption = (
        "Lower and flatter is better. Whiskers: 95 % interval of the median; hollow: one trial. A panel varies one "
        "quantity and keeps the others."
    )
    return Lines(Head(name, title, caption, runs_of(drawn)), tuple(panels))


def _quantities(samples: Iterable[Sample]) -> list[str]:
    return list(dict.fromkeys([*(key for sample in samples for key in sample.shape), "executors"]))


def _amount(sample: Sample, quantity: str) -> float | None:
    """Of local PyTorch, what its remote side has executors."""
    known = sample.shape.get(quantity)
    return sample.executors if known is None and quantity == "executors" else known


def _rest(sample: Sample, quantity: str) -> tuple[object, ...]:
    """What must be equal for two samples to differ in one quantity alone; local PyTorch has no executors."""
    others = tuple(sorted((key, size) for key, size in sample.shape.items() if key != quantity))
    executors = None if quantity == "executors" or sample.arm == LOCAL else sample.executors
    link = sample.link
    return others, executors, link.gbit_per_s, link.rtt_ms, sample.transport, sample.device


def _varied(samples: list[Sample], quantity: str) -> list[Sample]:
    """The most samples that differ in this quantity alone, for each arm."""
    found = []
    for arm in arms_of(samples):
        families: dict[object, list[Sample]] = {}
        for sample in samples:
            if sample.arm == arm and _amount(sample, quantity) is not None:
                families.setdefault(_rest(sample, quantity), []).append(sample)
        best = max(
            families.values(), key=lambda family: len({_amount(one, quantity) for one in family}), default=[]
        )
        if len({_amount(one, quantity) for one in best}) > 1:
            found += best
    return found


def _growth_panel(quantity: str, varied: list[Sample]) -> Panel:
    lines, medians = [], []
    for arm in arms_of(varied):
        points = {_amount(sample, quantity): per_unit_ms(sample) for sample in varied if sample.arm == arm}
        medians += [found.median for found in points.values()]
        lines.append(Line(arm, tuple(sorted((x, y) for x, y in points.items() if x is not None))))
    xs = [x for line in lines for x, _ in line.points]
    return Panel(
        f"{quantity.replace('_', ' ')}: {varied[0].workload}",
        quantity.replace("_", " "),
        f"ms per {varied[0].unit}",
        tuple(lines),
        log_x=min(xs) > 0 and max(xs) / min(xs) >= WIDE,
        log_y=max(medians) / min(medians) >= WIDE,
    )


def peers(evidence: Evidence) -> Bars | Missing:
    """Time over local's in the same run, by workload and round trip; only what gave local's results."""
    name, title = "peers", "The same programs through others, time over local"
    samples = [sample for sample in evidence.standing() if sample.experiment == PEERS]
    local = {(sample.run, sample.workload): sample for sample in samples if sample.arm == LOCAL}
    values, groups, drawn = {}, [], []
    for sample in samples:
        base = local.get((sample.run, sample.workload))
        if sample.arm == LOCAL or base is None or len(base.seconds) != len(sample.seconds):
            continue
        group = f"{sample.workload}, RTT {sample.link.rtt_ms or 0:g} ms"
        ratio = of_ratio(sample.seconds, base.seconds)
        values[group, sample.arm] = Value(ratio.median, ratio.low, ratio.high, ratio.trials)
        groups.append(group)
        drawn.append(sample)
    if not values:
        return Missing(name, title, "`python benchmarks/peers/compare.py`")
    caption = (
        "Lower is better, 1 is local PyTorch. Whiskers: 95 % interval of the ratio. A bar that is missing gave other "
        "results than local, failed, or was not asked: the tables say which."
    )
    return Bars(
        Head(name, title, caption, runs_of(drawn)),
        "time / local",
        tuple(dict.fromkeys(groups)),
        arms_of(drawn),
        values,
        sideways=True,
        one="local",
    )


def verdicts(evidence: Evidence) -> Verdicts | Missing:
    """Every bar, and how far it is from being missed."""
    name, title = "bars", "Bars met and missed"
    bars = evidence.standing_bars()
    if not bars:
        return Missing(name, title, "any experiment that has bars")
    met = sum(bar.ok for bar in bars)
    exact = sum(bar.ok and _margin(bar) is None for bar in bars)
    shown = [bar for bar in bars if not (bar.ok and _margin(bar) is None)]
    caption = (
        f"{met} of {len(bars)} bars are met; {exact} of them ask for an exact value and are not drawn. Left of the "
        "line is better; what is beyond the scale, or has no size, is at its end."
    )
    return Verdicts(
        Head(name, title, caption, tuple(dict.fromkeys(bar.run for bar in bars))),
        tuple(
            Verdict(bar.experiment, bar.name, _bar_text(bar), bar.ok, _margin(bar))
            for bar in sorted(shown, key=lambda bar: (bar.experiment, bar.ok))
        ),
    )


def _bar_text(bar: Bar) -> str:
    value = "not measured" if bar.value is None else f"{bar.value:.3g}"
    return f"{value} ({bar.op} {bar.bar:g})"


def _margin(bar: Bar) -> float | None:
    """How many times the bar the value is, or the other way round where more is better."""
    if bar.value is None or bar.op == "==" or bar.bar <= 0 or bar.value <= 0:
        return None
    return bar.value / bar.bar if bar.op in ("<=", "<") else bar.bar / bar.value
