"""What is added up while a program runs on executors that are not there: programs, bytes, memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from remora.plan.devices import CLIENT, Pool
from remora.plan.duration import Duration
from remora.plan.forecast import Reads, Traffic
from remora.plan.memory import Footprint, footprint
from remora.plan.parts import Parts
from remora.plan.placed import needs
from remora.plan.schedule import Piece, schedule
from remora.plan.timeline import Timeline, Took
from remora.session.holdings import Holdings
from remora.session.ledger import Ledger
from remora.session.plans import Plan, Use
from remora.wire.limits import MAX_INLINE_NBYTES

GROWN = 1.01  # what is held is looked at again when it has grown so much,
FRESH = 2  # or when a plan runs for one of the first times, and has told what its values are
MAX_PROGRAMS = 100_000  # whose durations are kept


@dataclass(frozen=True)
class _Weighed:
    """A plan, which is kept so that its id stays its own. took: by its executors and what goes between them; uploads
    and the answer to the client are told apart from it. footprints: by executor."""

    plan: Plan
    took: Duration
    footprints: tuple[tuple[int, Footprint], ...]


class Account:
    """The totals of one session.

    Args:
        clock: seconds; what the estimate itself spends is taken out with `outside`.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self.pool, self.clock = pool, clock
        self.programs: list[Took] = []
        self.before_s = 0.0  # predicted, of all programs before this one
        self.busy_s = 0.0  # of it, the executors
        self.held: list[dict[str, int]] = [{} for _ in pool.devices]
        self.peaks = [0] * len(pool.devices)
        self._most = [0] * len(pool.devices)
        self._plans: dict[int, _Weighed] = {}  # by id
        self._moved: dict[tuple[int, int, str], Traffic] = {}
        self._timeline = Timeline()
        self._began_s = clock()
        self._outside_s = 0.0
        self._reads = self._guessed = self._returned_nbytes = 0
        self._where: Counter[str] = Counter()

    # -- time

    def outside(self, seconds: float) -> None:
        """The client spent this on the estimate, and would not in a real session."""
        self._outside_s += seconds

    def _now_s(self) -> float:
        return max(0.0, self.clock() - self._began_s - self._outside_s)

    def begins(self) -> None:
        """What was before is over. In the middle of a program: nothing."""
        if not self._timeline.started:
            self._began_s, self._outside_s = self.clock(), 0.0

    def segment(self, plan: Plan, nbytes: int, rows: int) -> None:
        """A segment was placed; `nbytes` of messages say so."""
        executors = sorted({part.executor for part in plan.parts})
        links = [self.pool.client[executor] for executor in executors]
        self._timeline.segment(self._now_s(), self._of(plan).took, links, nbytes, rows, plan.phase)

    def program_ends(self, executor: int | None, nbytes: int) -> None:
        """A sync; `nbytes` come back from an executor. None: the script is over."""
        if self._timeline.started:
            link = None if executor is None else self.pool.client[executor]
            took = self._timeline.ended(self._now_s(), link, nbytes)
            if len(self.programs) < MAX_PROGRAMS:
                self.programs.append(took)
            self.before_s += took.whole.seconds
            self.busy_s += took.executors.seconds
        self._timeline = Timeline()
        self.begins()

    @property
    def now_s(self) -> float:
        """Predicted, of everything so far."""
        return self.before_s + self._timeline.end_s

    @property
    def computed_s(self) -> float:
        """Of that, the executors' own."""
        return self.busy_s + self._timeline.executors.seconds

    # -- bytes

    def uploads(self, executor: int, residency: str, nbytes: int) -> None:
        """The client sends a value: in a message that goes anyway, or in a request that it waits for."""
        link = self.pool.client[executor]
        inline = nbytes <= MAX_INLINE_NBYTES
        seconds = nbytes / link.bytes_per_s if inline else link.seconds(nbytes) + link.latency_s
        self._move(CLIENT, executor, residency, nbytes, seconds)

    def pushes(self, source: int, target: int, nbytes: Mapping[str, int]) -> None:
        """One message with bytes of some residencies goes from executor to executor."""
        link, whole = self.pool.link(source, target), sum(nbytes.values())
        for residency, part in nbytes.items():
            share = part / whole if whole else 1 / len(nbytes)
            self._move(source, target, residency, part, link.seconds(whole) * share)

    def _move(self, source: int, target: int, residency: str, nbytes: int, seconds: float) -> None:
        key = source, target, str(residency)
        known = self._moved.get(key, Traffic(*key, 0, 0, 0.0, 0.0))
        seconds += known.seconds
        sigma_s = seconds * self.pool.link(source, target).sigma
        self._moved[key] = Traffic(*key, known.nbytes + nbytes, known.count + 1, seconds, sigma_s)

    def traffic(self) -> tuple[Traffic, ...]:
        """All bytes by way and residency, the client's first and most of them first."""
        return tuple(sorted(self._moved.values(), key=lambda flow: (flow.source != CLIENT, -flow.nbytes)))

    # -- reads

    def read(self, nbytes: int, certain: bool, line: str) -> None:
        self._reads += 1
        self._returned_nbytes += nbytes
        if not certain:
            self._guessed += 1
            self._where[line] += 1

    def reads(self) -> Reads:
        return Reads(self._reads, self._guessed, self._returned_nbytes, tuple(self._where.most_common()))

    # -- memory

    def weigh(self, holdings: Holdings, plan: Plan | None) -> None:
        """After a plan was placed: what is held, and what was at most while it ran."""
        held = holdings.held_nbytes
        for executor, needed in self._of(plan).footprints if plan is not None else ():
            peak = held[executor] - needed.kept_nbytes + needed.made_nbytes
            self.peaks[executor] = max(self.peaks[executor], peak)
        fresh = plan is not None and plan.ran.count <= FRESH
        for executor, nbytes in enumerate(held):
            self.peaks[executor] = max(self.peaks[executor], nbytes)
            most = self._most[executor]
            if nbytes > most * GROWN or (fresh and nbytes > most / GROWN):
                self._most[executor] = max(most, nbytes)
                self.held[executor] = by_residency(holdings, executor)

    def _of(self, plan: Plan) -> _Weighed:
        known = self._plans.get(id(plan))
        if known is None:
            known = self._plans[id(plan)] = _weighed(plan, self.pool)
        return known


def _weighed(plan: Plan, pool: Pool) -> _Weighed:
    inside = tuple(one for before in plan.transfers for one in before if one.source != CLIENT)
    needed = needs(plan.graph, Parts(plan.parts, inside))
    pieces = [
        Piece(part.executor, took, waits)
        for part, took, waits in zip(plan.parts, plan.predicted, needed, strict=True)
    ]
    rows: dict[int, list[int]] = {}
    for part in plan.parts:
        rows.setdefault(part.executor, []).extend(part.rows)
    found = [(executor, footprint(plan.graph, sorted(of_it))) for executor, of_it in rows.items()]
    return _Weighed(plan, schedule(pieces, pool).duration, tuple(found))


def by_residency(holdings: Holdings, executor: int) -> dict[str, int]:
    """Bytes that an executor holds by what they are, each memory once; '' for what nobody recognised."""
    storages: dict[int, tuple[int, str]] = {}
    for place in holdings.places.values():
        if executor not in place.homes:
            continue
        known = storages.get(place.storage.number)
        nbytes, residency = place.facts.nbytes, str(place.meaning.residency or "")
        if known is not None:
            nbytes, residency = max(nbytes, known[0]), known[1] or residency
        storages[place.storage.number] = nbytes, residency
    found: Counter[str] = Counter()
    for nbytes, residency in storages.values():
        found[residency] += nbytes
    return dict(found)


class Unmeasured(Ledger):
    """A ledger of what nobody measures: pushes go into the account. ran: the plan that ran last."""

    def __init__(self, account: Account, ticket: Callable[[], int]) -> None:
        super().__init__(account.pool, ticket)
        self.account = account
        self.ran: Plan | None = None

    def runs(self, use: Use, now_s: float, predicted: bool = False) -> list[tuple[int, int]]:
        use.plan.ran.count += 1
        self.ran = use.plan
        return []

    def uploads(self, segment: int, executor: int, nbytes: int, is_bulk: bool) -> None:
        """EstimatedSession counts uploads, when their readers have told what they are."""

    def pushes_to(self, source: int, target: int, names: tuple[int, ...], of: Counter[str]) -> int:
        self.account.pushes(source, target, of)
        return self._ticket()
