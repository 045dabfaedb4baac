"""How long a program takes, from sync to sync: the client captures, the executors follow, the answer comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from remora.plan.devices import Link
from remora.plan.duration import Duration, total

CLIENT_SIGMA = 0.1  # relative error of what the client's own part takes the next time


@dataclass(frozen=True, slots=True)
class Took:
    """One program. whole: from its beginning to the answer at the client. client_s: until the client asks for that.
    executors: what they compute and exchange. rows, nbytes: captured, and sent to say so. synced: somebody asks."""

    phase: str
    whole: Duration
    client_s: float
    executors: Duration
    rows: int
    nbytes: int
    synced: bool


@dataclass
class Timeline:
    """One program as it grows."""

    rows: int = 0
    nbytes: int = 0
    end_s: float = 0.0  # when the executors are done, from the program's beginning
    executors: Duration = field(default_factory=Duration)
    _chain: list[Duration] = field(default_factory=list)  # what that end waits for, one after the other
    _phases: list[tuple[int, str]] = field(default_factory=list)

    @property
    def started(self) -> bool:
        return bool(self._phases)

    def segment(
        self, captured_s: float, took: Duration, links: Sequence[Link], nbytes: int, rows: int, phase: str
    ) -> None:
        """A segment was captured, so many seconds after the program began.

        Args:
            took: by the executors. links: to those that run it. nbytes: of what says so.
        """
        way = max((_way(link, nbytes) for link in links), key=lambda way: way.seconds, default=Duration())
        if captured_s + way.seconds >= self.end_s:
            self._chain, self.end_s = [_client(captured_s), way], captured_s + way.seconds
        self._chain.append(took)
        self.end_s += took.seconds
        self.executors += took
        self.rows += rows
        self.nbytes += nbytes
        self._phases.append((rows, phase))

    def ended(self, asked_s: float, link: Link | None, nbytes: int) -> Took:
        """The client asks for the result, and waits.

        Args:
            asked_s: when. link: to the executor that has it; None: nobody asks, the script is over.
        """
        chain, end_s = self._chain, self.end_s
        way = _way(link, 0) if link is not None else Duration()
        if asked_s + way.seconds >= end_s:
            chain, end_s = [_client(asked_s), way], asked_s + way.seconds
        if link is not None:
            back = _way(link, nbytes)
            chain, end_s = [*chain, back], end_s + back.seconds
        phase = max(self._phases, default=(0, ""))[1]
        whole = Duration(end_s, total(chain).errors)
        return Took(phase, whole, asked_s, self.executors, self.rows, self.nbytes, link is not None)


def _client(seconds: float) -> Duration:
    return Duration(seconds, {"client": seconds * CLIENT_SIGMA})


def _way(link: Link, nbytes: int) -> Duration:
    """A message on the session's own channel, which costs its ends next to nothing."""
    seconds = link.latency_s + nbytes / link.bytes_per_s
    return Duration(seconds, {"link": seconds * link.sigma})
