"""A recorded program: what the planner and run-ahead need to meet it again, as lines of JSON, without any contents.

One line is one event, in the order of the session's op stream: first a Head, then what the program did, last an End
(a program that died has none). Every event but Shape, Took and Freed carries `own_s`: the client's own seconds since
the event before it, waits for executors and the recording itself taken out.

Names of values are (segment, row, output) as the program had them first, wherever they were placed. Runs are written
as on the wire (wire/binding.py): what differs from the site's last run. Contents of small uploads and of answers are
numbered, equal ones alike, since run-ahead looks at whether they repeat.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import msgspec

from remora.errors import UsageError
from remora.plan.devices import Device, Link, Pool, Seconds
from remora.wire.messages import Dtype, Flat, Run, Segment
from remora.wire.messages import Shape as Sizes

VERSION = 1
MAX_LINE_NBYTES = 16 << 20
MAX_EVENTS = 10_000_000
MAX_EXECUTORS = 64
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
Word = Annotated[str, msgspec.Meta(max_length=200)]
Hex = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^([0-9a-f]{2})*\Z")]


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="is"):
    """One line."""


class Head(Event, frozen=True, tag="head"):
    """The first line. devices, links, client: the pool that it ran on, as it was measured when it connected."""

    version: int
    remora: Word
    torch: Word
    devices: Annotated[tuple[Device, ...], msgspec.Meta(min_length=1, max_length=MAX_EXECUTORS)]
    client: Annotated[tuple[Link, ...], msgspec.Meta(min_length=1, max_length=MAX_EXECUTORS)]
    links: Annotated[tuple[tuple[int, int, Link], ...], msgspec.Meta(max_length=MAX_EXECUTORS**2)] = ()
    run_ahead: bool = True

    @property
    def pool(self) -> Pool:
        return Pool(
            self.devices, {(source, target): link for source, target, link in self.links}, self.client
        )


class Shape(Event, frozen=True, tag="shape"):
    """A captured graph (ir/annotated_text.py) at about one size: what a Ran runs. Numbered from 0 on."""

    text: str


class Ran(Event, frozen=True, tag="run"):
    """A segment. shape: of its graph. nbytes: of all that it reads. run: with `wants`, the next Read is of these.
    kept: bytes of the outputs that live on; None: as at its site before."""

    shape: Count
    nbytes: Count
    run: Run
    own_s: Seconds
    kept: Annotated[tuple[Count, ...], msgspec.Meta(max_length=1 << 16)] | None = None


class Put(Event, frozen=True, tag="put"):
    """A small tensor from the client as value (segment, 0, 0). index: of its device, where executors are several."""

    segment: Segment
    dtype: Dtype
    shape: Sizes
    nbytes: Count
    content: Count
    own_s: Seconds
    index: Count = 0


class Stored(Event, frozen=True, tag="store"):
    """A large one. sent_nbytes: of it, those that were not there yet. requests: that the client waited for. index: as
    above."""

    segment: Segment
    dtype: Dtype
    shape: Sizes
    nbytes: Count
    sent_nbytes: Count
    requests: Count
    own_s: Seconds
    index: Count = 0


class Read(Event, frozen=True, tag="read"):
    """The client asked for values, flat names, and got their bytes, or their descriptions (nbytes 0).

    names: (): those that the last Ran wants. content: of the answer. own_s: until it began to wait; waited_s: then;
    after_s: with the answer.
    """

    names: Flat
    nbytes: Annotated[tuple[Count, ...], msgspec.Meta(max_length=4096)]
    content: Count
    own_s: Seconds
    waited_s: Seconds
    after_s: Seconds
    describe: bool = False


class Freed(Event, frozen=True, tag="free"):
    """Values ended, flat names, that no Ran says."""

    names: Flat


class Asked(Event, frozen=True, tag="ask"):
    """Anything else that goes to the executors: waits: for an answer."""

    what: Word
    waits: bool
    own_s: Seconds
    waited_s: Seconds = 0.0


class Took(Event, frozen=True, tag="took"):
    """An executor measured one run of a template: plan/record.py learns from it. predicted_s: by the model alone."""

    template: Hex
    size: Count
    device: Word
    predicted_s: Seconds
    measured_s: Seconds


class End(Event, frozen=True, tag="end"):
    """The program ended its session."""

    own_s: Seconds


Any = Head | Shape | Ran | Put | Stored | Read | Freed | Asked | Took | End
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Any)


class Writer:
    """Events to a file, each on disk as soon as the buffer is full; nothing is kept."""

    def __init__(self, file: BinaryIO, head: Head) -> None:
        self._file = file
        self.write(head)
        file.flush()

    def write(self, event: Any) -> None:
        self._file.write(_encoder.encode(event) + b"\n")

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[Any]:
    """The events of a trace, the Head first, one at a time.

    Raises:
        UsageError: there is no such file, or it is no trace; names the line.
    """
    try:
        with path.open("rb") as file:
            yield from _events(file, path)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def _events(file: BinaryIO, path: Path) -> Iterator[Any]:
    for number in itertools.count(1):
        line = file.readline(MAX_LINE_NBYTES + 1)
        if not line:
            if number == 1:
                raise UsageError(f"{path} is empty")
            return
        if len(line) > MAX_LINE_NBYTES or number > MAX_EVENTS:
            raise UsageError(
                f"{path}:{number}: a trace has lines of {MAX_LINE_NBYTES} bytes, and {MAX_EVENTS} of them"
            )
        if not line.endswith(b"\n"):
            return  # the program died while it wrote this one
        try:
            event = _decoder.decode(line)
        except (msgspec.DecodeError, ValueError) as error:
            raise UsageError(f"{path}:{number}: no event of a trace: {error}") from None
        if isinstance(event, Head) != (number == 1):
            raise UsageError(f"{path}:{number}: a trace begins with its head, and has one")
        if isinstance(event, Head) and event.version != VERSION:
            raise UsageError(
                f"{path} is of version {event.version}; this Remora reads {VERSION}: record it again"
            )
        yield event
