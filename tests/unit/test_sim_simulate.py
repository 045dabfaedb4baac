"""Simulated sessions against what can be computed by hand, and against themselves."""

from __future__ import annotations

import random
import tracemalloc
from statistics import median

import pytest

from remora.ops.cost import Kind
from remora.plan.devices import Device, Link, Pool, Rates, flat
from remora.plan.duration import Duration
from remora.runahead.ahead import RunningAhead
from remora.runahead.predictor import Agreement
from remora.sim import simulate, tape
from remora.sim.script import Commit, Ends, Lane, Say, Script, Told, Wait, Work
from remora.sim.simulate import Load, Luck, World
from remora.wire.messages import Define, Run, Site, ToExecutor

RATES = Rates(0.0, flat(1e9), flat(1e9))
LINK = Link(1e9, 0.005)


def _pool(link: Link = LINK) -> Pool:
    return Pool((Device("d", 1 << 30, 0.0, 0.0, 0.0, {Kind.MOVE: RATES, Kind.PRODUCT: RATES}),), {}, (link,))


def _loop(steps: int, client_s: float, took_s: float, answer: int = 7, run_ahead: bool = True) -> Script:
    """A program that asks for one value a turn: the same message each time, but for the segment's number."""
    messages: list[ToExecutor] = [Define(0, b""), Site(0, 0)]
    told = [Told(), Told()]
    acts: list[object] = [Say(0, 0, 50), Say(0, 1, 10)]
    for step in range(steps):
        first = (0, 1, 1, 0, 0) if not step else None
        keep = (0, 0) if not step else None
        messages.append(Run(step + 1, 0, first, None, keep, None, (0, 0), step + 1))
        told.append(Told(0, 100, answer))
        number = len(messages) - 1
        acts += [Work(client_s), Say(0, number, 20), Commit(True), Wait(0, number), Ends("decode")]
    lane = Lane(told, [one.reply_nbytes >= 0 for one in told])

    def like(message: ToExecutor, ends: bool) -> int:
        lane.told.append(Told(0, 100, -len(lane.told)))
        lane.ends.append(ends)
        return len(lane.told) - 1

    if run_ahead:
        lane.tape = tape.record(messages, like)
    return Script(acts, [lane], [Duration(took_s, {"d": took_s / 10})], "local")  # type: ignore[arg-type]


def test_without_run_ahead_a_step_is_the_round_trip_and_both_ends_work() -> None:
    outcome = World(_pool(), 1, Load()).run(_loop(10, 0.001, 0.002, run_ahead=False))
    steps = [program.seconds for program in outcome.programs]
    assert steps[1:] == pytest.approx([0.013] * 9, rel=1e-3)
    assert outcome.busy_s == [pytest.approx(0.020)]
    assert outcome.n_programs == 10


@pytest.mark.parametrize(("client_s", "took_s"), [(0.001, 0.002), (0.002, 0.001)])
def test_run_ahead_hides_the_round_trip_behind_the_slower_end(client_s: float, took_s: float) -> None:
    outcome = World(_pool(), 1, Load()).run(_loop(400, client_s, took_s))
    steady = [program.seconds for program in outcome.programs[200:]]
    assert median(steady) == pytest.approx(0.002, rel=0.02)
    # a window that shrinks until the client waits, and doubles then, costs some waits (runahead/depth.py)
    assert 0.00199 < sum(steady) / len(steady) < 0.0025
    assert outcome.sent_nbytes < 400 * 60


def test_one_server_with_poisson_arrivals_queues_as_the_formula_says() -> None:
    """M/D/1: the mean wait is rho * service / (2 * (1 - rho))."""
    service_s, rho = 0.001, 0.7
    load = Load(20_000, service_s / rho)
    outcome = World(_pool(Link(1e12, 0.0)), 1, load, seed=3).run(_loop(1, 0.0, service_s, run_ahead=False))
    expected_s = rho * service_s / (2 * (1 - rho))
    assert outcome.queued_s[0] / outcome.frames[0] == pytest.approx(expected_s, rel=0.1)
    assert outcome.busy_s[0] / outcome.seconds == pytest.approx(rho, rel=0.05)


def test_the_same_seed_gives_the_same_outcome_and_another_one_does_not() -> None:
    script = _loop(12, 0.001, 0.002)
    outcomes = [World(_pool(), 6, Load(50, 0.002), seed).run(script) for seed in (1, 1, 2)]
    assert repr(outcomes[0]) == repr(outcomes[1])
    assert repr(outcomes[0]) != repr(outcomes[2])


def test_luck_moves_durations_by_their_errors() -> None:
    script = _loop(50, 0.0, 0.002, run_ahead=False)
    seconds = [World(_pool(), 1, Load(), 0, Luck(seed)).run(script).busy_s[0] for seed in range(1, 30)]
    spread = (sum((one / 50 - 0.002) ** 2 for one in seconds) / len(seconds)) ** 0.5
    assert 0.00012 < spread < 0.0003
    assert World(_pool(), 1, Load(), 0, Luck(0)).run(script).busy_s[0] == pytest.approx(0.1)


def test_memory_stays_flat_while_sessions_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "MAX_SAMPLES", 100)
    script = _loop(6, 0.001, 0.001)
    peaks = []
    for sessions in (200, 800):
        tracemalloc.start()
        outcome = World(_pool(), 100, Load(sessions, 0.0005), 0).run(script)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert outcome.n_programs == 6 * sessions
    assert peaks[1] < 1.5 * peaks[0]  # of four times the sessions


def test_a_tape_says_what_a_predictor_says() -> None:
    """Random programs with branches: for RunningAhead there is no difference between the two."""
    rng = random.Random(5)
    messages: list[ToExecutor] = [Define(0, b""), Site(0, 0), Site(1, 0)]
    for number in range(1, 300):
        site = 0 if rng.random() < 0.95 else 1
        messages.append(Run(number, site, None, None, None, None, (0, 0), number))
    phantoms: list[ToExecutor] = []

    def like(message: ToExecutor, ends: bool) -> int:
        phantoms.append(message)
        return len(messages) + len(phantoms) - 1

    known = tape.record(messages, like)
    everything = [*messages, *phantoms]
    ends = [isinstance(message, Run) for message in everything]
    live: RunningAhead[None] = RunningAhead(8)
    taped: RunningAhead[None] = RunningAhead(8)
    taped.predictor = tape.TapePredictor(known, ends)  # type: ignore[assignment]
    agreed = 0
    for number, message in enumerate(messages):
        for _ in range(rng.randrange(5)):
            coming, number_coming = live.coming(), taped.coming()
            assert (coming is None) == (number_coming is None)
            if coming is None:
                break
            assert everything[number_coming] == coming  # type: ignore[call-overload]
            live.ran(None)
            taped.ran(None)
            answer = rng.randrange(2)
            live.answered(answer)
            taped.answered(answer)
        said, undone = live.said(message)
        said_taped, undone_taped = taped.said(number)  # type: ignore[arg-type]
        agreed += said is not None
        assert (said is None, len(undone), live.epoch) == (said_taped is None, len(undone_taped), taped.epoch)
    assert agreed > 50
    assert known.agreements.count(Agreement.OTHER) > 10
