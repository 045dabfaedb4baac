"""A simulated client: follows a script, says what is not predicted, waits for what it asked for.

What it leaves unsaid is decided by runahead/saying.py, as in session/ahead.py; answers are taken as in session/link.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from remora.plan.devices import CLIENT
from remora.runahead.saying import FEW_EARLY, Saying
from remora.sim.agenda import Agenda
from remora.sim.executor import Answer, Confirmed, Executor, Item, Served
from remora.sim.network import Channel, Network, Route
from remora.sim.script import FREE, Commit, Ends, Push, Say, Script, Upload, Wait, Work
from remora.wire.limits import MAX_INLINE_NBYTES

FRAME_NBYTES = 18  # envelope and WebSocket header
CONFIRM_NBYTES = 4
REQUEST_NBYTES = 400  # of an HTTP request's or answer's head


class LaneEnd:
    """A client's end of one lane."""

    __slots__ = (
        "_client", "_down", "_early", "_ends", "_inbox", "_outbox", "_outbox_nbytes", "_saying", "_up", "_values",
        "executor", "received_nbytes", "sent_nbytes", "served", "wasted",
    )  # fmt: skip

    def __init__(self, client: Client, index: int, executor: Executor, up: Channel, down: Channel) -> None:
        lane = client.script.lanes[index]
        self._client, self.executor, self._up, self._down = client, executor, up, down
        self.served = Served(client, index, lane)
        self._ends = lane.ends
        self._outbox: list[Item] = []
        self._outbox_nbytes = 0  # but for confirmations
        self._early: dict[int, int] = {}
        self._inbox: list[Answer] = []  # early answers that nobody has looked at
        self._values: dict[int, int] = {}
        self._saying: Saying[int] | None = None
        if lane.tape is not None:
            self._saying = Saying(lane.predictor(), self._early, Confirmed)
        self.wasted = self.sent_nbytes = self.received_nbytes = 0

    # -- out

    def say(self, number: int, nbytes: int) -> None:
        if self._saying is None:
            self._outbox.append(number)
        elif number == FREE:
            self._saying.say_unpredicted(number, self._outbox)
        elif not self._saying.say(number, self._ends[number], self._outbox):
            return
        self._outbox_nbytes += nbytes

    def knows(self, number: int) -> bool:
        """Whether a question's answer is here and the executor need not hear of it yet, as session/lane.py."""
        if self._saying is None or number not in self._early:
            return False
        if not self._saying.due():
            return True
        self.poll()
        return False

    def commit(self, asks: bool) -> None:
        if self._saying is not None and (asks or self._outbox):
            self._saying.write(self._outbox)
        if self._outbox:
            confirmations = sum(isinstance(item, Confirmed) for item in self._outbox)
            nbytes = FRAME_NBYTES + self._outbox_nbytes + CONFIRM_NBYTES * confirmations
            self.sent_nbytes += nbytes
            self._up.send(nbytes, self.executor.receive, self.served, self._outbox)
            self._outbox, self._outbox_nbytes = [], 0

    # -- in

    def answer(self, replies: Sequence[Answer]) -> None:
        """The executor answers: a frame leaves there. What is too large for one is asked for once more."""
        inline = [min(reply.nbytes, MAX_INLINE_NBYTES) for reply in replies]
        nbytes = FRAME_NBYTES + sum(
            REQUEST_NBYTES if reply.nbytes > MAX_INLINE_NBYTES else size
            for reply, size in zip(replies, inline, strict=True)
        )
        self._down.send(nbytes, self._arrived, replies, nbytes)

    def _arrived(self, replies: Sequence[Answer], nbytes: int) -> None:
        self.received_nbytes += nbytes
        for reply in replies:
            if reply.epoch is not None:
                self._inbox.append(reply)
            elif reply.number >= 0:
                self._values[reply.number] = reply.nbytes
        self._client.look(self)

    def undone(self, programs: int) -> None:
        self.wasted += programs

    def poll(self) -> None:
        for reply in self._inbox:
            assert self._saying is not None
            assert reply.epoch is not None
            if self._saying.hears(reply.epoch, reply.depth):
                self._early[reply.number] = reply.nbytes
        self._inbox.clear()

    def take(self, number: int) -> int | None:
        """Bytes of an answer that is here; None: it is not."""
        nbytes = self._early.pop(number, None)
        return nbytes if nbytes is not None else self._values.pop(number, None)

    @property
    def has_few(self) -> bool:
        return len(self._early) < FEW_EARLY

    # -- bulk

    def fetch(self, nbytes: int, then: Callable[[], None]) -> None:
        """A large answer's bytes, by a request of their own."""
        up, down = self._up.route, self._down.route
        self.sent_nbytes += REQUEST_NBYTES
        self.received_nbytes += nbytes
        network = self._client.network
        network.send(up, REQUEST_NBYTES, network.send, down, nbytes, then)

    def upload(self, nbytes: int, requests: int, then: Callable[[], None]) -> None:
        """Requests one after the other; the last one carries the bytes."""
        up, down, network = self._up.route, self._down.route, self._client.network
        last = requests <= 1
        size = REQUEST_NBYTES + (nbytes if last else 0)
        self.sent_nbytes += size
        after: tuple[object, ...] = (then,) if last else (self.upload, nbytes, requests - 1, then)
        network.send(up, size, network.send, down, REQUEST_NBYTES, *after)


class Client:
    """One session. done: told of it when it ends.

    Args:
        seconds: of the script's durations, as they are in this simulation. slowness: of its own work.
    """

    __slots__ = (
        "_act", "_agenda", "_began_s", "_done", "_waits_for", "_waits_since_s", "began_s", "lanes", "network",
        "on_program", "ports", "pushed_nbytes", "routes", "script", "seconds", "slowness", "waited_s",
    )  # fmt: skip

    def __init__(
        self,
        agenda: Agenda,
        network: Network,
        script: Script,
        seconds: Sequence[float],
        executors: Sequence[Executor],
        routes: Callable[[int, int], Route],
        slowness: float = 1.0,
        done: Callable[[Client], None] = lambda client: None,
        on_program: Callable[[Client, Ends, float], None] = lambda client, ends, seconds: None,
    ) -> None:
        self._agenda, self.network, self.script, self.seconds = agenda, network, script, seconds
        self.routes, self.slowness, self._done, self.on_program = routes, slowness, done, on_program
        self.lanes = [
            LaneEnd(
                self,
                at,
                one,
                *(Channel(agenda, network, way) for way in (routes(CLIENT, at), routes(at, CLIENT))),
            )
            for at, one in enumerate(executors)
        ]
        self._act = 0
        self._waits_for: tuple[LaneEnd, int] | None = None
        self._waits_since_s = 0.0
        self.waited_s = 0.0
        self.pushed_nbytes = 0
        self.began_s = self._began_s = agenda.now_s

    def go(self) -> None:
        """On with the script, until something has to be waited for."""
        acts = self.script.acts
        while self._act < len(acts):
            act = acts[self._act]
            self._act += 1
            if type(act) is Say:
                self.lanes[act.lane].say(act.number, act.nbytes)
            elif type(act) is Work:
                self._agenda.after(act.seconds * self.slowness, self.go)
                return
            elif type(act) is Commit:
                asks = act.asks and not self._knows_what_comes()
                for lane in self.lanes:
                    lane.commit(asks)
            elif type(act) is Wait:
                if not self._wait(self.lanes[act.lane], act.number):
                    return
            elif type(act) is Upload:
                self.lanes[act.lane].upload(act.nbytes, act.requests, self.go)
                return
            elif type(act) is Ends:
                self.on_program(self, act, self._agenda.now_s - self._began_s)
                self._began_s = self._agenda.now_s
        for lane in self.lanes:
            lane.executor.leave(lane.served)
        self._done(self)
        self.lanes.clear()  # nothing goes in a circle, so memory is free at once

    def _knows_what_comes(self) -> bool:
        """Whether it has the answers that it waits for next."""
        waits = False
        for act in itertools.islice(self.script.acts, self._act, None):
            if not isinstance(act, Wait):
                break
            waits = True
            if not self.lanes[act.lane].knows(act.number):
                return False
        return waits

    def _wait(self, lane: LaneEnd, number: int) -> bool:
        """Whether there is nothing to wait for."""
        if lane.has_few:
            lane.poll()
        nbytes = lane.take(number)
        if nbytes is None:
            self._waits_for, self._waits_since_s = (lane, number), self._agenda.now_s
            return False
        if nbytes > MAX_INLINE_NBYTES:
            lane.fetch(nbytes, self.go)
            return False
        return True

    def look(self, lane: LaneEnd) -> None:
        """Something has arrived."""
        if self._waits_for is None or self._waits_for[0] is not lane:
            return
        _, number = self._waits_for
        lane.poll()
        nbytes = lane.take(number)
        if nbytes is None:
            return
        self._waits_for = None
        self.waited_s += self._agenda.now_s - self._waits_since_s
        if nbytes > MAX_INLINE_NBYTES:
            lane.fetch(nbytes, self.go)
        else:
            self.go()

    def push(self, source: int, push: Push) -> None:
        """An executor sends values to another one of this session."""
        self.pushed_nbytes += push.nbytes
        target = self.lanes[push.target]
        self.network.send(
            self.routes(source, push.target),
            push.nbytes,
            target.executor.push_arrived,
            target.served,
            push.number,
        )
