"""One session's run-ahead: does what runahead/ decides with real programs and values, and undoes it exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from remora.errors import ProtocolError
from remora.executor.worker.failure import DeviceBroken, OutOfRange, is_fatal
from remora.executor.worker.program import Failure
from remora.executor.worker.undo import UndoLog
from remora.runahead.ahead import Ran, RunningAhead
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

MAX_LATE_NBYTES = 64 << 20  # of an answer that waits until it is asked for


@dataclass(frozen=True)
class _Undo:
    """mark: in the log. names: of what the message made. bounds: whether an index was out of range before it.
    late: its answer, if that is too large to be sent early."""

    mark: int
    names: tuple[Name, ...]
    bounds: torch.Tensor | None
    late: tuple[torch.Tensor, ...] = ()


class Ahead:
    """Takes every message, but for Free, of a session that has agreed to run-ahead."""

    def __init__(self, session: WorkerSession, depth: int, log: UndoLog) -> None:
        self._session, self._log = session, log
        self._decisions: RunningAhead[_Undo] = RunningAhead(depth)
        self._overlay: dict[int, SiteMemory] = {}  # sites as they are once all that ran ahead is confirmed

    def said(self, message: ToExecutor, note: Callable[[ToExecutor], None]) -> Iterator[ToClient | None]:
        """Acts on what the client says; gives the replies. note: told of a message before it runs."""
        if isinstance(message, Confirm):
            yield from self._confirmed(message, note)
            return
        ran, undone = self._decisions.said(message)
        if undone:
            yield Undone(self._undo(undone))
        yield self._certain(message, ran, note)

    def _confirmed(self, message: Confirm, note: Callable[[ToExecutor], None]) -> Iterator[ToClient | None]:
        self._decisions.feedback(message.lead)
        for _ in range(message.count):
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

    # -- before it is said

    def coming(self) -> ToExecutor | None:
        """What may run now."""
        session = self._session
        if session.failed is not None or session.transfers.waiting.held or self._log.full:
            return None
        return self._decisions.coming()

    def go(self, message: ToExecutor) -> ToClient | None:
        """Runs what is coming; gives its answer, if it has one that can be sent. Raises only what ends the worker."""
        session, decisions = self._session, self._decisions
        names = self._names(message)
        if any(name in session.values.tensors for name in names):
            decisions.stop()  # the name is another executor's, so the prediction is wrong
            return None
        mark = self._log.mark()
        bounds = session.bounds.state() if session.bounds is not None else None
        try:
            answer = session.foresee(message, self._overlay)
        except Exception as error:
            cause = error.cause if isinstance(error, Failure) else error
            beyond = isinstance(error, OutOfRange)  # in this message, or in one before it
            if is_fatal(cause) and not beyond:
                row = error.row if isinstance(error, Failure) else 0
                raise DeviceBroken(getattr(message, "segment", 0), row, "", "", cause) from error
            self._back_to(mark, bounds)
            self._drop(names)
            undone = decisions.retreat() if beyond else []
            decisions.stop()
            return Undone(self._undo(undone)) if undone else None
        if answer is None:
            decisions.ran(_Undo(mark, names, bounds))
            return None
        if sum(tensor.nbytes for tensor in answer) > MAX_INLINE_NBYTES:
            late = tuple(tensor.detach().clone() for tensor in answer)  # later rows may write it
            decisions.ran(_Undo(mark, names, bounds, late))
            decisions.answered(hash((None,) * len(late)), late=True)
            if sum(tensor.nbytes for tensor in late) > MAX_LATE_NBYTES:
                decisions.stop()
            return None
        decisions.ran(_Undo(mark, names, bounds))
        assert isinstance(message, Run | Fetch)
        values = session.reply(message.ticket or 0, answer).values
        decisions.answered(_digest(values))
        return Early(decisions.epoch, decisions.depth.programs, message.ticket or 0, values)

    def _names(self, message: ToExecutor) -> tuple[Name, ...]:
        if isinstance(message, Run):
            memory = self._overlay.get(message.site) or self._session.sites[message.site]
            keep = memory.keep if message.keep is None else message.keep
            return tuple([(message.segment, row, out) for row, out in groups(keep, 2)])
        return ((message.segment, 0, 0),) if isinstance(message, Put) else ()


def _digest(values: tuple[Payload, ...]) -> int:
    return hash(tuple([payload.data for payload in values]))
