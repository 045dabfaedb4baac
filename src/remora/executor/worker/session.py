"""One session on the worker: its templates, sites and values, and what each message does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from remora.errors import ProtocolError, RemoraError
from remora.executor.hop import BlobFile, SessionTerms, SessionUsage
from remora.executor.worker.ahead import Ahead
from remora.executor.worker.blobs import Blobs
from remora.executor.worker.bounds import Bounds
from remora.executor.worker.describe import facts, memory_taken
from remora.executor.worker.device import Device
from remora.executor.worker.failure import DeviceBroken, MemoryLimit, is_fatal, kind_of, message_of
from remora.executor.worker.program import Failure, Program, compile_program, restride
from remora.executor.worker.reading import Reading
from remora.executor.worker.running import execute
from remora.executor.worker.transfers import Transfers
from remora.executor.worker.undo import UndoLog, log_limit_nbytes
from remora.executor.worker.values import MAX_VALUES, Values, checked_dtype, from_bytes, from_file
from remora.ir.graph import Template
from remora.ops.dtypes import NAMES, bytes_of
from remora.wire.binding import Name, SiteMemory, apply_run, bound_of, decode_run, frees_of, groups
from remora.wire.limits import MAX_DIMS, MAX_INLINE_NBYTES
from remora.wire.messages import (
    Adopt,
    Await,
    Barrier,
    Confirm,
    DefaultDtype,
    Define,
    DeviceQuery,
    Done,
    Failed,
    Fetch,
    Flag,
    Free,
    LoadRng,
    Mark,
    MemoryQuery,
    Payload,
    Peer,
    Push,
    Put,
    Recover,
    Run,
    RunAhead,
    SaveRng,
    Seed,
    Site,
    ToClient,
    ToExecutor,
)
from remora.wire.messages import Values as ValuesReply

MAX_PROGRAMS = 4  # per template: keep-sets differ a little while a program warms up
MAX_TEMPLATES_NBYTES = 32 << 20  # a session, encoded; decoded they take 20 times as much
MAX_BOUND = 1 << 22  # slots and holes that the sites of a session remember
MAX_SKIPPED = 4096  # segments whose failure is remembered
MAX_FETCHED = 4096  # values in one reply
MAX_REPLY_INLINE_NBYTES = 1 << 20  # of all values in one reply; larger ones go as bulk
MAX_MESSAGE_CHARS = 60_000


@dataclass
class Defined:
    template: Template
    programs: dict[tuple[int, ...], Program] = field(default_factory=dict)


class WorkerSession:
    """All of one session's state on the device; dies with the session."""

    def __init__(self, number: int, terms: SessionTerms, device: Device) -> None:
        self.number = number
        self.principal = terms.principal
        self.seed = terms.seed
        self.rng: torch.Tensor | None = None
        self.generators: dict[int, torch.Generator] = {}
        self.flags: dict[tuple[str, ...], tuple[bool | int | str | None, ...]] = {}
        self.default_dtype = torch.float32
        self.exact = terms.exact  # only kernels that PyTorch itself would choose
        self.device = device
        self.values = Values()
        self.tiers = device.tiers_of(self.values, self.exact)
        self.bounds = Bounds(device.device) if device.device.type == "cuda" else None
        self.blobs = Blobs()
        self.templates: list[Defined] = []
        self.sites: list[SiteMemory] = []
        self.bulks: dict[str, int] = {}  # on their way to the client: name to bytes
        self.failures = 0
        self.failed: Failed | None = None  # everything is skipped until the client recovers from it
        self.skipped: dict[int, Failed] = {}  # segment that did not run, or not to its end: because of what
        self.device_s = 0.0
        self.segments = 0
        self.restrided = [0]
        self.transfers = Transfers(self)
        self.ahead: Ahead | None = None
        self.undo = UndoLog(self.values, device.generators, self, log_limit_nbytes(terms.memory_nbytes))
        self._last_run = 0
        self.templates_nbytes = 0
        self._bound = 0
        self._act: dict[type[Any], Callable[[Any], ToClient | None]] = {
            Define: self._define,
            Site: self._site,
            Run: self._run,
            Put: self._put,
            Adopt: self._adopt,
            Fetch: self._fetch,
            Free: self._free,
            Seed: self._seed,
            DefaultDtype: self._default_dtype,
            Flag: self._flag,
            SaveRng: self._save_rng,
            LoadRng: self._load_rng,
            Recover: self._recover,
            Barrier: self._barrier,
            Mark: self._mark,
            MemoryQuery: self._memory,
            DeviceQuery: self._facts,
            Peer: self.transfers.peer,
            Push: self.transfers.push,
            Await: self.transfers.wait,
            RunAhead: self._run_ahead,
            Confirm: _unexpected,
        }

    @property
    def used_nbytes(self) -> int:
        """Of the device's memory, by values and what is kept to run programs fast."""
        return self.values.used_nbytes + (self.tiers.nbytes if self.tiers is not None else 0)

    @property
    def usage(self) -> SessionUsage:
        inexact = (self.tiers.inexact_runs, self.tiers.refused) if self.tiers is not None else (0, 0)
        return SessionUsage(self.used_nbytes, self.device_s, self.segments, *inexact)

    def allow_blob(self, blob: BlobFile) -> None:
        self.blobs.offer(blob)

    def take(
        self, message: ToExecutor, note: Callable[[ToExecutor], None] = lambda message: None
    ) -> Iterator[ToClient | None]:
        """Acts on one message of the client; gives the replies. Raises only what ends the worker.

        note: told of each message before it runs.
        """
        if self.ahead is None or isinstance(message, Free):
            note(message)
            yield self.handle(message)
            return
        try:
            yield from self.ahead.said(message, note)
        except ProtocolError as error:
            yield self.refuse(error)

    def handle(self, message: ToExecutor) -> ToClient | None:
        """Acts on one message; returns the reply, if it has one. Raises only what ends the worker."""
        segment = getattr(message, "segment", 0)
        try:
            return self._act[type(message)](message)
        except Failure as failure:
            return self._fail(
                failure.cause, segment, failure.row, self._op(message, failure.row), failure.shapes
            )
        except Exception as error:
            return self.refuse(error, segment)

    def refuse(self, error: Exception, segment: int = 0) -> Failed | None:
        """A message could not be acted on."""
        return self._fail(error, segment, 0, "", "")

    def _fail(self, error: Exception, segment: int, row: int, op: str, shapes: str) -> Failed | None:
        if is_fatal(error):
            raise DeviceBroken(segment, row, op, shapes, error) from error
        if self.failed is not None:
            return None  # told already
        self.failures += 1
        text = message_of(error, self.device.held(self.principal))[:MAX_MESSAGE_CHARS]
        self.failed = Failed(self.failures, segment, row, kind_of(error), text, op, shapes)
        if segment:
            self._skip(segment)
        return self.failed

    def _skip(self, segment: int) -> None:
        assert self.failed is not None
        self.skipped[segment] = self.failed
        if len(self.skipped) > MAX_SKIPPED:
            del self.skipped[next(iter(self.skipped))]

    def _op(self, message: ToExecutor, row: int) -> str:
        assert isinstance(message, Run)
        return self.templates[self.sites[message.site].template].template.nodes[row].op

    # -- definitions

    def _define(self, message: Define) -> None:
        if message.template != len(self.templates):
            raise ProtocolError(f"template {message.template} defined after {len(self.templates)}")
        if self.templates_nbytes + len(message.body) > MAX_TEMPLATES_NBYTES:
            raise MemoryLimit(f"the session's templates take more than {MAX_TEMPLATES_NBYTES:,} bytes")
        self.templates.append(Defined(Template.decode(message.body)))
        self.templates_nbytes += len(message.body)

    def _site(self, message: Site) -> None:
        if message.site != len(self.sites) or message.template >= len(self.templates):
            raise ProtocolError(f"site {message.site} for template {message.template} is out of order")
        self.sites.append(SiteMemory(message.template))

    # -- steps

    def _run(self, message: Run) -> ToClient | None:
        if message.site >= len(self.sites):
            raise ProtocolError(
                f"segment {message.segment} runs at site {message.site}, which does not exist"
            )
        if message.segment <= self._last_run:
            raise ProtocolError(f"segment {message.segment} after {self._last_run}: each runs once, in order")
        self._last_run = message.segment
        memory = self.sites[message.site]
        defined = self.templates[memory.template]
        if not memory.slots and not memory.holes:
            self._count_bound(defined.template)
        bound = decode_run(memory, message, defined.template.n_slots, defined.template.holes)
        for name in frees_of(memory, message.segment):
            self._free_one(name)
        if self.failed is not None:
            self._skip(message.segment)
            return None
        execute(self, message, defined, bound)
        self.segments += 1
        if message.wants is None:
            return None
        return self._values(message.ticket or 0, _asked(message), describe=False)

    # -- run-ahead

    def _run_ahead(self, message: RunAhead) -> None:
        self.ahead = Ahead(self, message.depth, self.undo)

    def foresee(self, message: ToExecutor, overlay: dict[int, SiteMemory]) -> list[torch.Tensor] | None:
        """Does what a message that is still to be said asks for; the values that it asks for, if it does, which are
        to be believed only once `bounds` was looked at.

        What ends with it is freed when it is said, and sites are as in `overlay` until then. Raises what went wrong.
        """
        if isinstance(message, Put):
            self._put(message)
            return None
        if isinstance(message, Fetch):
            return self._find(_asked(message))
        assert isinstance(message, Run)
        memory = overlay.get(message.site) or self.sites[message.site]
        defined = self.templates[memory.template]
        if (message.slots, message.holes, message.keep) != (None, None, None):
            memory = memory.copy()
            apply_run(memory, message, defined.template.n_slots, defined.template.holes)
        execute(self, message, defined, bound_of(memory, message.segment))
        if memory is not self.sites[message.site]:
            overlay[message.site] = memory
        if message.wants is None:
            return None
        return self._find(_asked(message))

    def confirm(self, message: ToExecutor) -> None:
        """What was foreseen has been said."""
        if isinstance(message, Run):
            memory = self.sites[message.site]
            template = self.templates[memory.template].template
            apply_run(memory, message, template.n_slots, template.holes)
            for name in frees_of(memory, message.segment):
                self._free_one(name)
            self._last_run = message.segment
            self.segments += 1

    def _count_bound(self, template: Template) -> None:
        """Raises MemoryLimit: a binding takes much more memory than its bytes on the wire."""
        self._bound += template.n_slots + len(template.holes)
        if self._bound > MAX_BOUND:
            raise MemoryLimit(f"the session's sites bind more than {MAX_BOUND:,} values and numbers")

    def compile(self, defined: Defined, keep: tuple[int, ...]) -> Program:
        if len(defined.programs) >= MAX_PROGRAMS:
            defined.programs.pop(next(iter(defined.programs)))
        pairs = tuple((row, out) for row, out in groups(keep, 2))
        device, room_nbytes = self.device.device, self.device.room_nbytes
        program = compile_program(
            defined.template, pairs, device, self._generator, room_nbytes, self.exact, self.bounds
        )
        defined.programs[keep] = program
        return program

    def look_up(self, names: list[Name]) -> list[torch.Tensor]:
        """Raises RemoraError with what is known about one that is not there, OutOfRange if none can be believed."""
        self.believe()
        return self._find(names)

    def believe(self) -> None:
        """Waits for the device. Raises OutOfRange if no value can be believed."""
        if self.bounds is not None:
            self.bounds.check()

    def _find(self, names: list[Name]) -> list[torch.Tensor]:
        tensors = self.values.tensors
        self.values.unpark(names)
        for name in names:
            if name not in tensors:
                raise RemoraError(self.story(name))
        return [self.values.exact(name) for name in names]

    def story(self, name: Name) -> str:
        did_not_come = self.transfers.waiting.story(name)
        if did_not_come is not None:
            return did_not_come
        cause = self.skipped.get(name[0])
        if cause is not None:
            what = f"{cause.op}: {cause.message}" if cause.op else cause.message
            return f"this tensor was never computed, because of an earlier failure: {what}"
        return f"value {name} does not exist in this session (it was freed, or never made)"

    # -- values

    def _put(self, message: Put) -> None:
        self.admit(len(message.data))
        tensor = from_bytes(message.dtype, message.shape, message.data, self.device.device)
        self.values.keep((message.segment, 0, 0), tensor)

    def _adopt(self, message: Adopt) -> None:
        name, device = (message.segment, 0, 0), self.device.device
        if name in self.values.tensors:
            raise ProtocolError(f"value {name} exists already")
        blob = self.blobs.find(message.digest)
        mapped = device.type == "cpu"
        self.admit(0 if mapped else blob.nbytes)
        tensor = from_file(message.dtype, message.shape, blob.path, blob.nbytes, device, self.device.maps)
        self.values.keep(name, tensor, counts=not mapped)
        self.blobs.adopt(message.digest, name)

    def admit(self, nbytes: int, values: int = 1) -> None:
        """Raises MemoryLimit: the session, or the device, cannot take so many more values and bytes."""
        if nbytes > self.device.room_nbytes():
            self.device.drop_graphs()
        if self.values.loose and nbytes > self.device.room_nbytes():
            self.values.trim()
        if nbytes > self.device.room_nbytes() or self.values.count + values > MAX_VALUES:
            raise MemoryLimit(f"asked for {nbytes:,} bytes")

    def _fetch(self, message: Fetch) -> ToClient | None:
        if self.failed is not None:
            return None
        return self._values(message.ticket, _asked(message), message.describe)

    def _values(self, ticket: int, names: list[Name], describe: bool) -> ValuesReply | None:
        """None: they are being read, and `ahead` will have them."""
        if len(names) > MAX_FETCHED:
            raise ProtocolError(f"{len(names)} values asked for at once; the limit is {MAX_FETCHED}")
        if self.ahead is None or describe:
            return self.reply(ticket, self.look_up(names), describe=describe)
        tensors = self._find(names)
        reading = self.read(tensors)
        if reading is None:
            return self.reply(ticket, self.look_up(names))
        self.ahead.reads(self._last_run, ticket, reading)
        return None

    def read(self, tensors: Sequence[torch.Tensor]) -> Reading | None:
        """Begins to read values whose bytes are to be sent; None: they are large, or the device has computed them."""
        nbytes = sum(tensor.nbytes for tensor in tensors)
        return self.device.reading(tensors, self.bounds) if nbytes <= MAX_INLINE_NBYTES else None

    def reply(
        self,
        ticket: int,
        tensors: Sequence[torch.Tensor],
        strides: Sequence[tuple[int, ...]] | None = None,
        describe: bool = False,
    ) -> ValuesReply:
        """The bytes of values, or their descriptions, for the client. strides: theirs, if these are copies."""
        inline_nbytes = 0
        payloads = []
        for at, tensor in enumerate(tensors):
            stride = tensor.stride() if strides is None else strides[at]
            payload = self._payload(tensor, stride, describe, MAX_REPLY_INLINE_NBYTES - inline_nbytes)
            inline_nbytes += len(payload.data or b"")
            payloads.append(payload)
        return ValuesReply(ticket, tuple(payloads))

    def _payload(
        self, tensor: torch.Tensor, stride: tuple[int, ...], describe: bool, inline_nbytes: int
    ) -> Payload:
        if tensor.dim() > MAX_DIMS:
            raise ProtocolError(
                f"a tensor of {tensor.dim()} dimensions cannot travel; the limit is {MAX_DIMS}"
            )
        dtype, shape = NAMES[tensor.dtype], tuple(tensor.shape)
        if describe:
            return Payload(dtype, shape, stride)
        local = restride(tensor.detach().resolve_conj().resolve_neg(), ()).cpu()
        data = bytes_of(local)
        if data.nbytes <= min(MAX_INLINE_NBYTES, inline_nbytes):
            return Payload(dtype, shape, stride, bytes(data), data.nbytes)
        return Payload(dtype, shape, stride, None, data.nbytes, self.device.spill(self, data))

    def _free(self, message: Free) -> None:
        for segment, row, out in groups(message.names, 3):
            self._free_one((segment, row, out))

    def _free_one(self, name: Name) -> None:
        self.values.free(name)
        released = self.blobs.freed(name) if self.blobs.values else None
        if released is not None:
            self.device.release(self.number, *released)

    # -- generator, failures, order

    def _default_dtype(self, message: DefaultDtype) -> None:
        dtype = checked_dtype(message.dtype)
        if not dtype.is_floating_point:
            raise ProtocolError(f"{message.dtype} cannot be a default dtype")
        self.default_dtype = dtype
        self._forget_graphs()

    def _forget_graphs(self) -> None:
        """Kernels are chosen by settings that have changed."""
        if self.tiers is not None:
            self.tiers.forget()

    def _flag(self, message: Flag) -> None:
        self.device.flags.set(self, message.setter, message.values)
        self._forget_graphs()

    def _seed(self, message: Seed) -> None:
        if self.undo.active:
            self.undo.save_generator(message.generator)
        self.device.generators.seed(self, message.seed, message.generator)

    def _save_rng(self, message: SaveRng) -> None:
        if self.failed is not None:
            return self._skip(message.segment)
        name = (message.segment, 0, 0)
        if name in self.values.tensors:
            raise ProtocolError(f"value {name} exists already")
        state = self.device.generators.state(self, message.generator)
        self.admit(state.nbytes)
        self.values.keep(name, state)
        return None

    def _load_rng(self, message: LoadRng) -> None:
        if self.failed is None:
            (state,) = self.look_up([message.name])
            if self.undo.active:
                self.undo.save_generator(message.generator)
            self.device.generators.restore(self, state.cpu(), message.generator)

    def _generator(self, index: int) -> torch.Generator:
        return self.device.generators.find(self, index)

    def _recover(self, message: Recover) -> None:
        if self.failed is not None and self.failed.failure == message.failure:
            self.failed = None

    def _barrier(self, message: Barrier) -> ToClient | None:
        if self.failed is not None:
            return None
        if self.device.device.type == "cuda":
            torch.cuda.synchronize(self.device.device)
        if self.bounds is not None:
            self.bounds.check()
        return Done(message.ticket)

    def _mark(self, message: Mark) -> ToClient | None:
        if message.settle and self.device.device.type == "cuda":
            started = time.perf_counter()
            torch.cuda.synchronize(self.device.device)
            self.device_s += time.perf_counter() - started
        return self.device.marks.add(self, message.ticket, self.device_s)

    def _memory(self, message: MemoryQuery) -> ToClient | None:
        if self.failed is not None:
            return None
        if message.reset_peak:
            self.values.reset_peak()
        return memory_taken(self.device.device, message.ticket, self.values, self.device.room_nbytes())

    def _facts(self, message: DeviceQuery) -> ToClient | None:
        return facts(self.device.device, message.ticket) if self.failed is None else None

    def close(self) -> None:
        self.undo.close()
        if self.tiers is not None:
            self.tiers.forget()
            self.device.tiers.remove(self.tiers)
        self.values.clear()
        self.device.generators.leave(self)
        self.device.flags.leave(self)
        self.templates.clear()


def _unexpected(message: Confirm) -> None:
    raise ProtocolError("a Confirm, and no RunAhead before it")


def _asked(message: Run | Fetch) -> list[Name]:
    """The values whose bytes a message asks for."""
    if isinstance(message, Fetch):
        return [(segment, row, out) for segment, row, out in groups(message.names, 3)]
    return [(message.segment, row, out) for row, out in groups(message.wants or (), 2)]
