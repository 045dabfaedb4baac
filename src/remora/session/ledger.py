"""What running plans has shown: seconds of parts and of transfers, bytes by what they are, programs by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from remora.plan.devices import CLIENT, Pool
from remora.plan.duration import total
from remora.plan.record import Key, Record
from remora.session.plans import Plan, Timed
from remora.wire.messages import Marked, Pushed

TIMED_FIRST = (
    6  # runs of a plan that are timed, without the very first; later, those whose number is a power of two
)


class Flow(NamedTuple):
    """Values of one residency that go one way in one phase. An end may be CLIENT."""

    phase: str
    source: int
    target: int
    residency: str


@dataclass(slots=True)
class Tally:
    """All of a flow. count: messages that held some of it. measured_s: None until one was measured."""

    nbytes: int = 0
    count: int = 0
    predicted_s: float = 0.0
    measured_s: float | None = None


@dataclass(frozen=True, slots=True)
class Pushing:
    """A push that is under way, to be answered. flows: the bytes of each in it."""

    source: int
    target: int
    names: tuple[int, ...]
    flows: Counter[Flow]


@dataclass(slots=True)
class PhaseTotal:
    """All programs of a phase. Predicted for executors and links alone; measured by the client, its own work too."""

    steps: int = 0
    predicted_s: float = 0.0
    measured_s: float = 0.0


@dataclass
class _Timing:
    """A run that is being timed: by part, the marks before and after."""

    plan: Plan
    left: int
    busy_s: dict[int, float] = field(default_factory=dict)  # by mark

    def spent_s(self, pairs: list[tuple[int, int]]) -> list[float]:
        return [self.busy_s[after] - self.busy_s[before] for before, after in pairs]


class Ledger:
    """Pure bookkeeping of one session.

    Args:
        ticket: gives a fresh ticket.
    """

    def __init__(self, pool: Pool, ticket: Callable[[], int]) -> None:
        self.pool = pool
        self.record = Record()
        self.flows: dict[Flow, Tally] = {}
        self.phases: dict[str, PhaseTotal] = {}
        self.pushes: dict[int, Pushing] = {}  # by ticket
        self._ticket = ticket
        self._marks: dict[int, tuple[_Timing, list[tuple[int, int]]]] = {}
        self._program: list[Plan] = []  # that ran since the last sync
        self._began_s: float | None = None
        self._phase = ""  # of the last program

    # -- runs

    def runs(self, plan: Plan, now_s: float) -> list[tuple[int, int]]:
        """A plan is about to run. Returns the tickets of marks to put around each part, none if it is not timed."""
        if self._began_s is None:
            self._began_s = now_s
        self._program.append(plan)
        ran = plan.ran
        ran.count += 1
        if ran.count == 1 or not (ran.count <= TIMED_FIRST or ran.count & (ran.count - 1) == 0):
            return []
        pairs = [(self._ticket(), self._ticket()) for _ in plan.parts]
        timing = _Timing(plan, 2 * len(pairs))
        for pair in pairs:
            for mark in pair:
                self._marks[mark] = timing, pairs
        return pairs

    def marked(self, mark: Marked) -> bool:
        """An executor has passed a mark; whether it is one of these."""
        known = self._marks.pop(mark.ticket, None)
        if known is None:
            return False
        timing, pairs = known
        timing.busy_s[mark.ticket] = mark.busy_s
        timing.left -= 1
        if not timing.left:
            self._learn(timing.plan, timing.spent_s(pairs))
        return True

    def _learn(self, plan: Plan, seconds: list[float]) -> None:
        predicted = []
        for part, duration, measured_s in zip(plan.parts, plan.predicted, seconds, strict=True):
            device = self.pool.devices[part.executor]
            key = Key(part.template.id, plan.bucket, device.name)
            model = duration.less(device.run_s)  # which is not in the executor's busy time
            predicted.append(self.record.correct(key, model))
            self.record.add(key, model.seconds, measured_s)
        plan.ran.timed.append(Timed(total(predicted), sum(seconds)))

    # -- programs

    def program_ends(self, now_s: float) -> None:
        """A sync has been answered."""
        began_s, self._began_s = self._began_s, None
        ran, self._program = self._program, []
        if began_s is None:
            return
        largest = max(ran, key=lambda plan: len(plan.graph.rows))
        self._phase = largest.phase
        phase = self.phases.setdefault(largest.phase, PhaseTotal())
        phase.steps += 1
        phase.measured_s += now_s - began_s
        phase.predicted_s += sum(plan.whole.seconds for plan in ran)

    # -- transfers

    def uploads(self, executor: int, residency: str, nbytes: int) -> None:
        """Bytes go from the client to an executor."""
        phase = self._program[-1].phase if self._program else ""
        self._add(Flow(phase, CLIENT, executor, residency), nbytes)

    def returns(self, executor: int, residency: str, nbytes: int) -> None:
        """Bytes come from an executor to the client."""
        self._add(Flow(self._phase, executor, CLIENT, residency), nbytes)

    def pushes_to(
        self, source: int, target: int, names: tuple[int, ...], of: Counter[tuple[str, str]]
    ) -> int:
        """Values go from executor to executor; `of`: bytes by phase and residency. Returns the push's ticket."""
        flows = Counter({Flow(phase, source, target, what): nbytes for (phase, what), nbytes in of.items()})
        ticket = self._ticket()
        self.pushes[ticket] = Pushing(source, target, names, flows)
        for flow, nbytes in flows.items():
            self._add(flow, nbytes)
        return ticket

    def _add(self, flow: Flow, nbytes: int) -> None:
        tally = self.flows.setdefault(flow, Tally())
        tally.nbytes += nbytes
        tally.count += 1
        tally.predicted_s += self.pool.link(flow.source, flow.target).seconds(nbytes)

    def pushed(self, answer: Pushed) -> None:
        """A push has arrived: its seconds are shared out by bytes."""
        push = self.pushes.pop(answer.ticket, None)
        if push is None:
            return
        whole = max(1, push.flows.total())
        for flow, nbytes in push.flows.items():
            tally = self.flows[flow]
            share = nbytes / whole if push.flows.total() else 1.0 / len(push.flows)
            tally.measured_s = (tally.measured_s or 0.0) + answer.seconds * share
