"""How many programs to be ahead: as few as keep the client from waiting."""

from __future__ import annotations

FIRST_DEPTH = 2
SPARE = 4  # of a depth, one part in so many waits for the client, lest a step that took long makes it wait


class Depth:
    """A window. It doubles where the executor stood at its end and the client waited, and shrinks where answers piled
    up all the while, so it comes to lie a little above the round trip over the time of a program.

    What a change does shows a round trip later: until what was under way then is confirmed, nothing changes again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.programs = min(FIRST_DEPTH, most)
        self._settling = 0  # programs, until a change shows
        self._watched = 0  # programs since
        self._least = most  # the lead that the client had throughout
        self._short = True  # whether the executor was about to stand all the while

    def confirmed(self, programs: int, lead: int, stalled: bool, short: bool = False) -> None:
        """Programs were confirmed by a client that has `lead` answers ahead of need.

        stalled: the executor had nothing to do because of the depth. short: it was a program short of that.
        """
        if self._settling > 0:
            self._settling -= programs
            return
        if not lead and stalled:
            self._become(2 * self.programs)
            return
        self._short = self._short and short
        self._least = min(self._least, lead)
        self._watched += programs
        if self._watched < self.programs:
            return
        if not self._least and self._short:  # both are as fast, and each waits for the other in turn
            self._become(2 * self.programs)
            return
        spare = max(0, self._least - self.programs // SPARE)
        self._become(self.programs - spare // 2)

    def broken(self) -> None:
        """Nothing is under way any more."""
        self._settling = self._watched = 0
        self._short = True
        self._least = self.most

    def _become(self, programs: int) -> None:
        """A depth, from which on it is watched anew."""
        before, self.programs = self.programs, max(min(programs, self.most), min(FIRST_DEPTH, self.most))
        self._settling = before if self.programs != before else 0
        self._watched, self._least, self._short = 0, self.most, True
