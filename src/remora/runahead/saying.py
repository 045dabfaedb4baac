"""What a client leaves unsaid, since its executor predicts it, and what it already has the answer to. Decisions only.

The executor predicts the same messages from the same past (predictor.py). Its answers come early, with the epoch that
they are for; breaking a prediction makes those void that have not been asked for.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Generic, Protocol, TypeVar

from remora.runahead.predictor import Agreement
from remora.wire.limits import MAX_MESSAGES

BATCHES = 8  # of confirmations in the depth: more cost messages, fewer make the executor wait
FEW_EARLY = 4  # answers ahead of need; with fewer, a client that asks looks whether there are more

M = TypeVar("M", contravariant=True)


class Predicts(Protocol[M]):
    """As predictor.Predictor does."""

    @property
    def epoch(self) -> int: ...

    @property
    def expected(self) -> Any: ...

    def take(self, message: M) -> Agreement: ...


class Saying(Generic[M]):
    """One lane's messages on their way to its outbox.

    Args:
        early: answers in hand to questions that are still to be asked, by question.
        confirm: makes what says that so many messages were as predicted, with so many answers in hand.
    """

    __slots__ = ("_confirm", "_early", "_pending", "_predictor", "_questions", "depth")

    def __init__(
        self, predictor: Predicts[M], early: MutableMapping[int, Any], confirm: Callable[[int, int], Any]
    ) -> None:
        self._predictor, self._early, self._confirm = predictor, early, confirm
        self._pending = 0  # messages said and not sent, since they are known
        self._questions = 0  # among them, that were answered before they were asked
        self.depth = 0  # of the executor, when it last answered early

    @property
    def predicts(self) -> bool:
        """Whether it is known what is said next."""
        return self._predictor.expected is not None

    def say(self, message: M, asks: bool, outbox: list[Any]) -> bool:
        """Puts a message into the outbox, unless it is as predicted; whether it did."""
        expected = self.predicts
        agreement = self._predictor.take(message)
        if agreement is Agreement.SAME:
            self._pending += 1
            self._questions += asks
            if self._pending >= MAX_MESSAGES:
                self.write(outbox)
            return False
        self.say_unpredicted(message, outbox)
        if expected and agreement is Agreement.OTHER:
            self._early.clear()
        return True

    def say_unpredicted(self, message: M, outbox: list[Any]) -> None:
        """A message that is no part of what is predicted: what was said before it was meant before it."""
        self.write(outbox)
        outbox.append(message)

    def write(self, outbox: list[Any]) -> None:
        """Confirms what is pending."""
        if self._pending:
            outbox.append(self._confirm(self._pending, len(self._early)))
            self._pending = self._questions = 0

    def due(self) -> bool:
        """Whether what is pending should be confirmed, though the client, which asks once more, need not wait."""
        return self._questions + 1 >= self.depth // BATCHES

    def hears(self, epoch: int, depth: int) -> bool:
        """An early answer came. Whether it is to something that this client is going to ask."""
        self.depth = depth
        return epoch == self._predictor.epoch
