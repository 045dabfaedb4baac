"""A session's values on their way to and from other executors."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import torch

from remora.errors import ProtocolError, RemoraError
from remora.executor.hop import Arrival, Kind, Outgoing, Taken
from remora.executor.worker.exports import CannotExport, CannotOpen
from remora.executor.worker.failure import is_fatal, message_of
from remora.executor.worker.packing import Packed, pack, unpack
from remora.executor.worker.waiting import Waiting
from remora.wire.binding import Name, groups
from remora.wire.limits import MAX_INLINE_NBYTES, MAX_PUSHED
from remora.wire.messages import Abandon, Await, Peer, Push
from remora.wire.parcel import Parcel, decode_parcel, encode_parcel, padded

if TYPE_CHECKING:
    from remora.executor.worker.session import WorkerSession


class Transfers:
    """One session's part. `waiting.held`: its stream stands still."""

    def __init__(self, session: WorkerSession) -> None:
        self._session = session
        self.waiting = Waiting()
        self._near: set[int] = set()  # peers that open this device's memory

    def peer(self, message: Peer) -> None:
        self._near.discard(message.peer)  # the front says so again
        self._session.device.outbox.tell(Kind.PEER, self._session.number, message)

    def near(self, peer: int, near: bool) -> None:
        (self._near.add if near else self._near.discard)(peer)

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
        outbox, not_lent = self._session.device.outbox, ""
        if message.peer in self._near:
            try:
                return outbox.lend(self._session.number, Outgoing(*told), packed.into)
            except CannotExport as error:
                not_lent = str(error) or "it failed"
        return outbox.write(Outgoing(*told, not_lent=not_lent), packed.into)

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
        session, parcel, cannot = self._session, decode_parcel(arrival.head), ""
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
            if arrival.handle:
                self._open_storages(parcel, arrival.handle, storages)
            else:
                self._make_storages(parcel.storages, arrival, storages)
            kept = self.waiting.arrive(names)
            for name, tensor in unpack(parcel, storages).items():
                if name in kept:
                    session.values.keep(name if name in awaited else _early(name), tensor)
        except CannotOpen as error:  # the sender sends it another way
            cannot = str(error)[:4000] or "it failed"
        except Exception as error:
            text = message_of(error, session.device.held(session.principal))
            self.waiting.abandon(names, text[:4000], session.values.tensors)
            raise
        finally:
            session.device.returned.extend(path for path in arrival.paths[len(storages) :] if path)
            if arrival.handle or any(arrival.paths):  # else nothing was set aside for it
                session.device.outbox.tell(Kind.TAKEN, session.number, Taken(parcel.push, cannot))

    def _open_storages(self, parcel: Parcel, handle: bytes, made: list[torch.Tensor]) -> None:
        """Copies each out of another process's device memory. Raises CannotOpen."""
        exports, device, at = self._session.device.outbox.exports, self._session.device.device, 0
        if exports is None:
            raise CannotOpen(f"a worker on {device.type} opens no memory of another process")
        targets = []
        for nbytes in parcel.storages:
            made.append(torch.empty(nbytes, dtype=torch.uint8, device=device))
            if nbytes:
                targets.append((at, made[-1]))
            at += padded(nbytes)
        exports.read(handle, targets)

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
