"""Runs one segment of a session: by the fastest program that there is, with the outputs that live on kept."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from remora.errors import RemoraError
from remora.executor.worker.failure import MemoryLimit
from remora.executor.worker.program import Failure, Program, Registers, before, run
from remora.executor.worker.values import MAX_VALUES
from remora.ir.graph import Template
from remora.ir.node import Slot
from remora.wire.binding import Bound, Name
from remora.wire.messages import Run

if TYPE_CHECKING:
    from remora.executor.worker.session import Defined, WorkerSession


def execute(session: WorkerSession, message: Run, defined: Defined, bound: Bound) -> None:
    """Runs a segment and keeps what lives on. Raises Failure, having kept what was made until then."""
    segment = message.segment
    program = defined.programs.get(bound.keep)
    if program is None:
        program = session.compile(defined, bound.keep)
    if session.undo.active:
        program = session.undo.guarded(program)
    if session.bounds is not None:
        session.bounds.ahead = session.undo.active
    if session.values.loose:
        _copy_out(session, [bound.names[slot] for slot in program.strict])
    run_program = partial(run, program)
    tensors = session.values.tensors
    if session.tiers is not None:
        names = bound.names
        tier = session.tiers.find(message.site, bound.keep, names, defined.template, program)
        tier.make_way(names)
        session.values.unpark(names)
        run_program = partial(tier.run, program)
    missing, lost = None, 0
    slots: list[Any]
    try:
        slots = [tensors[name] for name in bound.names]
    except KeyError as error:
        (missing,) = error.args
        slots = [tensors.get(name) for name in bound.names]
        lost = _first_reader(defined.template, slots)
        program = before(program, lost)
        run_program = partial(run, program)
    if program.random:
        session.device.generators.enter(session)
    if torch.get_default_dtype() is not session.default_dtype:  # another session's
        torch.set_default_dtype(session.default_dtype)
    session.device.flags.enter(session)
    started = time.perf_counter()
    try:
        registers = run_program(slots, bound.holes, session.device.progress, session.restrided)
    except Failure as failure:
        _keep(session, segment, program, failure.registers)
        raise
    finally:
        session.device_s += time.perf_counter() - started
    _keep(session, segment, program, registers)
    if missing is not None:
        raise Failure(lost, RemoraError(session.story(missing)), registers)


def _keep(session: WorkerSession, segment: int, program: Program, registers: Registers) -> None:
    """Keeps the outputs that live on, as far as they were made and there is room."""
    values = session.values
    limit_nbytes = values.used_nbytes + max(0, session.device.room_nbytes())
    if program.grows:
        grown = values.weigh_again()
        if values.used_nbytes > limit_nbytes:
            for name in grown:
                values.free(name)
            raise Failure(0, MemoryLimit("tensors that grew in place were dropped"), registers)
    for row, out, register in program.keep:
        tensor = registers[register]
        if tensor is None:
            continue
        if register in program.growing:
            values.keep_grown((segment, row, out), tensor)
        else:
            values.keep((segment, row, out), tensor)
        if values.used_nbytes > limit_nbytes and session.device.drop_graphs():
            limit_nbytes = values.used_nbytes + session.device.room_nbytes()
        if values.used_nbytes > limit_nbytes and values.loose:
            values.trim()
        if values.used_nbytes > limit_nbytes or values.count > MAX_VALUES:
            values.free((segment, row, out))
            raise Failure(row, _over_limit(tensor), registers)


def _copy_out(session: WorkerSession, names: list[Name]) -> None:
    """Before rows that must not read a view into a buffer that grows."""
    values = session.values
    for name in names:
        if name in values.loose:
            session.admit(values.tensors[name].nbytes)
            values.copy_out(name)


def _first_reader(template: Template, slots: list[Any]) -> int:
    """The first row that reads a slot without a tensor."""
    for row, node in enumerate(template.nodes):
        if any(isinstance(arg, Slot) and slots[arg.index] is None for arg in node.inputs()):
            return row
    raise AssertionError("slots are dense: each is read")


def _over_limit(tensor: torch.Tensor) -> MemoryLimit:
    return MemoryLimit(f"asked for {tensor.untyped_storage().nbytes():,} bytes")
