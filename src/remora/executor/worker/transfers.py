"""A session's values on their way to and from other executors."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec
import torch

from remora.errors import ProtocolError, RemoraError
from remora.executor.buffers import SPARE_S, Buffer, Buffers
from remora.executor.hop import Arrival, Kind, Outgoing, Taken
from remora.executor.worker.failure import MemoryLimit, is_fatal, message_of
from remora.executor.worker.packing import Packed, pack, unpack
from remora.executor.worker.waiting import Waiting
from remora.wire.binding import Name, groups
from remora.wire.limits import MAX_INLINE_NBYTES, MAX_PUSHED
from remora.wire.messages import Abandon, Await, Peer, Push
from remora.wire.parcel import decode_parcel, encode_parcel

if TYPE_CHECKING:
    from remora.executor.worker.session import WorkerSession


class Outbox:
    """Pushes that the front is sending, of all sessions: their bytes lie in shared memory, apart from the values.

    limit_nbytes: what they may take together. tell: gives the front a packet.
    """

    def __init__(
        self, buffers: Buffers, limit_nbytes: int, tell: Callable[[Kind, int, msgspec.Struct], None]
    ) -> None:
        self.buffers, self.limit_nbytes, self.tell = buffers, limit_nbytes, tell
        self._sending: dict[str, Buffer] = {}

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._sending.values())

    def take(self, push: str, nbytes: int) -> Buffer:
        """Raises MemoryLimit, OSError."""
        if self.nbytes + nbytes > self.limit_nbytes:
            raise MemoryLimit(
                f"asked for {nbytes:,} bytes to send; {self.nbytes:,} are on their way to other executors"
            )
        buffer = self.buffers.take(nbytes)
        if buffer is None:
            if self.nbytes + self.buffers.spare_nbytes + nbytes > self.limit_nbytes:
                self.buffers.drop_spare()
            buffer = self.buffers.create(nbytes)
        self._sending[push] = buffer
        return buffer

    def sent(self, push: str, reusable: bool) -> None:
        buffer = self._sending.pop(push, None)
        if buffer is None:
            return
        if reusable:
            self.buffers.give_back(buffer, time.monotonic())
        else:
            self.buffers.drop(buffer)

    def drop_spare(self) -> bool:
        """Gives back what nothing was sent from for a while; false if there is none left to look after."""
        self.buffers.drop_spare(time.monotonic() - SPARE_S)
        return bool(self.buffers.spare_nbytes)


class Transfers:
    """One session's part. `waiting.held`: its stream stands still."""

    def __init__(self, session: WorkerSession) -> None:
        self._session = session
        self.waiting = Waiting()

    def peer(self, message: Peer) -> None:
        self._session.device.outbox.tell(Kind.PEER, self._session.number, message)

    # ---- to others

    def push(self, message: Push) -> None:
        """Hands the values over as they are now, or the reason why not."""
        push = secrets.token_hex(8)
        try:
            outgoing = self._packed(push, message)
        except Exception as error:
            if is_fatal(error):
                raise
            device, session = self._session.device, self._session
            device.outbox.sent(push, reusable=True)
            text = message_of(error, device.held(session.principal))
            outgoing = Outgoing(push, message.ticket, message.peer, message.names, failed=text[:4000] or "?")
        self._session.device.outbox.tell(Kind.PUSH, self._session.number, outgoing)

    def _packed(self, push: str, message: Push) -> Outgoing:
        names: list[Name] = [(segment, row, out) for segment, row, out in groups(message.names, 3)]
        if not 0 < len(names) <= MAX_PUSHED or len(set(names)) < len(names):
            raise ProtocolError(f"{len(names)} values in one push, each once: 1 to {MAX_PUSHED} can be sent")
        failed = self._session.failed
        if failed is not None:
            raise RemoraError(f"not sent, because of an earlier failure: {failed.message}")
        packed = pack(push, names, self._session.look_up(names), message.whole)
        head, nbytes = encode_parcel(packed.parcel), packed.parcel.body_nbytes
        told = (push, message.ticket, message.peer, message.names, head, nbytes)
        if nbytes <= MAX_INLINE_NBYTES:
            return Outgoing(*told, data=_written(packed, bytearray(nbytes)))
        buffer = self._session.device.outbox.take(push, nbytes)
        packed.into(torch.frombuffer(buffer.mapped, dtype=torch.uint8))
        return Outgoing(*told, path=buffer.path)

    # ---- from others

    def wait(self, message: Await) -> None:
        """What came early becomes a value here, in the order of the stream: its name may have been freed just now."""
        names = [(segment, row, out) for segment, row, out in groups(message.names, 3)]
        values = self._session.values
        for name in names:
            early = values.tensors.get(_early(name))
            if early is not None:
                if name in values.tensors:
                    raise ProtocolError(f"value {name} was sent by another executor, and exists already")
                values.keep(name, early)
                values.free(_early(name))
        self.waiting.wait(names, message.source, values.tensors)

    def abandon(self, message: Abandon) -> None:
        names = [(segment, row, out) for segment, row, out in groups(message.names, 3)]
        tensors = self._session.values.tensors
        there = {name for name in names if name in tensors or _early(name) in tensors}
        self.waiting.abandon(names, message.reason, there)

    def arrive(self, arrival: Arrival) -> None:
        """Makes values of what came. Raises what the session answers for; then none of the values has come."""
        session, parcel = self._session, decode_parcel(arrival.head)
        names = [part.name for part in parcel.parts]
        storages: list[torch.Tensor] = []
        try:
            awaited = self.waiting.missing.keys() & set(names)
            for name in names:
                if _early(name) in session.values.tensors or (
                    name in awaited and name in session.values.tensors
                ):
                    raise ProtocolError(f"value {name} was sent by another executor, and exists already")
            session.admit(parcel.nbytes, len(names))
            self._make_storages(parcel.storages, arrival, storages)
            kept = self.waiting.arrive(names)
            for name, tensor in unpack(parcel, storages).items():
                if name in kept:
                    session.values.keep(name if name in awaited else _early(name), tensor)
        except Exception as error:
            text = message_of(error, session.device.held(session.principal))
            self.waiting.abandon(names, text[:4000], session.values.tensors)
            raise
        finally:
            session.device.returned.extend(path for path in arrival.paths[len(storages) :] if path)
            session.device.outbox.tell(Kind.TAKEN, session.number, Taken(parcel.push))

    def _make_storages(self, sizes: tuple[int, ...], arrival: Arrival, made: list[torch.Tensor]) -> None:
        device, at = self._session.device, 0
        for nbytes, path in zip(sizes, arrival.paths, strict=True):
            if path:
                made.append(device.adopt(path, nbytes))
            else:
                made.append(_own(arrival.data[at : at + nbytes], device.device))
                at += nbytes


def _early(name: Name) -> Name:
    """The name of a value that came before its Await; no client can say it."""
    segment, row, out = name
    return ~segment, row, out


def _written(packed: Packed, memory: bytearray) -> bytes:
    if memory:
        packed.into(torch.frombuffer(memory, dtype=torch.uint8))
    return bytes(memory)


def _own(data: bytes, device: torch.device) -> torch.Tensor:
    """In memory of its own, which may grow."""
    if not data:
        return torch.empty(0, dtype=torch.uint8, device=device)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device, copy=True)
