"""A simulated executor: frames wait in a queue, one at a time is acted upon, and between frames it runs ahead.

What runs ahead, how far, and what becomes of it is decided by runahead/ahead.py, as in executor/worker/ahead.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from remora.runahead.ahead import Ran, RunningAhead
from remora.sim.agenda import Agenda
from remora.sim.script import FREE, Lane, Told
from remora.wire.limits import MAX_DEPTH, MAX_INLINE_NBYTES

if TYPE_CHECKING:
    from remora.sim.client import Client

UNDONE_NBYTES = 4


class Confirmed(NamedTuple):
    """The client said the next messages as they are predicted."""

    said: int
    lead: int


Item = int | Confirmed
"""A message's number in its lane, FREE, or a confirmation."""


class Answer(NamedTuple):
    """What goes back. epoch: of an early one; None: it was asked for. number: of the message that asks."""

    number: int
    nbytes: int
    epoch: int | None = None
    depth: int = 0


class Served:
    """One lane of one session, at its executor."""

    __slots__ = ("ahead", "arrived", "client", "held", "index", "lane", "left", "queued")

    def __init__(self, client: Client, index: int, lane: Lane) -> None:
        self.client, self.index, self.lane = client, index, lane
        self.arrived: set[int] = set()  # pushes
        self.held: deque[Sequence[Item]] | None = None  # frames that wait for pushes
        self.left = self.queued = False  # queued: to run ahead
        self.ahead: Any = None  # a RunningAhead[bool] of numbers, where a worker's is of messages
        if lane.tape is not None:
            self.ahead = RunningAhead(MAX_DEPTH)
            self.ahead.predictor = lane.predictor()


class Executor:
    """One device with its queue."""

    __slots__ = (
        "_agenda", "_ahead", "_at_s", "_busy", "_queue", "_replies", "busy_s", "frames", "most_queued", "queued_s",
        "sessions", "wasted_s",
    )  # fmt: skip

    def __init__(self, agenda: Agenda) -> None:
        self._agenda = agenda
        self._queue: deque[tuple[float, Served, Sequence[Item]]] = deque()
        self._ahead: deque[Served] = deque()  # that may have something to run ahead, in turn
        self._busy = False
        self._at_s = 0.0
        self._replies: list[Answer] = []
        self.sessions = 0
        self.frames = 0
        self.busy_s = self.queued_s = self.wasted_s = 0.0
        self.most_queued = 0

    # -- frames

    def receive(self, served: Served, items: Sequence[Item]) -> None:
        self._queue.append((self._agenda.now_s, served, items))
        self.most_queued = max(self.most_queued, len(self._queue))
        if not self._busy:
            self._next()

    def push_arrived(self, served: Served, number: int) -> None:
        served.arrived.add(number)
        if served.held is None:
            return
        held, served.held = served.held, None
        for items in reversed(held):
            self._queue.appendleft((self._agenda.now_s, served, items))
        if not self._busy:
            self._next()

    def leave(self, served: Served) -> None:
        """A session ends; what it said last is still on its way."""
        served.left = True

    def _next(self) -> None:
        while self._queue:
            came_s, served, items = self._queue.popleft()
            if served.held is not None:
                served.held.append(items)
                continue
            self.frames += 1
            self.queued_s += self._agenda.now_s - came_s
            self._busy, self._at_s = True, self._agenda.now_s
            self._frame(served, items)
            return
        self._busy = self._run_ahead()

    def _ends(self, served: Served, replies: list[Answer]) -> None:
        if replies and not served.left:
            served.client.lanes[served.index].answer(replies)
        self._next()

    def _spend(self, seconds: float) -> None:
        self._at_s += seconds
        self.busy_s += seconds

    def _frame(self, served: Served, items: Sequence[Item]) -> None:
        self._replies = []
        for at, item in enumerate(items):
            if not self._act(served, item):
                served.held = deque([items[at:]])
                break
        self._agenda.at(self._at_s, self._ends, served, self._replies)
        if served.ahead is not None and not served.queued:
            served.queued = True
            self._ahead.append(served)

    def _act(self, served: Served, item: Item) -> bool:
        """Whether it could be acted upon; else it waits for a push."""
        if isinstance(item, Confirmed):
            self._confirmed(served, item)
        elif item != FREE:
            if not served.arrived.issuperset(served.lane.told[item].awaits):
                return False
            served.arrived.difference_update(served.lane.told[item].awaits)
            self._said(served, item)
        return True

    def _said(self, served: Served, number: int) -> None:
        ran: Ran[bool] | None = None
        if served.ahead is not None:
            ran, undone = served.ahead.said(number)
            if undone:
                for each in undone:
                    self.wasted_s += self._seconds(served, served.lane.told[each.message])
                if not served.left:
                    programs = sum(each.ends for each in undone) + (not undone[0].ends)
                    served.client.lanes[served.index].undone(programs)
                self._replies.append(Answer(-1, UNDONE_NBYTES))
        self._certain(served, number, ran)

    def _confirmed(self, served: Served, item: Confirmed) -> None:
        assert served.ahead is not None
        served.ahead.feedback(item.lead)
        for _ in range(item.said):
            number, ran = served.ahead.confirmed()
            self._certain(served, number, ran)

    def _certain(self, served: Served, number: int, ran: Ran[bool] | None) -> None:
        """A message that the client has said; ran: ahead of it. Its `undo` says that its answer waits here."""
        told = served.lane.told[number]
        if ran is None:
            self._spend(self._seconds(served, told))
            if told.reply_nbytes >= 0 and served.ahead is not None:
                served.ahead.answered(told.answer)
        if told.push is not None and not served.left:
            self._agenda.at(self._at_s, served.client.push, served.index, told.push)
        if told.reply_nbytes >= 0 and (ran is None or ran.undo):
            self._replies.append(Answer(number, told.reply_nbytes))

    def _seconds(self, served: Served, told: Told) -> float:
        return served.client.seconds[told.took] if told.took >= 0 else 0.0

    # -- ahead

    def _run_ahead(self) -> bool:
        """Runs something that a session is going to ask for; whether there was something."""
        for _ in range(len(self._ahead)):
            served = self._ahead[0]
            ahead = served.ahead
            number = ahead.coming() if ahead is not None and served.held is None and not served.left else None
            if ahead is None or number is None:
                self._ahead.popleft().queued = False  # it comes back with its next frame
                continue
            self._ahead.rotate(-1)
            told = served.lane.told[number]
            late = told.reply_nbytes > MAX_INLINE_NBYTES
            ahead.ran(late)
            replies = []
            if told.reply_nbytes >= 0:
                ahead.answered(told.answer, late)
                if not late:
                    replies.append(Answer(number, told.reply_nbytes, ahead.epoch, ahead.depth.programs))
            self._at_s = self._agenda.now_s
            self._spend(self._seconds(served, told))
            self._agenda.at(self._at_s, self._ends, served, replies)
            return True
        return False
