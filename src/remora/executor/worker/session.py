"""One session on the worker: its templates, sites and values, and what each message does to them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from remora.errors import ProtocolError, RemoraError, UnsupportedOp
from remora.executor.hop import BlobFile, SessionTerms
from remora.executor.worker.failure import MemoryLimit, is_fatal, kind_of, message_of
from remora.executor.worker.program import Failure, Program, compile_program, restride, run
from remora.executor.worker.rng import Generators
from remora.executor.worker.values import Values, from_bytes, from_file
from remora.ir.graph import Template
from remora.ops.dtypes import NAMES, bytes_of
from remora.wire.binding import Bound, Name, SiteMemory, decode_run, groups
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.messages import (
    Adopt,
    Barrier,
    Define,
    Done,
    Failed,
    Fetch,
    Free,
    Payload,
    Put,
    Recover,
    RngState,
    Run,
    Seed,
    Site,
    ToClient,
    ToExecutor,
    Values as ValuesReply,
)

MAX_PROGRAMS = 4  # per template: keep-sets differ a little while a program warms up


@dataclass
class Device:
    """What all sessions of a worker share. spill: writes a large value's bytes to a file, returns its bulk name."""

    device: torch.device
    generators: Generators
    progress: Any
    spill: Callable[[int, memoryview], str]
    held: Callable[[], str]
    limit_nbytes: int
    used_nbytes: Callable[[], int]


@dataclass
class _Defined:
    template: Template
    programs: dict[tuple[int, ...], Program] = field(default_factory=dict)
    refused: Exception | None = None


class WorkerSession:
    """All of one session's state on the device; dies with the session."""

    def __init__(self, number: int, terms: SessionTerms, device: Device) -> None:
        self.number = number
        self.principal = terms.principal
        self.seed = terms.seed
        self.rng: torch.Tensor | None = None
        self.device = device
        self.values = Values()
        self.templates: list[_Defined] = []
        self.sites: list[SiteMemory] = []
        self.blobs: dict[bytes, tuple[Path, int]] = {}
        self.failures = 0
        self.failed: Failed | None = None
        self.skipped: dict[int, Failed] = {}  # segment that did not run: the failure that came before it
        self.device_s = 0.0
        self.segments = 0
        self.restrided = [0]
        self._act: dict[type[Any], Callable[[Any], ToClient | None]] = {
            Define: self._define,
            Site: self._site,
            Run: self._run,
            Put: self._put,
            Adopt: self._adopt,
            Fetch: self._fetch,
            Free: self._free,
            Seed: self._seed,
            RngState: self._rng_state,
            Recover: self._recover,
            Barrier: self._barrier,
        }

    def allow_blob(self, blob: BlobFile) -> None:
        self.blobs[blob.digest] = (Path(blob.path), blob.nbytes)

    def handle(self, message: ToExecutor) -> ToClient | None:
        """Acts on one message; returns the reply, if it has one. Raises what ends the worker."""
        try:
            return self._act[type(message)](message)
        except Failure as error:
            return self._fail(message.segment if isinstance(message, Run) else 0, error.row, error.cause, error.shapes)
        except (RemoraError, RuntimeError, ValueError, TypeError, MemoryError, OSError) as error:
            return self._fail(getattr(message, "segment", 0), 0, error, "")

    def _fail(self, segment: int, row: int, error: Exception, shapes: str) -> Failed | None:
        if is_fatal(error):
            raise error
        if self.failed is not None and not isinstance(error, ProtocolError):
            return None  # told already; everything is skipped until the client recovers
        self.failures += 1
        op = ""
        self.failed = Failed(
            self.failures, segment, row, kind_of(error), message_of(error, self.device.held())[:60_000], op, shapes
        )
        if segment:
            self.skipped[segment] = self.failed
        return self.failed

    # -- definitions

    def _define(self, message: Define) -> None:
        if message.template != len(self.templates):
            raise ProtocolError(f"template {message.template} defined after {len(self.templates)}")
        self.templates.append(_Defined(Template.decode(message.body)))

    def _site(self, message: Site) -> None:
        if message.site != len(self.sites) or message.template >= len(self.templates):
            raise ProtocolError(f"site {message.site} for template {message.template} is out of order")
        self.sites.append(SiteMemory(message.template))

    # -- steps

    def _run(self, message: Run) -> ToClient | None:
        if message.site >= len(self.sites):
            raise ProtocolError(f"segment {message.segment} runs at site {message.site}, which does not exist")
        memory = self.sites[message.site]
        defined = self.templates[memory.template]
        bound = decode_run(memory, message, defined.template.n_slots, defined.template.holes)
        for name in bound.frees:
            self.values.free(name)
        if self.failed is not None:
            self.skipped[message.segment] = self.failed
            return None
        self._execute(message.segment, defined, bound)
        self.segments += 1
        if message.wants is None:
            return None
        names = [(message.segment, row, out) for row, out in groups(message.wants, 2)]
        return self._values(message.ticket or 0, names, describe=False)

    def _execute(self, segment: int, defined: _Defined, bound: Bound) -> None:
        program = defined.programs.get(bound.keep)
        if program is None:
            program = self._compile(defined, bound.keep)
        slots = self._look_up(bound.names)
        if program.random:
            self.device.generators.enter(self)
        started = time.perf_counter()
        registers = run(program, slots, bound.holes, self.device.progress, self.restrided)
        self.device_s += time.perf_counter() - started
        keep = self.values.keep
        for row, out, register in program.keep:
            keep((segment, row, out), registers[register])
        used = self.device.used_nbytes()
        if used > self.device.limit_nbytes:
            raise MemoryLimit(f"{used:,} bytes are held, {self.device.limit_nbytes:,} are allowed (--memory)")

    def _compile(self, defined: _Defined, keep: tuple[int, ...]) -> Program:
        if len(defined.programs) >= MAX_PROGRAMS:
            defined.programs.pop(next(iter(defined.programs)))
        pairs = tuple((row, out) for row, out in groups(keep, 2))
        program = compile_program(defined.template, pairs, self.device.device)
        defined.programs[keep] = program
        return program

    def _look_up(self, names: list[Name]) -> list[torch.Tensor]:
        tensors = self.values.tensors
        try:
            return [tensors[name] for name in names]
        except KeyError as error:
            (name,) = error.args
            raise RemoraError(self._story(name)) from None

    def _story(self, name: Name) -> str:
        cause = self.skipped.get(name[0])
        if cause is not None:
            return f"value {name} was never computed: its segment was skipped after an earlier failure: {cause.message}"
        return f"value {name} does not exist in this session (it was freed, or never made)"

    # -- values

    def _put(self, message: Put) -> None:
        tensor = from_bytes(message.dtype, message.shape, message.data, self.device.device)
        self.values.keep((message.segment, 0, 0), tensor)

    def _adopt(self, message: Adopt) -> None:
        found = self.blobs.get(message.digest)
        if found is None:
            raise ProtocolError(f"blob {message.digest.hex()[:16]} was neither sent nor proven in this session")
        path, nbytes = found
        tensor = from_file(message.dtype, message.shape, str(path), nbytes, self.device.device)
        self.values.keep((message.segment, 0, 0), tensor)

    def _fetch(self, message: Fetch) -> ToClient | None:
        if self.failed is not None:
            return None
        names = [(segment, row, out) for segment, row, out in groups(message.names, 3)]
        return self._values(message.ticket, names, message.describe)

    def _values(self, ticket: int, names: list[Name], describe: bool) -> ValuesReply:
        return ValuesReply(ticket, tuple(self._payload(tensor, describe) for tensor in self._look_up(names)))

    def _payload(self, tensor: torch.Tensor, describe: bool) -> Payload:
        dtype, shape = NAMES[tensor.dtype], tuple(tensor.shape)
        if describe:
            return Payload(dtype, shape, tensor.stride())
        local = restride(tensor.detach().resolve_conj().resolve_neg(), ()).cpu()
        data = bytes_of(local)
        if data.nbytes <= MAX_INLINE_NBYTES:
            return Payload(dtype, shape, tensor.stride(), bytes(data), data.nbytes)
        return Payload(dtype, shape, tensor.stride(), None, data.nbytes, self.device.spill(self.number, data))

    def _free(self, message: Free) -> None:
        for segment, row, out in groups(message.names, 3):
            self.values.free((segment, row, out))

    # -- generator, failures, order

    def _seed(self, message: Seed) -> None:
        self.device.generators.seed(self, message.seed)

    def _rng_state(self, message: RngState) -> ToClient:
        if message.state is not None:
            self.device.generators.restore(self, torch.frombuffer(bytearray(message.state), dtype=torch.uint8))
        state = self.device.generators.state(self).cpu().contiguous()
        data = bytes(bytes_of(state))
        return ValuesReply(message.ticket, (Payload("uint8", (len(data),), (1,), data, len(data)),))

    def _recover(self, message: Recover) -> None:
        if self.failed is not None and self.failed.failure == message.failure:
            self.failed = None

    def _barrier(self, message: Barrier) -> ToClient | None:
        if self.failed is not None:
            return None
        if self.device.device.type == "cuda":
            torch.cuda.synchronize(self.device.device)
        return Done(message.ticket)

    def close(self) -> None:
        self.values.clear()
        self.device.generators.leave(self)
        self.templates.clear()


__all__ = ["Device", "UnsupportedOp", "WorkerSession"]
