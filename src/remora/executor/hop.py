"""The local hop between front and worker: length-prefixed packets over a Unix socket pair.

The front starts a worker with one end of a socket pair and a private folder; steps, replies and control
cross by packets, bulk bytes by files in that folder, which the other side maps.
A packet is (nbytes u32, kind u8, session u32, payload). Sessions are small numbers chosen by the front.
"""

from __future__ import annotations

import enum
import struct

import msgspec

HEADER = struct.Struct("<IBI")  # nbytes of the payload, kind, session

# The worker's file `progress`, which the front reads when the worker is dead or gives no sign of life:
PROGRESS = struct.Struct("<IQI")  # session, segment, row: what runs now; session 0: nothing
BEAT_AT, BEAT = 16, struct.Struct("<Q")  # counts up while the process lives, whatever it runs
OPS_AT, OPS = (
    24,
    struct.Struct("<I"),
)  # length of the text that follows: the ops of the running template, by row
PROGRESS_NBYTES = 64 << 10
BEAT_S = 0.25
MAX_PACKET_NBYTES = 64 << 20
MISCONFIGURED_EXIT = 78  # of a worker that would fail again: it has said on stderr what is wrong


class Kind(enum.IntEnum):
    # front to worker
    OPEN = 1  # SessionTerms
    STEP = 2  # encoded tuple of ToExecutor
    CLOSE = 3  # nothing
    BLOB = 4  # BlobFile: the session may adopt it from now on
    BULK_READ = 5  # BulkRead: the file may go
    OTHERS = 6  # Others, for no session in particular
    ARRIVAL = 7  # Arrival: values that another executor has sent
    ABANDON = 8  # wire's Abandon
    SENT = 9  # Sent, for no session in particular: a push that has a path or a handle is over
    NEAR = 10  # Near
    SPILL = 11  # Spill, for no session in particular
    # worker to front
    READY = 16  # WorkerReady
    REPLY = 17  # encoded tuple of ToClient
    BULK = 18  # BulkFile: a large value that the session may read; sent before the reply that names it
    USAGE = 19  # Usage, at most every 100 ms, and after a session closed
    RELEASE = 20  # BlobRelease: no value of the session is made of the blob any more
    FATAL = 21  # Fatal: the session's op broke the device; the worker ends
    PEER = 22  # wire's Peer
    PUSH = 23  # Outgoing
    HOLD = 24  # one byte: whether the session's steps are to stay with the front for now
    TAKEN = 25  # Taken: an arrival that has paths or a handle is a value now, or refused
    RETURNED = 26  # Returned, for no session in particular


class SessionTerms(msgspec.Struct, frozen=True):
    """exact: only kernels that PyTorch itself would choose."""

    principal: str
    seed: int
    memory_nbytes: int
    exact: bool = True


class BlobFile(msgspec.Struct, frozen=True):
    """`times`: how often the session was given this blob, this time included."""

    digest: bytes
    path: str
    nbytes: int
    times: int


class BlobRelease(msgspec.Struct, frozen=True):
    """`times`: of the last BlobFile that the worker has seen; if the front has sent another, this is outdated."""

    digest: bytes
    times: int


class BulkFile(msgspec.Struct, frozen=True):
    bulk: str
    path: str
    nbytes: int


class BulkRead(msgspec.Struct, frozen=True):
    bulk: str


class WorkerReady(msgspec.Struct, frozen=True):
    """`memory_nbytes`: what the device has; `ops`: digest of each allowed op's schema; `schemas`: their text;
    `exports`: kind of device memory that it can lend to other processes of this host, empty if none."""

    torch: str
    device: str
    memory_nbytes: int
    ops_digest: str
    ops: dict[str, str]
    schemas: dict[str, str] = {}
    exports: str = ""


class Fatal(msgspec.Struct, frozen=True):
    """The device reported `message` at this row; a GPU reports late, so it may be an earlier one's fault."""

    segment: int
    row: int
    op: str
    shapes: str
    message: str
    late: bool


class Outgoing(msgspec.Struct, frozen=True):
    """A push as the worker hands it over: its values' bytes lie at `path`, in device memory that has `handle`, or
    in `data` if they are few.

    names: flat. head: the encoded Parcel. failed: why there is nothing to send; the peer is to be told.
    not_lent: why it is no device memory, though the peer could open it. again: this is what a Spill asked for.
    """

    push: str
    ticket: int
    peer: int
    names: tuple[int, ...]
    head: bytes = b""
    nbytes: int = 0
    path: str = ""
    data: bytes = b""
    failed: str = ""
    handle: bytes = b""
    not_lent: str = ""
    again: bool = False


class Sent(msgspec.Struct, frozen=True):
    """`reusable`: nobody reads the push's buffer any more."""

    push: str
    reusable: bool


class Near(msgspec.Struct, frozen=True):
    """Whether the session's peer can open this worker's device memory."""

    peer: int
    near: bool


class Spill(msgspec.Struct, frozen=True):
    """The peer could not open the push's device memory: it is to be handed over once more, as a file.

    reusable: nobody reads it."""

    push: str
    reusable: bool


class Arrival(msgspec.Struct, frozen=True):
    """head: an encoded Parcel, which was checked. paths: of each storage, empty if its bytes are next in `data`.
    handle: of device memory of another process, in which the body lies instead."""

    head: bytes
    paths: tuple[str, ...]
    data: bytes
    handle: bytes = b""


class Taken(msgspec.Struct, frozen=True):
    """cannot: why the device memory could not be opened; the session knows nothing of the push then."""

    push: str
    cannot: str = ""


class Returned(msgspec.Struct, frozen=True):
    """Paths of arrivals that no value lies in any more."""

    paths: tuple[str, ...]


class Others(msgspec.Struct, frozen=True):
    """Bytes of the device that other workers' values, and other tenants' stored weights, take."""

    nbytes: int


class SessionUsage(msgspec.Struct, frozen=True, array_like=True):
    """Totals of a session's life, but for used_nbytes. inexact_segments: run with other kernels than PyTorch's;
    inexact_refused: programs for which those were compared and were too far away."""

    used_nbytes: int = 0
    device_s: float = 0.0
    segments: int = 0
    inexact_segments: int = 0
    inexact_refused: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Live bytes on the device, and what each session used, by its number."""

    used_nbytes: int
    sessions: dict[int, SessionUsage]


_encoder = msgspec.msgpack.Encoder()


def packet(kind: Kind, session: int, payload: bytes | msgspec.Struct = b"") -> bytes:
    """One packet's bytes."""
    body = payload if isinstance(payload, bytes) else _encoder.encode(payload)
    return HEADER.pack(len(body), kind, session) + body
