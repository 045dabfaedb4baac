"""The client's half of run-ahead: what is predicted is counted instead of sent."""

from __future__ import annotations

from remora.runahead.predictor import Predictor
from remora.runahead.saying import Saying
from remora.session.link import Link
from remora.wire.limits import MAX_DEPTH
from remora.wire.messages import Confirm, Early, Fetch, Free, Run, RunAhead, ToExecutor, Undone

SINCE = 4  # protocol: what is predicted is part of it


class Ahead:
    """Messages of one lane on their way to its outbox. The session's lock is held around every call."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._saying: Saying[ToExecutor] = Saying(Predictor(), link.early, Confirm)
        self.write = self._saying.write
        self.wasted = 0  # programs that the executor undid
        link.on_early, link.on_undone = self._early, self._undone

    @property
    def depth(self) -> int:
        return self._saying.depth

    def start(self) -> ToExecutor:
        """The message that makes the executor predict too; what is said after it goes through `say`."""
        return RunAhead(MAX_DEPTH)

    def say(self, message: ToExecutor, outbox: list[ToExecutor]) -> None:
        """Puts a message into the outbox, unless it is as predicted."""
        if isinstance(message, Free):  # what reads these values was said before
            self._saying.say_unpredicted(message, outbox)
            return
        asks = isinstance(message, Fetch) or (isinstance(message, Run) and message.wants is not None)
        self._saying.say(message, asks, outbox)

    @property
    def predicts(self) -> bool:
        """Whether it is known what is said next."""
        return self._saying.predicts

    def due(self) -> bool:
        """Whether what is pending should be confirmed, though the client does not wait. Looks for what has arrived."""
        if not self._saying.due():
            return False
        self._link.poll()
        return True

    def _early(self, message: Early) -> bool:
        """Whether it answers what this client is going to ask."""
        return self._saying.hears(message.epoch, message.depth)

    def _undone(self, message: Undone) -> None:
        self.wasted += message.programs
