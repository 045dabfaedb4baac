"""What client and executor say to each other, as typed unions.

A name of a value is (segment, row, output). In a step, names are written relative to the segment that
speaks, so that a repeated step repeats its bytes, and whatever equals the site's last run is left out.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from remora.wire.limits import (
    MAX_BLOB_NBYTES,
    MAX_DEPTH,
    MAX_DIMS,
    MAX_GENERATORS,
    MAX_INLINE_NBYTES,
    MAX_MESSAGES,
    MAX_NUMEL,
    MAX_PEERS,
    MAX_SITES,
    MAX_TEMPLATES,
)

Meta = msgspec.Meta
Segment = Annotated[int, Meta(ge=0, le=1 << 53)]
Row = Annotated[int, Meta(ge=0, le=1 << 20)]
Size = Annotated[int, Meta(ge=0, le=MAX_NUMEL)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=MAX_DIMS)]
Nbytes = Annotated[int, Meta(ge=0, le=MAX_BLOB_NBYTES)]
Digest = Annotated[bytes, Meta(min_length=32, max_length=32)]
Word = Annotated[str, Meta(max_length=64)]
Text = Annotated[str, Meta(max_length=1 << 16)]
Dtype = Annotated[str, Meta(max_length=32, pattern=r"^[a-z][a-z0-9_]*\Z")]
TemplateIndex = Annotated[int, Meta(ge=0, lt=MAX_TEMPLATES)]
SiteIndex = Annotated[int, Meta(ge=0, lt=MAX_SITES)]
Ticket = Annotated[int, Meta(ge=0, le=1 << 53)]
GeneratorIndex = Annotated[int, Meta(ge=0, lt=MAX_GENERATORS)]  # 0: the session's default generator
PeerIndex = Annotated[int, Meta(ge=0, lt=MAX_PEERS)]
Inline = Annotated[bytes, Meta(max_length=MAX_INLINE_NBYTES)]
Flat = Annotated[tuple[int, ...], Meta(max_length=1 << 16)]  # groups of ints, laid out one after another
Numbers = Annotated[tuple[int | float, ...], Meta(max_length=1 << 16)]

# ------------------------------------------------------------------ client to executor: steps


class Define(msgspec.Struct, frozen=True, array_like=True, tag=0):
    """Gives a template an index in this session; `body` is its canonical encoding (ir/graph.py)."""

    template: TemplateIndex
    body: Annotated[bytes, Meta(max_length=4 << 20)]


class Site(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """A place in the program where a template runs; remembers its last binding."""

    site: SiteIndex
    template: TemplateIndex


class Run(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Runs the site's template as segment `segment`. None means: as in the site's last run.

    slots: groups (slot, relative, segment or distance, row, out) of those that differ from what the last
    run predicts: the same name if absolute (relative=0), the same distance if relative=1.
    holes: groups (hole, value) of those that differ.
    keep: groups (row, out) of the outputs that live on after the segment.
    frees: groups (distance, row, out) of names that ended before this segment was sent.
    wants: groups (row, out) whose bytes are to come back under `ticket`; None means nothing.
    """

    segment: Segment
    site: SiteIndex
    slots: Flat | None = None
    holes: Numbers | None = None
    keep: Flat | None = None
    frees: Flat | None = None
    wants: Flat | None = None
    ticket: Ticket | None = None


class Put(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """A small tensor's bytes, C order, as value (segment, 0, 0)."""

    segment: Segment
    dtype: Dtype
    shape: Shape
    data: Inline


class Adopt(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Value (segment, 0, 0) is the stored blob `digest`, which this session has sent or proven to hold."""

    segment: Segment
    dtype: Dtype
    shape: Shape
    digest: Digest


class Fetch(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """Asks for values of earlier segments: groups (segment, row, out). `describe`: metadata only."""

    ticket: Ticket
    names: Flat
    describe: bool = False


class Free(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """Names that ended: groups (segment, row, out). Unknown names are ignored."""

    names: Flat


class Seed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """Seeds a generator of the session, in order with the steps; makes it if there is none."""

    seed: int  # msgpack bounds it: -2**63 to 2**64 - 1
    generator: GeneratorIndex = 0


class SaveRng(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """Value (segment, 0, 0) becomes the state that a generator has here: uint8 bytes, as its device writes it."""

    segment: Segment
    generator: GeneratorIndex = 0


class Recover(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """The client has raised failure `failure`; segments after this message run again."""

    failure: Ticket


class Barrier(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """Asks for a `Done` once everything before it has run on the device."""

    ticket: Ticket


class DefaultDtype(msgspec.Struct, frozen=True, array_like=True, tag=11):
    """The program's default dtype from here on: results of mixed numbers depend on it."""

    dtype: Dtype


class LoadRng(msgspec.Struct, frozen=True, array_like=True, tag=12):
    """Sets a generator to the state that the value `name` (segment, row, out) holds; makes it if there is none."""

    generator: GeneratorIndex
    name: tuple[Segment, Row, Row]


class Flag(msgspec.Struct, frozen=True, array_like=True, tag=13):
    """The program calls a setter of one of PyTorch's process-wide flags, see ops/flags.py."""

    setter: Word
    values: Annotated[tuple[bool | int | Word, ...], Meta(max_length=16)]


class MemoryQuery(msgspec.Struct, frozen=True, array_like=True, tag=14):
    """Asks for a `Memory`. `reset_peak`: the peak starts anew from what is held now."""

    ticket: Ticket
    reset_peak: bool = False


class DeviceQuery(msgspec.Struct, frozen=True, array_like=True, tag=15):
    """Asks for a `DeviceFacts`."""

    ticket: Ticket


class Mark(msgspec.Struct, frozen=True, array_like=True, tag=16):
    """Asks for a `Marked` once the device has passed this place; the client need not wait for it.

    settle: the executor waits for its device here, and counts that as computing.
    """

    ticket: Ticket
    settle: bool = False


class Peer(msgspec.Struct, frozen=True, array_like=True, tag=17):
    """Executor `peer` of this session: where it listens, the client's session there and that one's push secret.

    ca: PEM of the authority that signed its certificate; empty: those that the machine trusts.
    """

    peer: PeerIndex
    url: Annotated[str, Meta(max_length=2048)]
    session: Word
    secret: Word
    ca: Text = ""


class Push(msgspec.Struct, frozen=True, array_like=True, tag=18):
    """Sends values, as they are here in the stream, to `peer` under the same names: groups (segment, row, out).

    Values that share a storage share one there. A storage of which little is asked for is not sent whole,
    unless `whole`: then its size, and every offset and stride, is the same there.
    Answered by `Pushed` or `PushFailed`, always; every name must be awaited there, or abandoned.
    """

    ticket: Ticket
    peer: PeerIndex
    names: Flat
    whole: bool = False


class Await(msgspec.Struct, frozen=True, array_like=True, tag=19):
    """What follows waits until all these values are there, or are known not to come: groups (segment, row, out).

    source: who sends them, for the error of a row that reads one that did not come.
    """

    names: Flat
    source: Annotated[str, Meta(max_length=200)] = ""


class RunAhead(msgspec.Struct, frozen=True, array_like=True, tag=20):
    """From here on both ends predict what the client says next (runahead/predictor.py), and the executor may be up to
    `depth` programs ahead of it. Since protocol 4."""

    depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH)]


class Confirm(msgspec.Struct, frozen=True, array_like=True, tag=21):
    """The client says the next `count` messages as they are predicted. lead: answers that it has ahead of need."""

    count: Annotated[int, Meta(ge=1, le=MAX_MESSAGES)]
    lead: Annotated[int, Meta(ge=0, le=1 << 20)] = 0


ToExecutor = (
    Define
    | Site
    | Run
    | Put
    | Adopt
    | Fetch
    | Free
    | Seed
    | SaveRng
    | LoadRng
    | Recover
    | Barrier
    | DefaultDtype
    | Flag
    | MemoryQuery
    | DeviceQuery
    | Mark
    | Peer
    | Push
    | Await
    | RunAhead
    | Confirm
)

# ------------------------------------------------------------------ executor to client


class Payload(msgspec.Struct, frozen=True, array_like=True):
    """One value. `data` is C order; None: `nbytes` are to be read from the bulk route under `bulk`,
    or, for a description, not sent at all (`bulk` is None too). `stride` is the executor's."""

    dtype: Dtype
    shape: Shape
    stride: Shape
    data: Inline | None = None
    nbytes: Nbytes = 0
    bulk: Word | None = None


class Values(msgspec.Struct, frozen=True, array_like=True, tag=0):
    ticket: Ticket
    values: Annotated[tuple[Payload, ...], Meta(max_length=4096)]


class Done(msgspec.Struct, frozen=True, array_like=True, tag=1):
    ticket: Ticket


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Row `row` of segment `segment` failed; everything after it is skipped until `Recover(failure)`.

    kind: error, index, value, type, memory, unsupported, protocol, lost.
    shapes: of the op's tensor inputs, as text.
    """

    failure: Ticket
    segment: Segment
    row: Row
    kind: Word
    message: Text
    op: Annotated[str, Meta(max_length=200)] = ""
    shapes: Text = ""


class Lost(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """The session's state is gone for good (worker died, lease ended); the session is over.

    segment, row: what ran of this session when its worker died; segment 0: nothing.
    late: the device reports errors late, so it may be the fault of an earlier row.
    """

    reason: Text
    segment: Segment = 0
    row: Row = 0
    late: bool = False


class Memory(msgspec.Struct, frozen=True, array_like=True, tag=4):
    """Bytes of the session's tensors, each storage once: now, at most since the peak was reset, and all that
    were ever made. storages: how many there are now. reserved: by the device's allocator, for all sessions.
    free: what a new value may take."""

    ticket: Ticket
    allocated_nbytes: Nbytes
    peak_nbytes: Nbytes
    total_nbytes: Annotated[int, Meta(ge=0)]
    storages: Size
    reserved_nbytes: Nbytes
    free_nbytes: Nbytes


class DeviceFacts(msgspec.Struct, frozen=True, array_like=True, tag=5):
    """What the executor computes on. major, minor: compute capability, 0 for a CPU."""

    ticket: Ticket
    name: Annotated[str, Meta(max_length=200)]
    total_nbytes: Nbytes
    major: Size
    minor: Size
    multi_processors: Size
    bfloat16: bool


class Marked(msgspec.Struct, frozen=True, array_like=True, tag=6):
    """The device passed a `Mark` at `at_s`, by a clock of its own, having computed for the session for `busy_s`."""

    ticket: Ticket
    at_s: float
    busy_s: float


class Pushed(msgspec.Struct, frozen=True, array_like=True, tag=7):
    """The peer has a push's bytes: how many they were, header and all, and how long the last try to send took."""

    ticket: Ticket
    nbytes: Nbytes
    seconds: float


class PushFailed(msgspec.Struct, frozen=True, array_like=True, tag=8):
    """A push did not happen; the values here are what they were. The peer has been told, if it could be reached.

    kind: unreachable (may be tried again, under another ticket), refused (by the peer, or by the rule about
    peers here), value (it cannot be sent, or was never made).
    """

    ticket: Ticket
    kind: Word
    message: Text


class Early(msgspec.Struct, frozen=True, array_like=True, tag=9):
    """Values for a question that is predicted. Void if the client breaks a prediction before it asks, which counts
    its epochs. depth: how many programs the executor may be ahead now."""

    epoch: Segment
    depth: Size
    ticket: Ticket
    values: Annotated[tuple[Payload, ...], Meta(max_length=4096)]


class Undone(msgspec.Struct, frozen=True, array_like=True, tag=10):
    """The client broke a prediction; so many programs, begun ones too, were undone."""

    programs: Size


ToClient = (
    Values | Done | Failed | Lost | Memory | DeviceFacts | Marked | Pushed | PushFailed | Early | Undone
)

# ------------------------------------------------------------------ control plane: JSON bodies of routes


class OpenSession(msgspec.Struct, frozen=True):
    """POST /v1/sessions. `resume` and `secret` name a session to come back to."""

    protocol: int
    oldest_protocol: int
    torch: Word
    client: Word = ""
    seed: int = 0
    memory_nbytes: Nbytes = 0  # wanted; 0: whatever is granted
    exact: bool = True  # False: kernels may be others than PyTorch's, within a tolerance


class Grant(msgspec.Struct, frozen=True):
    """Answer to OpenSession: everything a session may use."""

    session: Word
    secret: Word
    epoch: int
    executor: Word
    protocol: int
    torch: Word
    device: Word
    ops_digest: Word
    lease_s: float
    memory_nbytes: Nbytes
    in_flight_frames: int
    in_flight_nbytes: int
    principal: Word
    priority: int = 0
    push_secret: Word = ""  # lets other executors add values to this session, and do nothing else
    exact: bool = True  # as asked for; an executor that does not know the question says True


class Abandon(msgspec.Struct, frozen=True):
    """POST /v1/sessions/{id}/abandon, with the push secret: these values, groups (segment, row, out), will not come.

    Out of the order of steps, since a session that waits for them takes no step. Values that have come stay.
    """

    names: Flat
    reason: Annotated[str, Meta(max_length=4096)] = ""


class BlobQuery(msgspec.Struct, frozen=True):
    """POST /v1/blobs/query: which of these hashes (hex) does my tenant already hold?"""

    digests: Annotated[tuple[Word, ...], Meta(max_length=4096)]


class BlobAnswer(msgspec.Struct, frozen=True):
    """`held` are present; to use one, prove possession: blake3 keyed with `nonce` over its bytes."""

    held: tuple[Word, ...]
    nonce: Word  # hex, 32 bytes, once per session


class BlobProof(msgspec.Struct, frozen=True):
    """POST /v1/blobs/prove: groups of digest to keyed hash, both hex."""

    proofs: Annotated[dict[Word, Word], Meta(max_length=4096)]


class Refusal(msgspec.Struct, frozen=True):
    """Body of every 4xx and 5xx answer. kind: auth, version, session, limit, blob, memory, busy, bug."""

    kind: Word
    message: Text


class Status(msgspec.Struct, frozen=True):
    """GET /v1/status: what `remora status` prints."""

    executor: Word
    version: Word
    protocol: int
    torch: Word
    device: Word
    uptime_s: float
    memory_nbytes: Nbytes
    used_nbytes: Nbytes
    sessions: int
    workers_started: int
    principals: dict[str, dict[str, float]]  # principal to counters
    # bytes_in, bytes_out (client), device_s, segments, of them inexact_segments; inexact_refused (programs); pushes,
    # push_s, peer_bytes_out, arrivals, peer_bytes_in;
    # of the pushes, those through the memory of a host that the two share (host_pushes), of a device
    # (device_pushes), and those that did not go the shortest way that there is (missed_pushes)
