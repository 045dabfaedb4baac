"""What running plans has shown: seconds of parts and of transfers, bytes by what they are, programs by phase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from remora.ir.annotated import Phase
from remora.plan.devices import CLIENT, Pool
from remora.plan.duration import total
from remora.plan.record import Key, Record
from remora.session.holdings import Living
from remora.session.plans import Plan, Timed, Use
from remora.wire.messages import Marked, Pushed

TIMED_FIRST = (
    6  # runs of a plan that are timed, without the very first; later, those whose number is a power of two
)
MAX_PLANS = 1024  # that are told of
PHASES = tuple(phase.value for phase in Phase)
UNUSED = "unused"  # residency of an upload that no graph has read
MIXED = 0.25  # share of a program's rows from which on a phase is part of its name


class Way(NamedTuple):
    """Values of one residency that go one way. An end may be CLIENT."""

    source: int
    target: int
    residency: str


class Flow(NamedTuple):
    """Values of one residency that go one way in the programs of one phase."""

    phase: str
    way: Way


@dataclass(slots=True)
class Tally:
    """All of a flow. count: messages that held some of it. measured_s: None until one was measured."""

    nbytes: int = 0
    count: int = 0
    predicted_s: float = 0.0
    measured_s: float | None = None

    def add(self, other: Tally) -> None:
        self.nbytes += other.nbytes
        self.count += other.count
        self.predicted_s += other.predicted_s
        if other.measured_s is not None:
            self.measured_s = (self.measured_s or 0.0) + other.measured_s


@dataclass(slots=True)
class Pushing:
    """A push that is under way, to be answered. ways: the bytes of each in it. phase: of the program that it was
    part of, None while that one goes on."""

    source: int
    target: int
    names: tuple[int, ...]
    ways: Counter[Way]
    phase: str | None = None

    def shares(self) -> dict[Way, float]:
        """Of each in the bytes; they add up to 1."""
        whole = self.ways.total()
        return {way: nbytes / whole if whole else 1 / len(self.ways) for way, nbytes in self.ways.items()}


@dataclass(slots=True)
class Upload:
    """Bytes of the client that an executor was given.

    nbytes: that went there, fewer than the value's if it was there already. sending: whether they still have to go.
    residency: what the first graph that read it found it to be; None: none has. phase: as of Pushing.
    """

    executor: int
    nbytes: int
    sending: bool
    measured_s: float | None = None
    residency: str | None = None
    phase: str | None = None


@dataclass(slots=True)
class PhaseTotal:
    """All programs of a phase. Predicted for executors and links alone; measured by the client, its own work too.

    runs: of each plan, by its id(). last: the last program all of whose plans had run before. living: what
    lived after step `living_at`.
    """

    steps: int = 0
    predicted_s: float = 0.0
    measured_s: float = 0.0
    runs: dict[int, int] = field(default_factory=dict)
    last: tuple[Use, ...] = ()
    living: tuple[Living, ...] = ()
    living_at: int = 0


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
        self.plans: list[Plan] = []  # that ran, in the order in which they first did
        self.forgotten = 0  # older ones
        self.phases: dict[str, PhaseTotal] = {}
        self.pushes: dict[int, Pushing] = {}  # by ticket
        self.uploading: dict[int, Upload] = {}  # by segment: not sent yet, or not used yet
        self.there_nbytes = 0  # of uploads that executors had already
        self._flows: dict[Flow, Tally] = {}
        self._open: dict[Way, Tally] = {}  # of the program that goes on
        self._phase = ""  # of the last program that ended
        self._ticket = ticket
        self._marks: dict[int, tuple[_Timing, list[tuple[int, int]]]] = {}
        self._program: list[Use] = []  # since the last sync
        self._fresh = False  # whether one of them ran for the first time
        self._began_s: float | None = None

    # -- runs

    def runs(self, use: Use, now_s: float, predicted: bool = False) -> list[tuple[int, int]]:
        """A plan is about to run. Returns the tickets of marks to put around each part, none if it is not timed.

        predicted: it may have run already, so that marks would time nothing, and break the prediction.
        """
        if self._began_s is None:
            self._began_s = now_s
        plan = use.plan
        self._program.append(use)
        ran = plan.ran
        if not ran.count:
            self._fresh = True
            self.plans.append(plan)
            if len(self.plans) > MAX_PLANS:
                oldest = self.plans.pop(0)
                self.forgotten += 1
                for phase in self.phases.values():
                    phase.runs.pop(id(oldest), None)
        ran.count += 1
        if predicted or ran.count == 1:
            return []
        if ran.count > TIMED_FIRST and ran.count & (ran.count - 1):
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
        plan.ran.timed.append(Timed(total(predicted), tuple(seconds)))

    # -- programs

    def program_ends(self, now_s: float) -> PhaseTotal | None:
        """A sync has been answered. Returns the phase if what lives now is to be kept there: `keep_living`."""
        began_s = self._began_s
        ran, fresh = self._ends()
        if began_s is None:
            return None
        phase = self.phases.setdefault(self._phase, PhaseTotal())
        phase.steps += 1
        phase.measured_s += now_s - began_s
        for use in ran:
            plan = use.plan
            phase.predicted_s += plan.whole.seconds
            phase.runs[id(plan)] = phase.runs.get(id(plan), 0) + 1
        if not fresh or not phase.last:
            phase.last = tuple(ran)
        return phase if phase.steps & (phase.steps - 1) == 0 else None

    def program_fails(self) -> None:
        """A failure came in place of the answer: how long that took says nothing."""
        self._ends()

    def _ends(self) -> tuple[list[Use], bool]:
        """Everything that the program moved gets its phase. Returns what ran, and whether a plan of it is new."""
        (ran, self._program), (fresh, self._fresh) = (self._program, []), (self._fresh, False)
        began_s, self._began_s = self._began_s, None
        if began_s is None:
            return [], False
        self._phase = phase_of(ran)
        moving: list[Pushing | Upload] = [*self.pushes.values(), *self.uploading.values()]
        for one in moving:
            if one.phase is None:
                one.phase = self._phase
        for way, tally in self._open.items():
            self._flows.setdefault(Flow(self._phase, way), Tally()).add(tally)
        self._open.clear()
        return ran, fresh

    # -- transfers

    def flows(self) -> dict[Flow, Tally]:
        """All that moved so far; what the program that goes on moved is of its phase so far."""
        phase = phase_of(self._program) if self._program else self._phase
        found: dict[Flow, Tally] = {}
        open_ = {Flow(phase, way): tally for way, tally in self._open.items()}
        for flow, tally in (*self._flows.items(), *open_.items()):
            found.setdefault(flow, Tally()).add(tally)
        return found

    def uploads(self, segment: int, executor: int, nbytes: int, is_bulk: bool) -> None:
        """An executor is given a value of the client. It is tallied when it has been sent, and used."""
        self.uploading[segment] = Upload(executor, nbytes, is_bulk)

    def sent(self, segment: int, nbytes: int, seconds: float) -> None:
        """The bytes of an upload are there; `nbytes` of them had to go."""
        upload = self.uploading.get(segment)
        if upload is not None and upload.sending:
            self.there_nbytes += upload.nbytes - nbytes
            upload.nbytes, upload.measured_s, upload.sending = nbytes, seconds, False
            self._tally(segment, upload)

    def used(self, segment: int, residency: str) -> None:
        """A graph has read an upload, or it has ended without that, which makes it `unused`."""
        upload = self.uploading.get(segment)
        if upload is not None and upload.residency is None:
            upload.residency, upload.phase = residency, None
            self._tally(segment, upload)

    def _tally(self, segment: int, upload: Upload) -> None:
        if upload.sending or upload.residency is None:
            return
        del self.uploading[segment]
        way = Way(CLIENT, upload.executor, upload.residency)
        tally = self._add(way, upload.nbytes, upload.phase)
        if upload.measured_s is not None:
            tally.measured_s = (tally.measured_s or 0.0) + upload.measured_s

    def returns(self, executor: int, residency: str, nbytes: int) -> None:
        """A value went to the client, at the end of the program that has just ended."""
        self._add(Way(executor, CLIENT, residency), nbytes, self._phase)

    def pushes_to(self, source: int, target: int, names: tuple[int, ...], of: Counter[str]) -> int:
        """Values go from executor to executor; `of`: bytes by residency. Returns the push's ticket."""
        ways = Counter({Way(source, target, what): nbytes for what, nbytes in of.items()})
        ticket = self._ticket()
        push = self.pushes[ticket] = Pushing(source, target, names, ways)
        seconds = self.pool.link(source, target).seconds(ways.total())
        for way, share in push.shares().items():
            tally = self._tally_of(way, None)
            tally.nbytes += ways[way]
            tally.count += 1
            tally.predicted_s += seconds * share
        return ticket

    def pushed(self, answer: Pushed) -> None:
        """A push has arrived: its seconds are shared out by bytes."""
        push = self.pushes.pop(answer.ticket, None)
        if push is None:
            return
        for way, share in push.shares().items():
            tally = self._tally_of(way, push.phase)
            tally.measured_s = (tally.measured_s or 0.0) + answer.seconds * share

    def _add(self, way: Way, nbytes: int, phase: str | None) -> Tally:
        tally = self._tally_of(way, phase)
        tally.nbytes += nbytes
        tally.count += 1
        tally.predicted_s += self.pool.link(way.source, way.target).seconds(nbytes)
        return tally

    def _tally_of(self, way: Way, phase: str | None) -> Tally:
        """phase: None for the program that goes on."""
        if phase is None:
            return self._open.setdefault(way, Tally())
        return self._flows.setdefault(Flow(phase, way), Tally())


def phase_of(ran: list[Use]) -> str:
    """What a program does: the phases of most of its rows, those of a phase counted; '' if no row has one."""
    rows: dict[str, int] = {}
    for use in ran:
        for phase, n_rows in use.plan.phases.items():
            rows[phase] = rows.get(phase, 0) + n_rows
    if len(rows) < 2:
        return next(iter(rows), "")
    least = MIXED * sum(rows.values())
    return "+".join(phase for phase in PHASES if rows.get(phase, 0) >= least)
