"""What the numbers of `placement` must reach: rows for every arm, one bar for each line of the promise.

What was not measured is not a number, and not a number misses every bar.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from remora.bench import intervals
from remora.bench.arms import LOCAL, ONE, Arm, Measured, Trial
from remora.bench.harness import Report

if TYPE_CHECKING:
    from remora.bench.placement import Results

NAN = float("nan")
SEMANTIC, BLIND = Arm("semantic", 2), Arm("blind", 2)
RIVALS = tuple(Arm(policy, 2) for policy in ("random", "split", "least_loaded", "data_aware"))
DATA_AWARE = Arm("data_aware", 2)
GPT2, DEEP = "gpt2-decode", "deep-decode"
_FRAME_NBYTES = 14 + 20 + 32  # Ethernet, IPv4, TCP with timestamps
_MOST_PAYLOAD_NBYTES = 1448  # of a frame of 1500 bytes; an acknowledgement for every second one
_FRAME_SHARE = 1.5 * _FRAME_NBYTES / _MOST_PAYLOAD_NBYTES
# A push is a request and its answer: each with a head of HTTP, in a frame that is acknowledged by one of its own,
# unless something goes that way in time.
_HEADS_NBYTES = 256  # both; measured: 230
_PUSH_NBYTES = _HEADS_NBYTES + 4 * _FRAME_NBYTES
_COUNT_SLACK_NBYTES = 1 << 16  # of other arms' heartbeats and of TCP's own


def judge(report: Report, found: Sequence[Results], policies: Sequence[str]) -> None:
    """Rows and bars of all workloads. Bars of what was not asked for are left out, each with a line that says so."""
    for results in found:
        _rows(report, results)
    for results in found:
        _identical(report, results)
        if results.workload.memory_nbytes:
            _larger(report, results)
    _peer_bytes(report, found)
    _cost_model(report, found)
    usual = [results for results in found if not results.workload.memory_nbytes]
    by_name = {results.workload.name: results for results in usual}
    if "semantic" not in policies:
        report.say("semantic was not asked for: no bar compares it")
        return
    for results in usual:
        _against_rivals(report, results, policies)
        _against_one(report, results)
    if GPT2 in by_name and "blind" in policies:
        _against_blind(report, by_name[GPT2])
    if DEEP in by_name:
        _own_cost(report, by_name[DEEP])
    _warm(report, found)


def _rows(report: Report, results: Results) -> None:
    """For each arm: time, the client's CPU, bytes, and how much of the busiest link's time they filled."""
    name, units, unit = results.workload.name, results.units, results.workload.unit
    numbers: dict[str, tuple[str, Callable[[Trial], float]]] = {
        "": (f"ms/{unit}", lambda t: t.seconds * 1e3 / units),
        ": client CPU": (f"ms/{unit}", lambda t: t.cpu_s * 1e3 / units),
        ": client": (f"B/{unit}", lambda t: (t.spent["bytes_sent"] + t.spent["bytes_received"]) / units),
        ": between executors": (f"B/{unit}", lambda t: t.between_executors() / units),
        ": busiest link": ("of raw socket", lambda t: _link_share(t, results.link_bytes_per_s)),
    }
    for part, measured in (("", results.policies), (", duel", results.duel)):
        for arm, of in measured.items():
            shown = list(numbers)[: 2 if not arm.executors else 5 if arm.executors > 1 else 3]
            for what in shown if of.trials else ():
                values = _each(of, numbers[what][1])
                if not any(map(math.isnan, values)):  # nobody counted
                    report.row(f"{name}{part}{what}", arm.name, numbers[what][0], values)


def _link_share(trial: Trial, link_bytes_per_s: float) -> float:
    if trial.passed is None:
        return NAN
    return trial.passed.busiest / trial.seconds / link_bytes_per_s


def _identical(report: Report, results: Results) -> None:
    """Every output of every step of every arm, bit for bit, and no arm that failed."""
    name = results.workload.name
    failed, differ, compared = [], [], 0
    whole = (results.policies, results.counts, results.duel)
    for part in whole[:1] if results.workload.memory_nbytes else whole:
        expected = _digests(part.get(LOCAL))
        for arm, of in part.items():
            if of.error:
                failed.append(f"{arm.name}: {of.error}")
            got = _digests(of)
            compared += len(got)
            if any(digest != expected.get(step) for step, digest in got.items()):
                differ.append(arm.name)
    report.bar(f"{name}: arms that failed{_named(failed)}", len(failed), "==", 0)
    report.bar(
        f"{name}: arms whose outputs differ from local, {compared} compared{_named(differ)}",
        len(differ),
        "==",
        0,
    )


def _digests(of: Measured | None) -> dict[tuple[int, int], str]:
    """By step (-1: the first ones) and output."""
    if of is None:
        return {}
    steps = [of.first, *(trial.digests for trial in of.trials)]
    return {
        (step - 1, out): digest for step, digests in enumerate(steps) for out, digest in enumerate(digests)
    }


def _larger(report: Report, results: Results) -> None:
    """A model of 2.3 times an executor: runs on three, is refused on two with the arithmetic."""
    name = results.workload.name
    ran = [
        of for arm, of in results.policies.items() if arm.policy == "semantic" and of.trials and not of.error
    ]
    report.bar(f"{name}: arms of 3 executors that ran it", len(ran), ">=", 1)
    refusals = [of.error for of in results.counts.values()]
    right = [e for e in refusals if e.startswith("PlanError") and len(re.findall(r"\d[\d.,]*", e)) >= 3]
    report.bar(
        f"{name}: pools of 2 that refuse it with the arithmetic{_named(refusals)}", len(right), ">=", 1
    )
    local = _digests(results.duel.get(LOCAL))
    for arm, of in results.duel.items():
        if arm.policy is not None:
            right_ = all(local.get(step) == digest for step, digest in _digests(of).items())
            outcome = of.error or ("ran, and is right" if right_ else "ran, and is WRONG")
            report.say(f"  {name}: {arm.name}: {outcome}; semantic wins because {results.workload.wins}")


def _against_rivals(report: Report, results: Results, policies: Sequence[str]) -> None:
    """Never slower than the best of them by more than the interval: an interval that lies above 1 is slower."""
    rivals = [arm for arm in RIVALS if arm.policy in policies]
    if not rivals:
        return
    semantic = results.policies.get(SEMANTIC)
    known = [results.policies[arm] for arm in rivals if _complete(results.policies.get(arm))]
    name = results.workload.name
    if not known or len(known) < len(rivals) or not _complete(semantic):
        report.bar(
            f"{name}: semantic / best of {len(rivals)} rivals, low end (arms are missing)", NAN, "<=", 1.0
        )
        return
    assert semantic is not None
    best = min(known, key=lambda of: statistics.median(_ms(of, 1)))
    ratio = intervals.of_ratio(_ms(semantic, 1), _ms(best, 1))
    what = f"semantic / {best.arm.name}, the best rival, low end of {_shown(ratio)}"
    report.bar(f"{name}: {what}", ratio.low, "<=", 1.0)
    if DATA_AWARE in rivals and results.workload.wins:
        over = intervals.of_ratio(_ms(semantic, 1), _ms(results.policies[DATA_AWARE], 1))
        report.say(
            f"  {name}: semantic / data_aware {_shown(over)}; expected to win: {results.workload.wins}"
        )


def _against_one(report: Report, results: Results) -> None:
    one, semantic = results.duel.get(ONE), results.duel.get(SEMANTIC)
    what = f"{results.workload.name}: one executor / semantic on 2"
    if one is None or semantic is None or not (_complete(one) and _complete(semantic)):
        report.bar(f"{what}, low end (arms are missing)", NAN, ">=", 0.98)
        return
    ratio = intervals.of_ratio(_ms(one, 1), _ms(semantic, 1))
    report.bar(f"{what}, low end of {_shown(ratio)}", ratio.low, ">=", 0.98)


def narrow(duel: Mapping[Arm, Measured], width: float) -> bool:
    """Whether the ratio of one executor and semantic is known to `width`, or cannot be."""
    one, semantic = duel.get(ONE), duel.get(SEMANTIC)
    if one is None or semantic is None or not (_complete(one) and _complete(semantic)):
        return True
    ratio = intervals.of_ratio(_ms(one, 1), _ms(semantic, 1))
    return ratio.coverage >= intervals.LEVEL and ratio.high - ratio.low <= width


def _against_blind(report: Report, results: Results) -> None:
    """What knowing the cache is worth."""
    blind, semantic = (results.policies.get(arm) for arm in (BLIND, SEMANTIC))
    time_, nbytes = NAN, NAN
    shown = "arms are missing"
    if blind is not None and semantic is not None and _complete(blind) and _complete(semantic):
        ratio = intervals.of_ratio(_ms(blind, 1), _ms(semantic, 1))
        time_, shown = ratio.low, f"low end of {_shown(ratio)}"
        most = statistics.median(_each(blind, Trial.between_executors))
        least = statistics.median(_each(semantic, Trial.between_executors))
        nbytes = most / max(least, 1.0) if not math.isnan(least) else NAN
    report.bar(f"{GPT2}: blind / semantic, time of a token, {shown}", time_, ">=", 10)
    report.bar(f"{GPT2}: blind / semantic, bytes between executors a token", nbytes, ">=", 1000)


def _own_cost(report: Report, results: Results) -> None:
    """The client's CPU with a planner against the client without one, where almost nothing else is done."""
    one, alone = results.duel.get(ONE), results.duel.get(Arm("semantic", 1))
    ratio = NAN
    if one is not None and alone is not None and _complete(one) and _complete(alone):
        ratio = intervals.of_ratio(_each(alone, lambda t: t.cpu_s), _each(one, lambda t: t.cpu_s)).median
    report.bar(f"{DEEP}: client CPU of a warm step, semantic on 1 / without placement", ratio, "<=", 1.03)
    planned = [
        template.planning_s
        for of in (*results.policies.values(), *results.duel.values())
        if of.explanation is not None
        for template in of.explanation.templates
        if template.planning_s is not None
    ]
    report.bar(
        f"{DEEP}: planning a new template of 32 layers, s, worst of {len(planned)}",
        max(planned, default=NAN),
        "<=",
        0.5,
    )


def _warm(report: Report, found: Sequence[Results]) -> None:
    """Nothing is planned in a timed step of semantic."""
    plans: list[float] = []
    for name, of in _placed(found):
        planned = [trial.spent.get("plans", NAN) for trial in of.trials]
        if of.arm.policy == "semantic":
            plans += planned
        elif any(planned):  # some turn, or look at the load, so the whereabouts of values change
            report.say(f"  {name}, {of.arm.name}: plans in its timed steps: {planned}")
    report.bar(f"plans made in {len(plans)} warm steps of semantic", sum(plans) if plans else NAN, "==", 0)


def _peer_bytes(report: Report, found: Sequence[Results]) -> None:
    """The session's own count of bytes between executors is the kernel's."""
    if not any(trial.passed for results in found for of in results.policies.values() for trial in of.trials):
        report.say("the links are not the kernel's, so nothing checks peer_bytes")
        return
    counted: list[bool] = []
    wrong = []
    for name, of in _placed(found):
        agree = [_agree(trial) for trial in of.trials if trial.passed is not None]
        counted += agree
        if not all(agree):
            wrong.append(f"{name}, {of.arm.name}")
    what = f"steps of {len(counted)} whose peer_bytes are not what the kernel counted{_named(wrong)}"
    report.bar(what, counted.count(False) if counted else NAN, "==", 0)


def _placed(found: Sequence[Results]) -> Iterator[tuple[str, Measured]]:
    """Everything timed with a policy, and of which workload."""
    for results in found:
        for of in (*results.policies.values(), *results.duel.values()):
            if of.arm.policy is not None:
                yield results.workload.name, of


def _agree(trial: Trial) -> bool:
    """Frames, acknowledgements and the heads of HTTP are the kernel's alone: so much of each full frame, so much of
    each push however small, and a little that is not of this step."""
    counted, passed = trial.spent.get("peer_bytes", NAN), trial.between_executors()
    around = counted * _FRAME_SHARE + trial.spent.get("peer_messages", 0) * _PUSH_NBYTES
    return counted - _COUNT_SLACK_NBYTES <= passed <= counted + around + _COUNT_SLACK_NBYTES


def _cost_model(report: Report, found: Sequence[Results]) -> None:
    """Predicted over measured, of all runs of each arm's templates together."""
    errors: dict[str, float] = {}
    for results in found:
        for of in results.policies.values():
            if of.arm.policy is None or of.explanation is None:
                continue
            both = [
                (t.predicted_s * t.runs, t.measured_s * t.runs)
                for t in of.explanation.templates
                if t.predicted_s is not None and t.measured_s is not None
            ]
            measured = sum(m for _, m in both)
            if measured:
                errors[f"{results.workload.name}, {of.arm.name}"] = abs(
                    sum(p for p, _ in both) / measured - 1
                )
    median, worst, which = NAN, NAN, ""
    if errors:
        median, which = statistics.median(errors.values()), max(errors, key=lambda name: errors[name])
        worst = errors[which]
        report.row("cost model: |predicted / measured - 1|", "all", "", list(errors.values()))
    report.bar(f"cost model: median error of {len(errors)} arms", median, "<=", 0.10)
    report.bar(f"cost model: worst error{_named([which] if which else [])}", worst, "<=", 0.30)


def _complete(of: Measured | None) -> bool:
    return of is not None and bool(of.trials) and not of.error


def _each(of: Measured, number: Callable[[Trial], float]) -> list[float]:
    return [number(trial) for trial in of.trials]


def _ms(of: Measured, units: int) -> list[float]:
    return _each(of, lambda trial: trial.seconds * 1e3 / units)


def _shown(interval: intervals.Interval) -> str:
    return f"{interval.median:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _named(names: Iterable[str]) -> str:
    """' (a; b; …)' for a bar's name, short."""
    unique = list(dict.fromkeys(names))
    if not unique:
        return ""
    return f" ({'; '.join(name[:120] for name in unique[:3])}{'; …' if len(unique) > 3 else ''})"
