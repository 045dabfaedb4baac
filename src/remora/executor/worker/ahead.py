"""One session's run-ahead: does what runahead/ decides with real programs and values, and undoes it exactly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from remora.errors import ProtocolError
from remora.executor.worker.failure import DeviceBroken, OutOfRange, is_fatal
from remora.executor.worker.program import Failure
from remora.executor.worker.reading import Reading
from remora.executor.worker.undo import UndoLog
from remora.runahead.ahead import Asked, Ran, RunningAhead
from remora.wire.binding import Name, SiteMemory, groups
from remora.wire.limits import MAX_INLINE_NBYTES
from remora.wire.messages import (
    Confirm,
    Early,
    Fetch,
    Payload,
    Put,
    Run,
    ToClient,
    ToExecutor,
    Undone,
    Values,
)

if TYPE_CHECKING:
    from remora.executor.worker.session import WorkerSession

# What a client waits for goes out before the next program is begun, if it is no further away.
NEARLY_THERE_S = 0.0003
MAX_LATE_NBYTES = 64 << 20  # of an answer that waits until it is asked for


@dataclass(frozen=True)
class _Undo:
    """mark: in the log. names: of what the message made. bounds: whether an index was out of range before it.
    late: its answer, if that is too large to be sent early."""

    mark: int
    names: tuple[Name, ...]
    bounds: torch.Tensor | None
    late: tuple[torch.Tensor, ...] = ()


@dataclass(frozen=True)
class _Pending:
    """A question whose answer is being read. undo: of its message, if it ran ahead. until: nothing else is begun."""

    segment: int
    ticket: int
    reading: Reading
    asked: Asked
    undo: _Undo | None
    until: float = 0.0


class Ahead:
    """Takes every message, but for Free, of a session that has agreed to run-ahead.

    While the device computes an answer, what comes after it is begun already. At most one answer is being read: the
    next question, or whoever confirms this one, waits for it.
    """

    def __init__(self, session: WorkerSession, depth: int, log: UndoLog) -> None:
        self._session, self._log = session, log
        self._decisions: RunningAhead[_Undo] = RunningAhead(depth)
        self._overlay: dict[int, SiteMemory] = {}  # sites as they are once all that ran ahead is confirmed
        self._pending: _Pending | None = None

    def said(self, message: ToExecutor, note: Callable[[ToExecutor], None]) -> Iterator[ToClient | None]:
        """Acts on what the client says; gives the replies. note: told of a message before it runs."""
        if isinstance(message, Confirm):
            yield from self._confirmed(message, note)
            return
        if self._awaited:
            yield from self.answers()
        ran, undone = self._decisions.said(message)
        if undone:
            yield Undone(self._undo(undone))
        yield self._certain(message, ran, note)

    def _confirmed(self, message: Confirm, note: Callable[[ToExecutor], None]) -> Iterator[ToClient | None]:
        self._decisions.feedback(message.lead)
        for _ in range(message.count):
            if self._awaited:
                yield from self.answers()
            try:
                said, ran = self._decisions.confirmed()
            except LookupError as error:
                raise ProtocolError(str(error)) from None
            yield self._certain(said, ran, note)

    def _certain(
        self, message: ToExecutor, ran: Ran[_Undo] | None, note: Callable[[ToExecutor], None]
    ) -> ToClient | None:
        session = self._session
        if ran is None:
            note(message)
            reply = session.handle(message)
            if isinstance(reply, Values):
                self._decisions.answered(_digest(reply.values))
            return reply
        self._log.forget(ran.undo.mark)
        session.confirm(message)
        if not self._decisions.unconfirmed:
            self._overlay.clear()
        if not ran.undo.late:
            return None
        assert isinstance(message, Run | Fetch)
        return session.reply(message.ticket or 0, ran.undo.late)

    def _undo(self, undone: list[Ran[_Undo]]) -> int:
        """How many programs were undone, begun ones too."""
        if self._pending is not None and self._pending.undo is not None:
            self._pending = None
        first = undone[-1].undo
        self._back_to(first.mark, first.bounds)
        for ran in undone:
            self._drop(ran.undo.names)
        self._overlay.clear()
        return sum(ran.ends for ran in undone) + (not undone[0].ends)

    def _back_to(self, mark: int, bounds: torch.Tensor | None) -> None:
        self._log.back_to(mark)
        if self._session.bounds is not None:
            self._session.bounds.back_to(bounds)

    def _drop(self, names: tuple[Name, ...]) -> None:
        for name in names:
            self._session.values.free(name)

    def _retreat(self) -> list[ToClient]:
        """Something that ran ahead cannot be believed."""
        undone = self._decisions.retreat()
        self._decisions.stop()
        return [Undone(self._undo(undone))] if undone else []

    # -- answers that the device computes

    @property
    def _awaited(self) -> bool:
        """Whether what the client says next may be about the question whose answer is being read."""
        pending = self._pending
        if pending is None or self.client_waits:
            return pending is not None
        return self._decisions.unconfirmed[0].undo is pending.undo

    @property
    def client_waits(self) -> bool:
        """Whether the answer that is being read is one that the client has asked for."""
        return self._pending is not None and self._pending.undo is None

    def reads(self, segment: int, ticket: int, reading: Reading) -> None:
        """The answer to what the client has asked, after so many segments, is on its way."""
        until = time.perf_counter() + NEARLY_THERE_S
        self._pending = _Pending(segment, ticket, reading, self._decisions.asked(), None, until)

    def answers(self, wait: bool = True) -> list[ToClient]:
        """What is due for the question whose answer is being read, if there is one. Raises only what ends the worker.

        wait: until it is there.
        """
        pending = self._pending
        if pending is None or not (wait or pending.reading.done(pending.until)):
            return []
        self._pending = None
        session, decisions = self._session, self._decisions
        try:
            copies = pending.reading.copies()
        except Exception as error:
            if pending.undo is not None and (isinstance(error, OutOfRange) or not is_fatal(error)):
                return self._retreat()
            failed = session.refuse(error, pending.segment)
            return [failed] if failed is not None else []
        values = session.reply(pending.ticket, [copy for copy, _ in copies], [stride for _, stride in copies])
        decisions.answered(_digest(values.values), asked=pending.asked)
        if pending.undo is None:
            return [values]
        return [Early(decisions.epoch, decisions.depth.programs, pending.ticket, values.values)]

    # -- before it is said

    def coming(self) -> ToExecutor | None:
        """What may run now."""
        session = self._session
        if session.failed is not None or session.transfers.waiting.held or self._log.full:
            return None
        return self._decisions.coming()

    def go(self, message: ToExecutor) -> list[ToClient]:
        """Runs what is coming; gives the answers that can be sent. Raises only what ends the worker."""
        session, decisions = self._session, self._decisions
        names = self._names(message)
        if any(name in session.values.tensors for name in names):
            decisions.stop()  # the name is another executor's, so the prediction is wrong
            return []
        undo = _Undo(self._log.mark(), names, session.bounds.state() if session.bounds is not None else None)
        replies: list[ToClient] = []
        reading = None
        try:
            tensors = session.foresee(message, self._overlay)
            if tensors is not None:
                reading = session.read(tensors)
                was_ahead = self._pending is not None and self._pending.undo is not None
                replies += self.answers()
                if was_ahead and not decisions.unconfirmed:  # what was before could not be believed
                    self._drop(names)
                    return replies
                if reading is None:
                    session.believe()
        except DeviceBroken:
            raise
        except Exception as error:
            return [*replies, *self._failed(error, message, undo)]
        if tensors is None:
            decisions.ran(undo)
        elif reading is not None:
            decisions.ran(undo)
            segment = getattr(message, "segment", 0)
            self._pending = _Pending(segment, _ticket(message), reading, decisions.asked(), undo)
        elif sum(tensor.nbytes for tensor in tensors) > MAX_INLINE_NBYTES:
            self._keep_until_asked(tensors, undo)
        else:
            decisions.ran(undo)
            values = session.reply(_ticket(message), tensors).values
            decisions.answered(_digest(values))
            replies.append(Early(decisions.epoch, decisions.depth.programs, _ticket(message), values))
        return replies

    def _keep_until_asked(self, tensors: list[torch.Tensor], undo: _Undo) -> None:
        late = tuple(tensor.detach().clone() for tensor in tensors)  # later rows may write it
        self._decisions.ran(replace(undo, late=late))
        self._decisions.answered(hash((None,) * len(late)), late=True)
        if sum(tensor.nbytes for tensor in late) > MAX_LATE_NBYTES:
            self._decisions.stop()

    def _failed(self, error: Exception, message: ToExecutor, undo: _Undo) -> list[ToClient]:
        """What was coming cannot run ahead."""
        cause = error.cause if isinstance(error, Failure) else error
        beyond = isinstance(error, OutOfRange)  # in this message, or in one before it
        if is_fatal(cause) and not beyond:
            row = error.row if isinstance(error, Failure) else 0
            raise DeviceBroken(getattr(message, "segment", 0), row, "", "", cause) from error
        self._back_to(undo.mark, undo.bounds)
        self._drop(undo.names)
        if beyond:
            return self._retreat()
        self._decisions.stop()
        return []

    def _names(self, message: ToExecutor) -> tuple[Name, ...]:
        if isinstance(message, Run):
            memory = self._overlay.get(message.site) or self._session.sites[message.site]
            keep = memory.keep if message.keep is None else message.keep
            return tuple([(message.segment, row, out) for row, out in groups(keep, 2)])
        return ((message.segment, 0, 0),) if isinstance(message, Put) else ()


def _ticket(message: ToExecutor) -> int:
    assert isinstance(message, Run | Fetch)
    return message.ticket or 0


def _digest(values: tuple[Payload, ...]) -> int:
    return hash(tuple([payload.data for payload in values]))
