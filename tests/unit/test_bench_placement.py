"""The bars of `placement`: each holds for numbers that keep the promise and misses for those that break it."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from typer.testing import CliRunner

from remora.bench import placement, workloads
from remora.bench.arms import LOCAL, ONE, Arm, Measured, Trial
from remora.bench.harness import Bar, Report
from remora.bench.netns import Traffic
from remora.bench.placement import POLICIES, Results
from remora.bench.placement_bars import judge, narrow
from remora.cli.main import app
from remora.plan.explain import Executor, Explanation, Template

MS = {
    "semantic": 10.0,
    "data_aware": 10.0,
    "least_loaded": 40.0,
    "blind": 200.0,
    "random": 90.0,
    "split": 80.0,
}
EXECUTOR = Executor("http://10.0.0.1:8470", "cpu")
BETWEEN = {"semantic": 100, "data_aware": 100}


def trial(ms: float, between: int, digest: str = "a", **spent: int) -> Trial:
    passed = Traffic((between, 0, 0), (0, between, 0))
    counted = {"bytes_sent": 100, "bytes_received": 8, "peer_bytes": int(between / 1.03), "plans": 0}
    return Trial(ms / 1e3, 0.002, (digest,), counted | spent, passed)


def measured(arm: Arm, trials: int = 6, ms: float | None = None) -> Measured:
    policy = arm.policy or ""
    ms = ms or MS.get(policy, 10.0)
    between = BETWEEN.get(policy, 50_000_000) if arm.executors > 1 else 0
    of = Measured(arm, ("a",), [trial(ms * (1 + i / 1000), between) for i in range(trials)])
    if policy:
        templates = (Template("t", "decode", 10, (0,), 100, 0.0105, 0.001, 0.010, 0.2),)
        of.explanation = Explanation(policy, (EXECUTOR,), templates=templates)
    return of


def results(name: str) -> Results:
    found = Results(workloads.SUITE[name], quick=True, link_bytes_per_s=1.2e8)
    two = [Arm(policy, 2) for policy in POLICIES]
    found.policies = {arm: measured(arm) for arm in (LOCAL, ONE, *two)}
    found.duel = {arm: measured(arm, 15) for arm in (LOCAL, ONE, Arm("semantic", 2), Arm("semantic", 1))}
    return found


def larger() -> Results:
    found = Results(workloads.SUITE["larger-than-one"], quick=True, link_bytes_per_s=1.2e8)
    semantic = Arm("semantic", 3)
    found.policies = {LOCAL: measured(LOCAL), semantic: measured(semantic)}
    refused = (
        "PlanError: it needs 354,644,480 bytes, 2 executors have 154,193,252 each, 46,257,976 are missing"
    )
    found.counts = {Arm("semantic", 2): Measured(Arm("semantic", 2), error=refused)}
    return found


def judged(*found: Results) -> list[Bar]:
    report = Report("placement")
    judge(report, found, POLICIES)
    json.dumps(report.content(), allow_nan=False)
    return report.bars


def missed(*found: Results) -> list[str]:
    return [bar.name for bar in judged(*found) if not bar.ok]


def test_numbers_that_keep_the_promise_hold_every_bar() -> None:
    names = [bar.name for bar in judged(results("gpt2-decode"), results("deep-decode"), larger())]
    assert missed(results("gpt2-decode"), results("deep-decode"), larger()) == []
    assert len(names) == len(set(names)) == 20


def _digest(found: Results) -> None:
    found.policies[Arm("split", 2)].trials[3] = trial(80, 50_000_000, "b")


def _first(found: Results) -> None:
    found.policies[Arm("split", 2)].first = ("b",)


def _failed(found: Results) -> None:
    found.policies[Arm("random", 2)].error = "TypeError: connect() got an unexpected keyword argument"


def _slower(found: Results) -> None:
    found.policies[Arm("semantic", 2)] = measured(Arm("semantic", 2), ms=10.5)


def _slower_than_one(found: Results) -> None:
    found.duel[Arm("semantic", 2)] = measured(Arm("semantic", 2), 15, ms=10.4)


def _blind_is_quick(found: Results) -> None:
    found.policies[Arm("blind", 2)] = measured(Arm("blind", 2), ms=95.0)


def _semantic_moves(found: Results) -> None:
    found.policies[Arm("semantic", 2)].trials = [trial(10.0, 51_000) for _ in range(6)]


def _plans(found: Results) -> None:
    found.policies[Arm("semantic", 2)].trials[0] = trial(10.0, 100, plans=1)


def _miscounts(found: Results) -> None:
    found.policies[Arm("blind", 2)].trials[0] = trial(200.0, 50_000_000, peer_bytes=20_000_000)


def _mispredicts(found: Results) -> None:
    template = Template("t", "decode", 10, (0,), 100, 0.014, 0.001, 0.010, 0.2)
    found.policies[Arm("split", 2)].explanation = Explanation("split", (EXECUTOR,), templates=(template,))


@pytest.mark.parametrize(
    ("change", "misses"),
    [
        (_digest, ["arms whose outputs differ from local"]),
        (_first, ["arms whose outputs differ from local"]),
        (_failed, ["arms that failed", "semantic / best of 4 rivals, low end (arms are missing)"]),
        (_slower, ["the best rival, low end of"]),
        (_slower_than_one, ["one executor / semantic on 2"]),
        (_blind_is_quick, ["time of a token"]),
        (_semantic_moves, ["bytes between executors a token"]),
        (_plans, ["plans made"]),
        (_miscounts, ["peer_bytes are not what the kernel counted (gpt2-decode, blind on 2)"]),
        (_mispredicts, ["cost model: worst error (gpt2-decode, split on 2)"]),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_promise_misses_its_bar(change: Callable[[Results], None], misses: list[str]) -> None:
    found = results("gpt2-decode")
    change(found)
    names = missed(found)
    assert len(names) == len(misses), names
    assert all(part in name for part, name in zip(misses, names, strict=True)), names


@pytest.mark.parametrize(("messages", "agrees"), [(512, True), (128, False)])
def test_small_pushes_are_mostly_heads_and_frames(messages: int, agrees: bool) -> None:
    """512 pushes of 467 bytes passed as 442,588; for 128 of them that is too much."""
    found = results("deep-decode")
    passed = trial(80.0, 442_588, peer_bytes=239_104, peer_messages=messages)
    found.policies[Arm("split", 2)].trials[0] = passed
    assert (not any("peer_bytes" in name for name in missed(found))) is agrees


def test_the_own_cost_is_that_of_deep_decode() -> None:
    found = results("deep-decode")
    alone = found.duel[Arm("semantic", 1)]
    alone.trials = [Trial(t.seconds, 0.0021, t.digests, t.spent, t.passed) for t in alone.trials]
    assert [name for name in missed(found) if "client CPU" in name]
    del found.duel[Arm("semantic", 1)]
    assert [name for name in missed(found) if "client CPU" in name]


def test_a_duel_ends_when_its_interval_is_narrow_or_an_arm_is_gone() -> None:
    two = Arm("semantic", 2)
    duel = {ONE: measured(ONE, 15), two: measured(two, 15)}
    assert narrow(duel, 0.01)
    assert not narrow({ONE: measured(ONE, 5), two: measured(two, 5)}, 0.01)  # five are 93.75 % sure, not 95 %
    duel[two].trials = [trial(ms, 0) for ms in (9, 10, 11) * 5]
    assert not narrow(duel, 0.01)
    duel[two].error = "it died"
    assert narrow(duel, 0.01)


@pytest.mark.parametrize("error", ["", "PlanError: too large", "OutOfMemory: asked 5, 6, 7"])
def test_a_pool_that_is_too_small_must_say_the_arithmetic(error: str) -> None:
    found = larger()
    found.counts[Arm("semantic", 2)].error = error
    assert [name for name in missed(found) if "refuse it with the arithmetic" in name]


def test_without_a_measurement_there_is_no_bar_that_holds() -> None:
    """All arms with a policy failed, as with a Remora that has no placement."""
    found = results("gpt2-decode")
    for part in (found.policies, found.duel):
        for arm in part:
            if arm.policy:
                part[arm] = Measured(arm, error="TypeError: no placement")
    held = [bar.name for bar in judged(found) if bar.ok]
    assert len(held) == 1
    assert "outputs differ from local" in held[0]  # of the arms that did run


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--workload", "sead"], "no workload sead; there is: seed"),
        (["--policy", "best"], "no policy best; there is: semantic"),
        (["--url", "http://x"], "starts executors of its own"),
    ],
)
def test_what_it_does_not_know_is_refused(options: list[str], says: str) -> None:
    result = CliRunner().invoke(app, ["bench", "placement", *options])
    assert result.exit_code == 1
    assert says in " ".join(result.stderr.split())


def test_policies_are_those_of_the_interface() -> None:
    assert set(placement.POLICIES) == {
        "semantic", "data_aware", "least_loaded", "blind", "random", "split", "local", "explicit",
    }  # fmt: skip
