"""Writes down what a session does (plan/trace.py), for `remora sim`: structure and time, never contents.

Methods of the one session are replaced on that object, so that nothing is paid for where nobody records.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from blake3 import blake3

from remora import __version__
from remora.capture.recorder import Segment
from remora.capture.value import OUT_BITS, OUT_MASK, Value
from remora.config import ClientSettings
from remora.device.sink import Fetched
from remora.errors import UsageError
from remora.ir.annotated import Outside
from remora.ir.annotated_text import print_graph
from remora.plan import trace
from remora.plan.devices import Pool
from remora.plan.estimate import costs
from remora.plan.record import Key
from remora.session.calibration import calibrated
from remora.session.graphs import facts_of, graph_of, size_of
from remora.session.pooled import PoolSession
from remora.session.sites import Sites
from remora.wire.binding import encode_run
from remora.wire.messages import Mark, Marked, OpenSession

if TYPE_CHECKING:
    from remora.session.session import Session

# Runs of a graph around which a lone executor is asked for its clock: the first ones, and then now and then, since the
# first ones take longer: memory is new, and calls are being traced beside them. The last few count (plan/record.py).
TIMED, TIMED_EVERY = range(2, 8), 16
_BLOCKING = ("wait", "wait_until", "persist")  # methods of session/link.py


def record(session: Session, settings: ClientSettings, wants: OpenSession) -> None:
    """Records a session from now on, if it is asked for; its executors are measured first.

    A file that exists is left as it is: the second session of a process goes to NAME-2.jsonl, and so on.

    Raises:
        UsageError: the file cannot be written.
    """
    if settings.record is None:
        return
    if isinstance(session, PoolSession):
        pool = session.placement.planner.pool
    else:
        pool = calibrated([(lane.transport, lane.grant) for lane in session.lanes], settings, wants)
    Recording(session, pool, _create(Path(settings.record)))


def _create(path: Path) -> BinaryIO:
    for number in itertools.count(1):
        name = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            return name.open("xb")
        except FileExistsError:
            continue
        except OSError as error:
            raise UsageError(f"recording to {name}: {error.strerror or error}") from None
    raise AssertionError("a count ends")


class Recording:
    """The trace of one session, from now until it is closed.

    Args:
        pool: what was measured of its executors. clock: seconds.
    """

    def __init__(
        self, session: Session, pool: Pool, file: BinaryIO, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.session, self.pool, self._clock = session, pool, clock
        ahead = any(lane.ahead is not None for lane in session.lanes)
        links = tuple((*ends, link) for ends, link in pool.links.items())
        head = trace.Head(
            trace.VERSION, __version__, session.grant.torch, pool.devices, pool.client, links, ahead
        )
        self._writer = trace.Writer(file, head)
        self._sites = Sites()
        self._kept: dict[int, tuple[int, ...]] = {}  # bytes of what lived on, by site
        self._shapes: dict[tuple[bytes, int], int] = {}
        self._predicted: dict[
            int, tuple[Key, float]
        ] = {}  # seconds of each graph by the model alone, by shape
        self._runs: dict[int, int] = {}
        self._templates: dict[bytes, int] = {}
        self._contents: dict[bytes, int] = {}
        self._secret = secrets.token_bytes(32)  # numbers of contents tell nothing of them
        self._born: dict[tuple[int, int], tuple[int, int]] = {}  # renamed values that live, by name
        self._reading: tuple[int, ...] | None = None  # names, flat, while they are asked for
        self._busy: dict[int, float] = {}
        self._timing: dict[int, tuple[int, int]] = {}  # shape and the mark before, by the mark after
        self._waited_s = 0.0
        self._waits = 0  # waits within waits count once
        self._waits_since_s: float | None = None  # when the first one began since the last event
        self._since_s = clock()
        self._closed = False
        self._attach()

    # -- time

    @contextmanager
    def _outside(self) -> Iterator[None]:
        """What is spent in here is not the program's."""
        started_s = self._clock()
        try:
            yield
        finally:
            self._since_s += self._clock() - started_s

    def _own(self) -> float:
        """The client's own seconds since this was last asked."""
        before_s, _, after_s = self._parted()
        return before_s + after_s

    def _parted(self) -> tuple[float, float, float]:
        """The same, until the first wait, what was waited, and the own seconds behind that."""
        now_s, waited_s = self._clock(), self._waited_s
        first_s = now_s if self._waits_since_s is None else max(self._since_s, self._waits_since_s)
        before_s, after_s = first_s - self._since_s, now_s - first_s - waited_s
        self._since_s, self._waited_s, self._waits_since_s = now_s, 0.0, None
        return max(0.0, before_s), waited_s, max(0.0, after_s)

    def _waiting(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def waited(*given: Any, **named: Any) -> Any:
            self._waits += 1
            started_s = self._clock()
            if self._waits_since_s is None:
                self._waits_since_s = started_s
            try:
                return act(*given, **named)
            finally:
                self._waits -= 1
                if not self._waits:
                    self._waited_s += self._clock() - started_s

        return waited

    # -- what is watched

    def _attach(self) -> None:
        session: Any = self.session
        for lane in session.lanes:
            link: Any = lane.link
            for name in _BLOCKING:
                setattr(link, name, self._waiting(getattr(link, name)))
        session.tap = self._segment
        for name in ("put", "store", "fetch", "save_rng", "close", "_free_ended", "_in_order", "_ask"):
            setattr(
                session, name, self._watched(getattr(self, f"_{name.lstrip('_')}"), getattr(session, name))
            )
        if isinstance(session, PoolSession):
            write = session.placement.write

            def writing(segment: Segment, *given: Any) -> Any:
                names = [(value.segment, value.code) for value in segment.kept]
                found = write(segment, *given)
                for value, first in zip(segment.kept, names, strict=True):
                    if (value.segment, value.code) != first:
                        self._born[value.segment, value.code] = first
                return found

            record: Any = session.placement.ledger.record
            learn = record.add

            def learning(key: Key, predicted_s: float, measured_s: float) -> None:
                learn(key, predicted_s, measured_s)
                self._took(key, predicted_s, measured_s)

            session.placement.write = writing  # type: ignore[method-assign, assignment]
            record.add = learning
        else:
            marked = session.link.on_mark
            session.link.on_mark = lambda mark: None if self._marked(mark) else marked(mark)
            whole = session._write

            def timed(segment: Segment, *given: Any) -> None:
                marks = self._marks(segment)
                if marks:
                    session.lane.say(Mark(marks[0], settle=True))
                whole(segment, *given)
                if marks:
                    session.lane.say(Mark(marks[1], settle=True))

            session._write = timed

    def _watched(self, act: Callable[..., Any], inner: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*given: Any, **named: Any) -> Any:
            with self.session.recorder.lock:
                return inner(*given, **named) if self._closed else act(inner, *given, **named)

        return watched

    def _write(self, event: trace.Any) -> None:
        self._writer.write(event)

    # -- events

    def _segment(self, segment: Segment) -> None:
        own_s = self._own()
        with self._outside():
            captured = segment.captured
            nbytes = sum(facts_of(value.meta).nbytes for value in segment.slots)
            shape = self._shape(segment, nbytes)
            names = [self._first(value) for value in segment.slots]
            template = self._templates.setdefault(captured.template.id, len(self._templates))
            site, new = self._sites.choose(template, segment.number, names)
            stay = frozenset(segment.uploaded()) | site.fixed if new else frozenset[int]()
            frees = self._frees(segment)
            wants = None
            asked = self._reading
            if asked and all(number == segment.number for number in asked[::3]):
                wants = tuple(n for pair in zip(asked[1::3], asked[2::3], strict=True) for n in pair)
                self._reading = ()
            run = encode_run(
                site.memory,
                segment.number,
                site.index,
                names,
                segment.holes,
                segment.keep,
                frees,
                wants,
                None,
                stay,
            )
            kept = tuple([size_of(value.meta)[1] if value.meta is not None else 0 for value in segment.kept])
            same = self._kept.get(site.index) == kept
            self._kept[site.index] = kept
            self._write(trace.Ran(shape, nbytes, run, own_s, None if same else kept))

    def _shape(self, segment: Segment, nbytes: int) -> int:
        key = segment.captured.template.id, nbytes.bit_length()
        known = self._shapes.get(key)
        if known is not None:
            return known
        slots = [Outside(facts_of(value.meta), at, value.uploaded) for at, value in enumerate(segment.slots)]
        graph = graph_of(segment, slots)
        shape = self._shapes[key] = len(self._shapes)
        self._write(trace.Shape(print_graph(graph)))
        if not isinstance(self.session, PoolSession):  # whose ledger times what runs where
            device = self.pool.devices[0]
            size = sum(slot.facts.nbytes for slot in graph.slots).bit_length()
            predicted = costs(graph, (device,)).part(0).duration.less(device.run_s)
            self._predicted[shape] = Key(bytes.fromhex(graph.template), size, device.name), predicted.seconds
        return shape

    def _first(self, value: Value) -> tuple[int, int, int]:
        number, code = value.born or (value.segment, value.code)
        return number, code >> OUT_BITS, code & OUT_MASK

    def _frees(self, segment: Segment) -> tuple[int, ...]:
        frees, found = iter(segment.frees), list[int]()
        for distance, row, out in zip(frees, frees, frees, strict=True):
            number, row, out = self._freed(segment.number - distance, row << OUT_BITS | out)
            found += (segment.number - number, row, out)
        return tuple(found)

    def _freed(self, number: int, code: int) -> tuple[int, int, int]:
        number, code = self._born.pop((number, code), (number, code))
        return number, code >> OUT_BITS, code & OUT_MASK

    def _put(
        self, inner: Callable[..., int], dtype: str, shape: Sequence[int], data: bytes, index: int = 0
    ) -> int:
        segment = inner(dtype, shape, data, index)
        own_s = self._own()
        self._write(trace.Put(segment, dtype, tuple(shape), len(data), self._content(data), own_s, index))
        return segment

    def _store(
        self, inner: Callable[..., int], dtype: str, shape: Sequence[int], data: memoryview, index: int = 0
    ) -> int:
        uploads = [lane.uploads for lane in self.session.lanes]
        before = sum(one.sent_nbytes for one in uploads), sum(one.round_trips for one in uploads)
        segment = inner(dtype, shape, data, index)
        sent = sum(one.sent_nbytes for one in uploads) - before[0]
        requests = sum(one.round_trips for one in uploads) - before[1]
        if isinstance(self.session, PoolSession):  # it goes later, where it is used first
            sent, requests = data.nbytes, 1
        own_s = self._own()
        self._write(trace.Stored(segment, dtype, tuple(shape), data.nbytes, sent, requests, own_s, index))
        return segment

    def _fetch(
        self, inner: Callable[..., list[Fetched]], values: list[Value], describe: bool = False
    ) -> list[Fetched]:
        names = tuple(n for value in values for n in self._first(value))
        self._reading = None if describe else names
        try:
            found = inner(values, describe)
        finally:
            left, self._reading = self._reading, None
        took = self._parted()
        with self._outside():
            nbytes = tuple(len(one.data) if one.data is not None else 0 for one in found)
            content = self._content(*(bytes(one.data or b"") for one in found))
            asked = names if left != () or describe else ()
            self._write(trace.Read(asked, nbytes, content, *took, describe))
        return found

    def _ask(self, inner: Callable[..., Any], question: Any, *given: Any) -> Any:
        if self._reading is not None or getattr(question, "describe", False):
            return inner(question, *given)
        found = inner(question, *given)
        before_s, waited_s, after_s = self._parted()
        self._write(trace.Asked(type(question).__name__, True, before_s + after_s, waited_s))
        return found

    def _in_order(self, inner: Callable[..., None], post: Callable[[], None]) -> None:
        inner(post)
        self._write(trace.Asked("order", False, self._own()))

    def _save_rng(self, inner: Callable[..., int], *given: Any, **named: Any) -> int:
        segment = inner(*given, **named)
        self._write(trace.Put(segment, "uint8", (0,), 0, 0, self._own()))
        return segment

    def _free_ended(self, inner: Callable[[], None]) -> None:
        names = [
            n for number, code in list(self.session.recorder.graveyard) for n in self._freed(number, code)
        ]
        if names:
            self._write(trace.Freed(tuple(names)))
        inner()

    def _close(self, inner: Callable[[Exception], None], reason: Exception) -> None:
        self._write(trace.End(self._own()))
        self._closed, self.session.tap = True, None
        self._writer.close()
        inner(reason)

    def _content(self, *parts: bytes) -> int:
        digest = blake3(b"".join(parts), key=self._secret).digest(16)
        return self._contents.setdefault(digest, len(self._contents))

    # -- what a lone executor took

    def _marks(self, segment: Segment) -> tuple[int, int] | None:
        """Tickets of marks to put around a segment that is timed."""
        nbytes = sum(facts_of(value.meta).nbytes for value in segment.slots)
        key = segment.captured.template.id, nbytes.bit_length()
        shape = self._shapes.get(key)
        if shape is None:
            return None
        count = self._runs[shape] = self._runs.get(shape, 1) + 1  # the first was when its shape was written
        if count not in TIMED and count % TIMED_EVERY:
            return None
        before, after = (next(self.session._tickets) for _ in range(2))
        self._timing[after] = shape, before
        self._busy[before] = -1.0
        return before, after

    def _marked(self, mark: Marked) -> bool:
        if mark.ticket in self._busy:
            self._busy[mark.ticket] = mark.busy_s
            return True
        timing = self._timing.pop(mark.ticket, None)
        if timing is None:
            return False
        shape, before = timing
        took_s = mark.busy_s - self._busy.pop(before)
        with self._outside():
            self._took(*self._predicted[shape], took_s)
        return True

    def _took(self, key: Key, predicted_s: float, measured_s: float) -> None:
        if not self._closed:
            self._write(
                trace.Took(key.template.hex(), key.size, key.device, predicted_s, max(0.0, measured_s))
            )
