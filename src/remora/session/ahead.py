"""The client's half of run-ahead: what is predicted is counted instead of sent."""

from __future__ import annotations

from remora.runahead.predictor import Agreement, Predictor
from remora.session.link import Link
from remora.wire.limits import MAX_DEPTH, MAX_MESSAGES
from remora.wire.messages import Confirm, Early, Fetch, Free, Run, RunAhead, ToExecutor, Undone

BATCHES = 8  # of confirmations in the depth: more cost messages, fewer make the executor wait
SINCE = 4  # protocol: what is predicted is part of it


class Ahead:
    """Messages of one lane on their way to its outbox. The session's lock is held around every call.

    The executor predicts the same messages from the same past. Its answers come early, with the epoch that they are
    for; breaking a prediction makes those void that have not been asked for.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._predictor = Predictor()
        self._pending = 0  # messages said and not sent, since they are known
        self._questions = 0  # among them, that were answered before they were asked
        self.wasted = 0  # programs that the executor undid
        self.depth = 0
        link.on_early, link.on_undone = self._early, self._undone

    def start(self) -> ToExecutor:
        """The message that makes the executor predict too; what is said after it goes through `say`."""
        return RunAhead(MAX_DEPTH)

    def say(self, message: ToExecutor, outbox: list[ToExecutor]) -> None:
        """Puts a message into the outbox, unless it is as predicted."""
        if isinstance(message, Free):
            self.write(outbox)  # what reads these values was said before
            outbox.append(message)
            return
        expected = self.predicts
        agreement = self._predictor.take(message)
        if agreement is Agreement.SAME:
            self._pending += 1
            self._questions += isinstance(message, Fetch) or (
                isinstance(message, Run) and message.wants is not None
            )
            if self._pending >= MAX_MESSAGES:
                self.write(outbox)
            return
        self.write(outbox)
        outbox.append(message)
        if expected and agreement is Agreement.OTHER:
            self._link.early.clear()

    @property
    def predicts(self) -> bool:
        """Whether it is known what is said next."""
        return self._predictor.expected is not None

    def due(self) -> bool:
        """Whether what is pending should be confirmed, though the client does not wait. Looks for what has arrived."""
        if self._questions + 1 < self.depth // BATCHES:
            return False
        self._link.poll()
        return True

    def write(self, outbox: list[ToExecutor]) -> None:
        """Confirms what is pending."""
        if self._pending:
            outbox.append(Confirm(self._pending, len(self._link.early)))
            self._pending = self._questions = 0

    def _early(self, message: Early) -> bool:
        """Whether it answers what this client is going to ask."""
        self.depth = message.depth
        return message.epoch == self._predictor.epoch

    def _undone(self, message: Undone) -> None:
        self.wasted += message.programs
