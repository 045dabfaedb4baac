"""What `remora bench decode --rtt` demands, judged from what was measured; pure but for the report.

A way that was asked for and failed is there with no trials; its bars are missed.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from remora.bench import ceiling
from remora.bench.harness import Impossible, Report
from remora.bench.intervals import of_median, of_ratio
from remora.bench.ways import LOCAL, STANDING, First, Generated, Looped, Way

THIN, LLAMA, GPT2 = "GPT-2 of 12 thin layers", "Llama of 32 thin layers", "GPT-2 124M"

FAR_BAR = 0.95  # tokens/s behind the longest round trip over those behind the shortest
THIN_BAR, GPT2_BAR = (
    1.0,
    1.05,
)  # ms per token, remote / local: at both ends of the round trips; at the shortest
CPU_BAR = 3.0  # of the client, ms per token of the deep model
FIRST_BAR = 30.0  # ms over local and one round trip
LOST_BAR = 1.0  # round trips, per wrong guess

Trials = Mapping[Way, Sequence[Generated]]
Loops = Mapping[Way, Sequence[Looped]]
NOT_MEASURED = float("nan")  # misses every bar


def judge_decoding(report: Report, name: str, trials: Trials, round_trips: Mapping[float, float]) -> None:
    """Rows of one model and its bars.

    Raises:
        Impossible: something came sooner than its round trip.
    """
    expected = trials[LOCAL][0].tokens if trials.get(LOCAL) else []
    made = [trial.tokens for ways in trials.values() for trial in ways]
    differ = sum(tokens != expected[: len(tokens)] for tokens in made)  # some make fewer
    report.bar(f"{name}: generates whose tokens differ from local", differ, "==", 0)
    for way, ways in trials.items():
        for trial in ways:
            _check(f"{name}, {way.name}", way, trial)
        if ways:
            _rows(report, name, way, ways)
    shortest, longest = min(round_trips), max(round_trips)
    for rtt in round_trips:
        for ahead in (False, True):
            ratio = _ratio(report, f"{name}: ms per token, remote / local", trials, Way(rtt, ahead), LOCAL)
            at = f"RTT {rtt:g} ms"
            if ahead and name == THIN and rtt in (shortest, longest):
                report.bar(f"{name}: ms per token, remote / local, {at}", ratio, "<=", THIN_BAR)
            if ahead and name == GPT2 and rtt == shortest:
                report.bar(f"{name}: ms per token, remote / local, {at}", ratio, "<=", GPT2_BAR)
    for rtt in [rtt for rtt in round_trips if rtt != shortest]:
        for ahead in (False, True):
            what = f"{name}: tokens/s over those at RTT {shortest:g} ms"
            kept = _ratio(report, what, trials, Way(shortest, ahead), Way(rtt, ahead), at=Way(rtt, ahead))
            if ahead and name == GPT2 and rtt == longest:
                report.bar(f"{name}: tokens/s at RTT {rtt:g} ms / {shortest:g} ms", kept, ">=", FAR_BAR)
    if name == LLAMA:
        for rtt in [rtt for rtt in (shortest, longest) if Way(rtt, True) in trials]:
            ms = _median([trial.steady_cpu_ms for trial in trials[Way(rtt, True)]])
            report.bar(f"{name}: client CPU ms per token, RTT {rtt:g} ms", ms, "<=", CPU_BAR)


def judge_ends(report: Report, trials: Trials, expected: Sequence[Sequence[int]]) -> None:
    """What ran in vain when a sequence ended by itself: nothing, usually. expected: the tokens of each trial."""
    differ = sum([trial.tokens for trial in ways] != list(expected) for ways in trials.values() if ways)
    report.bar("ends of sequences: ways whose tokens differ from local", differ, "==", 0)
    for way, ways in trials.items():
        wasted = _numbers(ways, "wasted")
        if wasted:
            report.row("run in vain after the end token", way.name, "programs", wasted)
        bar = f"programs run in vain after the end token, median, RTT {way.rtt_ms:g} ms"
        report.bar(bar, _median(wasted), "==", 0)


def judge_turns(
    report: Report, straight: Loops, turned: Loops, turns: int, round_trips: Mapping[float, float]
) -> None:
    """What a wrong guess costs: loops that turn against loops that do not, which compute the same."""
    _equal(report, "a loop that turns", straight, turned)
    for rtt, measured_ms in round_trips.items():
        way = Way(rtt, True)
        pairs = list(zip(turned.get(way, ()), straight.get(way, ()), strict=False))
        lost_ms = [(turn.ms - plain.ms) / turns for turn, plain in pairs]
        if lost_ms:
            report.row("a wrong guess: time lost", way.name, "ms", lost_ms)
        wasted = [
            (float(turn.spent["wasted"]) - float(plain.spent["wasted"])) / turns
            for turn, plain in pairs
            if "wasted" in turn.spent and "wasted" in plain.spent
        ]
        if wasted:
            report.row("a wrong guess: run in vain", way.name, "programs", wasted)
        if rtt == max(round_trips) and rtt:
            lost = _median(lost_ms) / measured_ms
            report.bar(f"a wrong guess: round trips lost, RTT {rtt:g} ms", lost, "<=", LOST_BAR)
            depth = max(_numbers([loop for pair in pairs for loop in pair], "depth"), default=NOT_MEASURED)
            report.bar(f"a wrong guess: programs run in vain, RTT {rtt:g} ms", _median(wasted), "<=", depth)


def judge_wandering(report: Report, drawn: Loops) -> None:
    """A program that cannot be predicted is no slower, by more than the interval, for the attempt."""
    _equal(report, "a loop of random programs", drawn)
    for way, found in drawn.items():
        if found:
            report.row("a loop of random programs", way.name, "ms", [loop.ms for loop in found])
    rtts = sorted({way.rtt_ms for way in drawn if way.rtt_ms is not None})
    for rtt in rtts:
        on, off = (drawn.get(Way(rtt, ahead), ()) for ahead in (True, False))
        n, what = min(len(on), len(off)), "a loop of random programs, run-ahead / none"
        low = NOT_MEASURED
        if n:
            ratios = [a.ms / b.ms for a, b in zip(on[:n], off[:n], strict=True)]
            report.row(what, f"RTT {rtt:g} ms", "x", ratios)
            low = of_median(ratios).low
        report.bar(f"{what}, low end of the interval, RTT {rtt:g} ms", low, "<=", 1.0)


def judge_modes(report: Report, found: Mapping[tuple[str, str], Mapping[Way, list[int] | None]]) -> None:
    """Tokens of every mode, each way against local. A mode that raised differs."""
    differ = {True: 0, False: 0}
    for (family, mode), tokens in found.items():
        for way in tokens:
            if way == LOCAL:
                continue
            same = tokens[way] is not None and tokens[way] == tokens[LOCAL]
            differ[way.run_ahead] += not same
            report.row(f"tokens equal to local, {family}", f"{mode}, {way.name}", "equal", [float(same)])
            if not same and tokens[way] is not None:
                report.say(f"{family} {mode}, {way.name}: expected {tokens[LOCAL]}, got {tokens[way]}")
    for ahead, count in differ.items():
        how = "run-ahead" if ahead else "no run-ahead"
        report.bar(f"modes whose tokens differ from local, {how}", count, "==", 0)


def judge_first_tokens(
    report: Report, name: str, firsts: Mapping[Way, Sequence[First]], round_trips: Mapping[float, float]
) -> None:
    """The bars on first tokens of new processes.

    Raises:
        Impossible: one came sooner than its round trip.
    """
    expected = [first.tokens for first in firsts.get(LOCAL, ())][:1]
    differ = sum(first.tokens not in expected for ways in firsts.values() for first in ways)
    report.bar(f"{name}: first tokens that differ from local", differ, "==", 0)
    for way, ways in firsts.items():
        if ways:
            report.row(f"{name}: first token, new process", way.name, "ms", [first.ms for first in ways])
        if blocked := _numbers(ways, "round_trips") if way != LOCAL else []:
            report.row(f"{name}: blocked until the first token", way.name, "times", blocked)
    local = _median([first.ms for first in firsts.get(LOCAL, ())])
    for rtt, measured_ms in round_trips.items():
        remote = [first.ms for first in firsts.get(Way(rtt, True), ())]
        for ms in remote:
            ceiling.check_not_before(f"{name}: the first token at RTT {rtt:g} ms", ms, rtt)
        over = _median(remote) - local - measured_ms
        bar = f"{name}: ms to the first token over local and one round trip, RTT {rtt:g} ms"
        report.bar(bar, over, "<=", FIRST_BAR)


def _check(what: str, way: Way, trial: Generated) -> None:
    if way.rtt_ms is not None:
        whole_ms = trial.token_ms * len(trial.tokens)
        ceiling.check_not_before(f"{what}: a generate", whole_ms, way.rtt_ms)
        if not way.run_ahead:
            ceiling.check_not_before(f"{what}: a token", trial.steady_ms, way.rtt_ms)
            if trial.spent.get("speculated"):
                raise Impossible(f"{what}: {trial.spent['speculated']} programs ran ahead")


def _rows(report: Report, name: str, way: Way, trials: Sequence[Generated]) -> None:
    report.row(f"{name}: steady ms per token", way.name, "ms", [trial.steady_ms for trial in trials])
    report.row(f"{name}: ms per token, whole call", way.name, "ms", [trial.token_ms for trial in trials])
    report.row(f"{name}: client CPU per token", way.name, "ms", [trial.steady_cpu_ms for trial in trials])
    if way.rtt_ms is None:
        return
    report.row(f"{name}: bytes per steady token", way.name, "B", [trial.nbytes for trial in trials])
    for counter in ("speculated", "confirmed", "wasted", "depth") if way.run_ahead else ():
        if numbers := _numbers(trials, counter):
            unit = "programs" if counter in STANDING else "programs a call"
            report.row(f"{name}: {counter}", way.name, unit, numbers)
    routes = [str(trial.spent["capture_route"]) for trial in trials if "capture_route" in trial.spent]
    for route in sorted(set(routes)):
        report.row(f"{name}: capture route", way.name, route, [float(found == route) for found in routes])


def _ratio(report: Report, what: str, trials: Trials, above: Way, below: Way, at: Way | None = None) -> float:
    """Median ratio of steady times of trials that took turns; not a number if a way has none."""
    one, other = ([trial.steady_ms for trial in trials.get(way, ())] for way in (above, below))
    if not one or len(one) != len(other):
        return NOT_MEASURED
    report.row(what, (at or above).name, "x", [a / b for a, b in zip(one, other, strict=True)])
    return of_ratio(one, other).median


def _equal(report: Report, what: str, *found: Loops) -> None:
    """The bar on results, trial by trial against local."""
    differ = 0
    for loops in found:
        expected = [loop.digest for loop in loops.get(LOCAL, ())]
        differ += sum([loop.digest for loop in ways] != expected for ways in loops.values() if ways)
    report.bar(f"{what}: ways whose results differ from local", differ, "==", 0)


def _numbers(trials: Sequence[First | Generated | Looped], counter: str) -> list[float]:
    return [float(trial.spent[counter]) for trial in trials if counter in trial.spent]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else NOT_MEASURED
