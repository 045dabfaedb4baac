"""How many programs to be ahead: as few as keep the client from waiting."""

from __future__ import annotations

FIRST_DEPTH = 2
ENOUGH = 2  # answers that wait for the client; with more, less would do


class Depth:
    """A window. It doubles where the executor stood at its end and the client waited, and shrinks slowly where answers
    pile up, so it comes to lie at the round trip over the time of a program."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.programs = min(FIRST_DEPTH, most)

    def confirmed(self, lead: int, stalled: bool) -> None:
        """Programs were confirmed by a client that has `lead` answers ahead of need.

        stalled: the executor had nothing to do because of the depth.
        """
        if not lead and stalled:
            self.programs = min(2 * self.programs, self.most)
        elif lead > ENOUGH:
            self.programs = max(self.programs - 1, min(FIRST_DEPTH, self.most))
