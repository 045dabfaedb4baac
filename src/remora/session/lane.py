"""A session's side of one executor: its link, what it was told, and what waits to be sent to it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence

from remora.capture.interrupts import uninterrupted
from remora.capture.recorder import CapturedTemplate
from remora.config import ClientSettings
from remora.session.ahead import SINCE, Ahead
from remora.session.failures import error_from, row_text, suspects_text
from remora.session.link import Link, to_stderr
from remora.session.ops import ExecutorOps
from remora.session.sites import Sites
from remora.session.stats import Stats
from remora.session.uploads import Uploads
from remora.transport.interface import Transport
from remora.wire.binding import Name, encode_run
from remora.wire.messages import Define, Free, Grant, Recover, Site, ToExecutor

OUTBOX_NBYTES = 256 << 10  # small uploads wait for company up to here,
OUTBOX_MESSAGES = 1024  # or up to so many
MAX_FREES = 4096  # names in one message
REMEMBERED_SEGMENTS = 20_000  # whose provenance is kept while they may still fail


class Lane:
    """Messages to one executor, in order. The session's lock is held around every call.

    Args:
        living: which of the session's values the program still holds, in words.
        progress: told of bytes uploaded.
    """

    def __init__(
        self,
        transport: Transport,
        grant: Grant,
        settings: ClientSettings,
        living: Callable[[], str],
        progress: Callable[[int], None],
    ) -> None:
        self.transport, self.grant = transport, grant
        self.link = Link(transport, grant, settings, to_stderr(transport.address), self._story, living=living)
        self.uploads = Uploads(transport, grant, progress)
        self.ops = ExecutorOps(transport, grant, self.link.persist)
        self._outbox: list[ToExecutor] = []
        self._outbox_nbytes = 0
        self._defined: dict[int, int] = {}  # captured index to the template's index on the wire
        self._sites = Sites()
        self._sent: OrderedDict[int, CapturedTemplate] = OrderedDict()
        self.ahead: Ahead | None = None
        if settings.run_ahead and grant.protocol >= SINCE:
            self.ahead = Ahead(self.link)
            self._outbox.append(self.ahead.start())

    def run(
        self,
        captured: CapturedTemplate,
        number: int,
        names: list[Name],
        holes: list[int | float],
        keep: tuple[int, ...],
        frees: tuple[int, ...],
        uploaded: Callable[[], Collection[int]] = frozenset,
        wants: tuple[int, ...] | None = None,
        ticket: int | None = None,
    ) -> None:
        """Runs a template as segment `number`; the other arguments as in wire.messages.Run.

        uploaded: gives the slots whose value came from the client.
        """
        if captured.index not in self._defined:
            self.say(Define(len(self._defined), captured.template.body))
            self._defined[captured.index] = len(self._defined)
        template = self._defined[captured.index]
        ended = [number - distance for distance in frees[::3]]
        self._sites.freed(ended)
        self.uploads.freed(ended)
        site, new = self._sites.choose(template, number, names)
        if new:
            self.say(Site(site.index, template))
        if len(frees) > 3 * MAX_FREES:
            groups = zip(frees[::3], frees[1::3], frees[2::3], strict=True)
            self.free([(number - distance, row, out) for distance, row, out in groups])
            frees = ()
        stay = frozenset(uploaded()) | site.fixed if new else frozenset()
        run = encode_run(
            site.memory, number, site.index, names, holes, keep, frees, wants, ticket, stay, site.taken
        )
        if run.slots is not None:
            self._sites.told(site, run.slots)
        self.say(run)
        self._sent[number] = captured
        if len(self._sent) > REMEMBERED_SEGMENTS:
            self._sent.popitem(last=False)

    def free(self, names: Sequence[Name]) -> None:
        self._sites.freed(segment for segment, _, _ in names)
        for start in range(0, len(names), MAX_FREES):
            group = names[start : start + MAX_FREES]
            self.say(Free(tuple(number for name in group for number in name)))

    def post(self, message: ToExecutor, nbytes: int = 0) -> None:
        """Puts a message in the outbox, which goes with the next segment or when it is full."""
        self.say(message)
        self._outbox_nbytes += nbytes
        if self._outbox_nbytes > OUTBOX_NBYTES or len(self._outbox) >= OUTBOX_MESSAGES:
            self.commit()

    def say(self, message: ToExecutor) -> None:
        """Puts a message in the outbox, or counts it as confirmed."""
        if self.ahead is None:
            self._outbox.append(message)
        else:
            self.ahead.say(message, self._outbox)

    @property
    def predicts(self) -> bool:
        """Whether the executor may have run already what is said next."""
        return self.ahead is not None and self.ahead.predicts

    def has(self, ticket: int) -> bool:
        """Whether a question's answer is here."""
        return ticket in self.link.early

    def due(self) -> bool:
        """Whether the executor should hear of what is as predicted, though nothing waits for it. It should where no
        answer is in hand: then something does."""
        return self.ahead is None or not self.link.early or self.ahead.due()

    def commit(self, asks: bool = True) -> None:
        """What is in the outbox will be sent from now on, whatever happens.

        asks: the client is going to wait; until then what is only confirmed may wait too.
        """
        if self.ahead is not None and (asks or self._outbox):
            self.ahead.write(self._outbox)
        if self._outbox:
            self.link.commit(self._outbox)
            self._outbox, self._outbox_nbytes = [], 0

    def raise_failure(self) -> None:
        """Raises what the executor said of a row, if it did; segments from here on run again."""
        failed = self.link.failed
        if failed is None:
            return
        captured = self._sent.get(failed.segment)
        with uninterrupted:
            self.link.failed = None
            self._sent.clear()
            self.say(Recover(failed.failure))
            self.commit()
        self.link.transmit()
        raise error_from(failed, captured, self.transport.address)

    def answered(self) -> None:
        """Replies come in order: everything sent before has run."""
        self._sent.clear()

    def stats(self) -> Stats:
        """What went over this lane."""
        used, wasted = self.link.early_used, self.ahead.wasted if self.ahead else 0
        return Stats(
            bytes_sent=self.link.bytes_sent + self.transport.bytes_sent,
            bytes_received=self.link.bytes_received + self.transport.bytes_received,
            round_trips=self.link.round_trips + self.uploads.round_trips + self.ops.round_trips,
            weights_bytes=self.uploads.sent_nbytes,
            reconnects=self.link.reconnects,
            speculated=used + wasted + len(self.link.early),
            confirmed=used,
            wasted=wasted,
            depth=self.ahead.depth if self.ahead else 0,
            exact=self.grant.exact,
        )

    def _story(self, segment: int, row: int, late: bool = False) -> str:
        captured = self._sent.get(segment)
        if captured is None:
            return ""
        before = [(other, None) for number, other in self._sent.items() if number < segment]
        return row_text(captured, row) + (suspects_text([*before, (captured, row)]) if late else "")
