"""A session on executors that are not there: everything is captured, planned and written as in a real one, nothing
is computed. Values that the program reads are zeros, but for the small ones that are known here."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from msgspec.structs import replace

from remora.capture.interrupts import uninterrupted
from remora.capture.recorder import Segment
from remora.capture.value import Value
from remora.config import ClientSettings
from remora.device.imagined import Imagination, Known
from remora.device.module import torch_version
from remora.device.sink import Fetched, Moment
from remora.errors import PlanError, UsageError
from remora.ir.node import Slot
from remora.ops.dtypes import BY_NAME, bytes_of, dtype_name
from remora.plan.devices import Pool
from remora.plan.forecast import Forecast, phases
from remora.plan.forecast import Memory as Held
from remora.plan.planner import Planner
from remora.plan.policies.policy import Policy
from remora.session.account import Account, Unmeasured
from remora.session.link import Reply
from remora.session.lint import place
from remora.session.pinned import Upload
from remora.session.plans import Plan
from remora.session.pooled import PoolSession
from remora.session.session import Question
from remora.session.uploads import Uploads
from remora.transport.absent import AbsentTransport
from remora.transport.interface import Transport
from remora.wire.limits import MAX_UNACKED_FRAMES, MAX_UNACKED_NBYTES, PROTOCOL
from remora.wire.messages import DeviceFacts, Done, Grant, Memory, MemoryQuery

PUBLISHED = "published"  # a source of a device's numbers
CAPABILITY = 9, 0  # that programs are told of a device that is not there, unless it is a CPU
MULTI_PROCESSORS = 100
ROOM_NBYTES = 1 << 60  # more than any program takes

T = TypeVar("T")


def absent(pool: Pool, memory_nbytes: int = 0) -> list[tuple[Transport, Grant]]:
    """Transports to the devices of a pool, with what each would grant. memory_nbytes: 0: what the device has."""
    opened: list[tuple[Transport, Grant]] = []
    for number, device in enumerate(pool.devices):
        grant = Grant(
            session=f"estimate-{number}",
            secret="",
            epoch=1,
            executor=f"absent-{number}",
            protocol=PROTOCOL,
            torch=torch_version(),
            device="cuda:0" if device.asynchronous else "cpu",
            ops_digest="",
            lease_s=900.0,
            memory_nbytes=memory_nbytes or device.memory_nbytes,
            in_flight_frames=MAX_UNACKED_FRAMES,
            in_flight_nbytes=MAX_UNACKED_NBYTES,
            principal="estimate",
        )
        opened.append((AbsentTransport(f"estimate://{number}-{device.name[:80]}", grant), grant))
    return opened


class EstimatedSession(PoolSession):
    """Implements device.sink.Sink without executors.

    Args:
        sources: of each device, where its numbers come from. link: in words.
        planned: whether a real session would plan, too; else what planning takes is not counted.
        token: that counts as computed.
    """

    computes = False
    whole_calls = False  # what a program branches on is computed on the client, op by op

    def __init__(
        self,
        pool: Pool,
        policy: Policy,
        settings: ClientSettings,
        sources: Sequence[str],
        link: str,
        memory_nbytes: int = 0,
        planned: bool = True,
        token: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        settings = dataclasses.replace(settings, run_ahead=False)  # nobody is there to run anything
        super().__init__(absent(pool, memory_nbytes), settings, Planner(policy, pool))
        self.pool, self.sources, self.link_text, self._planned = pool, tuple(sources), link, planned
        self.clock = clock
        self.account = Account(pool, clock)
        self.ledger = self.placement.ledger = self.placement.pinned.ledger = Unmeasured(
            self.account, lambda: next(self._tickets)
        )
        self.placement.plans.anew = True
        self.imagination = Imagination(token)
        self.refused: PlanError | None = None
        self.caps_nbytes = [lane.grant.memory_nbytes for lane in self.lanes]
        self._closed: Forecast | None = None
        self._unread: dict[int, int] = {}  # bytes of uploads that no row has read, by segment
        for lane in self.lanes:
            lane.uploads = _Unsent(lane.transport, lane.grant, lambda nbytes: None)

    # -- steps

    def _place(self, segment: Segment, wanted: Sequence[Value] = (), ticket: int | None = None) -> int | None:
        started_s = self.clock()
        found = self.imagination.run(segment)
        codes = [value.code for value in segment.kept]
        self.account.outside(self.clock() - started_s)
        sent = sum(lane.link.bytes_sent for lane in self.lanes)
        place_it = super()._place
        self._placed(lambda: place_it(segment, wanted))
        for lane in self.lanes:
            lane.commit()
            lane.link.send()
        sent = sum(lane.link.bytes_sent for lane in self.lanes) - sent
        plan = self.ledger.ran
        assert plan is not None
        if plan.ran.count == 1 and not self._planned:
            self.account.outside(plan.ran.planning_s)
        self.account.segment(plan, sent, len(segment.captured.template.nodes))
        started_s = self.clock()
        names = {code: (value.segment, value.code) for code, value in zip(codes, segment.kept, strict=True)}
        self.imagination.rename(found, names, self.placement.holdings.places.keys())
        if self._unread:
            self._first_reads(segment, plan)
        self.account.weigh(self.placement.holdings, plan)
        self.account.outside(self.clock() - started_s)
        return None  # nobody answers

    def _placed(self, act: Callable[[], T]) -> T:
        """What finds no place is told in the end; from then on there is room everywhere, to see what it would take."""
        try:
            return act()
        except PlanError as error:
            if self.refused is not None:
                raise
            self.refused = error
            for lane in self.lanes:
                lane.grant = replace(lane.grant, memory_nbytes=ROOM_NBYTES)
            self.placement.forgive()
            return act()

    # -- sync

    def fetch(self, values: list[Value], describe: bool = False) -> list[Fetched]:
        with self.recorder.lock:
            self._check()
            self._end_segment(() if describe else values)
            names = [(value.segment, value.code) for value in values]
            homes = [self._placed(partial(self.placement.home, name)) for name in names]
            started_s = self.clock()
            known = [self.imagination.find(name) for name in names]
            where = place(sys._getframe(1))
            line = f"{where.file}:{where.line}" + (f" in {where.via}" if where.via else "")
            fetched = [
                self._imagined(value, one, describe, line, where.op)
                for value, one in zip(values, known, strict=True)
            ]
            nbytes = 0
            for answer, one in zip(fetched, known, strict=True):
                size = len(answer.data) if answer.data is not None else 0
                self.account.read(size, one is not None and one.certain, line)
                nbytes += size
            self.account.outside(self.clock() - started_s)
            self._sync(homes[0] if homes else 0, nbytes)
            return fetched

    def _imagined(self, value: Value, known: Known | None, describe: bool, line: str, op: str) -> Fetched:
        meta = value.meta
        if known is not None:
            tensor = known.tensor.contiguous()
        elif meta is not None:
            tensor = self.imagination.missing(meta.shape, meta.dtype)
        else:
            raise UsageError(
                f"the shape of what {op or 'an op'} returns at {line} depends on data, and an estimate computes none; "
                "give the op an output of known size there (a mask, torch.where, topk), or measure with remora run"
            )
        data = None if describe else bytes(bytes_of(tensor))
        return Fetched(dtype_name(tensor.dtype), tuple(tensor.shape), tensor.stride(), data)

    def _end_segment(self, wanted: Sequence[Value] = ()) -> None:
        with uninterrupted:
            segment = self.recorder.end_segment()
            if segment is not None:
                self._place(segment, wanted)
        self._transmit()

    def _sync(self, executor: int, nbytes: int) -> None:
        """A sync was answered."""
        self.recorder.program_ends()
        self.placement.program_ends()
        self.account.program_ends(executor, nbytes)

    def _ask(self, question: Question, index: int = 0) -> Reply:
        self._end_segment()
        self._sync(index, 0)
        holdings = self.placement.holdings
        if isinstance(question, MemoryQuery):
            asked = slice(index, index + 1) if self._indexed else slice(None)
            held, cap = sum(holdings.held_nbytes[asked]), sum(self.caps_nbytes[asked])
            peak = max(held, sum(self.account.peaks[asked]))
            return Memory(question.ticket, held, peak, peak, len(holdings.places), held, max(0, cap - held))
        return Done(question.ticket)

    def facts(self, index: int = 0) -> DeviceFacts:
        device, cpu = self.pool.devices[index], self.executor_device == "cpu"
        major, minor = (0, 0) if cpu else CAPABILITY
        return DeviceFacts(
            0, device.name, self.caps_nbytes[index], major, minor, 0 if cpu else MULTI_PROCESSORS, True
        )

    def memory_nbytes(self, index: int = 0) -> int:
        return self.caps_nbytes[index] if self._indexed else sum(self.caps_nbytes)

    # -- uploads

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes, index: int = 0) -> int:
        return self._counted(dtype, shape, data, None, index)

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview, index: int = 0) -> int:
        digest = next(self._tickets).to_bytes(32, "big")  # nobody looks for equal ones
        segment = self._counted(dtype, shape, data, digest, index)
        self.account.begins()
        return segment

    def _counted(
        self,
        dtype: str,
        shape: tuple[int, ...],
        data: bytes | memoryview,
        digest: bytes | None,
        index: int,
    ) -> int:
        """Neither hashed nor copied."""
        nbytes = BY_NAME[dtype].itemsize
        for n in shape:
            nbytes *= n
        upload = Upload(dtype, shape, b"", digest, nbytes)
        segment = self._placed(lambda: self._pin(upload))
        if self._indexed:
            self._placed(partial(self.placement.bring, (segment, 0), index))
        self.imagination.uploaded((segment, 0), dtype, shape, data)
        self._unread[segment] = nbytes
        return segment

    def _first_reads(self, segment: Segment, plan: Plan) -> None:
        """Uploads are what the first row that reads them takes them for."""
        for at, value in enumerate(segment.slots):
            nbytes = self._unread.pop(value.segment, None)
            if nbytes:
                home = self.placement.home((value.segment, value.code))
                self.account.uploads(home, plan.residency(Slot(at)), nbytes)

    # -- moments

    def mark(self, settle: bool = False, index: int = 0) -> Moment:
        with self.recorder.lock:
            self._check()
            self.recorder.cut()
            moment = Moment(next(self._tickets), index)
            moment.at_s, moment.busy_s = self.account.now_s, self.account.computed_s
            return moment

    def passed(self, moment: Moment, wait: bool) -> bool:
        return True

    # -- the answer

    def forecast(self) -> Forecast:
        """Of everything that was recorded before now, or before it was closed."""
        with self.recorder.lock:
            if self._closed is not None:
                return self._closed
            self.recorder.cut()
            self.account.program_ends(None, 0)
            account, placement = self.account, self.placement
            account.weigh(placement.holdings, None)
            for segment in list(self._unread):
                known = placement.holdings.places.get((segment, 0))
                if known is not None and known.storage.owner is not None:
                    account.uploads(known.storage.owner, "", self._unread.pop(segment))
            executors = tuple(
                Held(device.name, source, cap, held, peak)
                for device, source, cap, held, peak in zip(
                    self.pool.devices,
                    self.sources,
                    self.caps_nbytes,
                    account.held,
                    account.peaks,
                    strict=True,
                )
            )
            return Forecast(
                placement.policy.name,
                self.link_text,
                executors,
                phases(account.programs),
                account.traffic(),
                account.reads(),
                str(self.refused) if self.refused is not None else "",
                self._notes(),
            )

    def _notes(self) -> tuple[str, ...]:
        notes = [
            "One step is from sync to sync. What the client does in it was measured here, under this machine's load; "
            "what the executors do is predicted. They overlap. Uploads come on top, once.",
            "Peaks are bytes of tensors. A GPU's context and its kernels' workspaces come on top.",
        ]
        if self.refused is not None:
            notes.append(
                "From where there was no place on, the script ran as if memory were enough: the peaks say how much it "
                "takes, placed so."
            )
        if PUBLISHED in self.sources:
            notes.append(
                "Published devices reach the shares of their data sheets that PyTorch's kernels usually reach; an "
                "executor's address as --device measures it."
            )
        return tuple(notes)

    def close(self, reason: Exception) -> None:
        self._closed = self.forecast()
        super().close(reason)


class _Unsent(Uploads):
    """Bulk bytes that nobody sends."""

    def ensure(self, digest: bytes, data: memoryview) -> None:
        self.round_trips += 1
