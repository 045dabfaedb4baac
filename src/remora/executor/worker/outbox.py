"""What a worker has handed over to be sent: apart from the values, so that later writes change nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
import torch

from remora.executor.buffers import SPARE_S, Buffer, Buffers
from remora.executor.hop import Kind, Outgoing
from remora.executor.worker.exports import Exports
from remora.executor.worker.failure import MemoryLimit


@dataclass(frozen=True)
class _Lent:
    """A push that was handed over as device memory; the session is the one that the front answers for."""

    session: int
    outgoing: Outgoing


class Outbox:
    """Pushes that the front is sending, of all sessions: their bytes lie in shared memory, apart from the values.

    limit_nbytes: what they may take together. tell: gives the front a packet. exports: device memory to lend.
    """

    def __init__(
        self,
        buffers: Buffers,
        limit_nbytes: int,
        tell: Callable[[Kind, int, msgspec.Struct], None],
        exports: Exports | None = None,
    ) -> None:
        self.buffers, self.limit_nbytes, self.tell, self.exports = buffers, limit_nbytes, tell, exports
        self._lent: dict[str, _Lent] = {}
        self._sending: dict[str, Buffer] = {}

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self._sending.values())

    @property
    def device_nbytes(self) -> int:
        """Of the device's memory: what others read, or may be reading still."""
        return self.exports.lent_nbytes + self.exports.doubtful_nbytes if self.exports is not None else 0

    @property
    def kept_nbytes(self) -> int:
        """To be given back after a while, of the host's memory and the device's."""
        if self.exports is None:
            return self.buffers.spare_nbytes
        return self.buffers.spare_nbytes + self.exports.spare_nbytes + self.exports.doubtful_nbytes

    def write(self, outgoing: Outgoing, into: Callable[[torch.Tensor], None]) -> Outgoing:
        """The push with its body in a file. Raises MemoryLimit, OSError."""
        buffer = self.take(outgoing.push, outgoing.nbytes)
        into(torch.frombuffer(buffer.mapped, dtype=torch.uint8))
        return msgspec.structs.replace(outgoing, path=buffer.path)

    def lend(self, session: int, outgoing: Outgoing, into: Callable[[torch.Tensor], None]) -> Outgoing:
        """The push with its body in the device's memory. Raises CannotExport."""
        assert self.exports is not None
        handle = self.exports.lend(outgoing.push, outgoing.nbytes, into)
        self._lent[outgoing.push] = _Lent(session, outgoing)
        return msgspec.structs.replace(outgoing, handle=handle)

    def spill(self, push: str, reusable: bool) -> None:
        """Nobody opened the device memory of a push: hands it over as a file, or says why not."""
        lent = self._lent.pop(push, None)
        if lent is None or self.exports is None:  # of a worker before this one
            self.tell(
                Kind.PUSH,
                0,
                Outgoing(push, 0, 0, (), failed="the worker that had the values has ended", again=True),
            )
            return
        tensor, nbytes = self.exports.lent(push), lent.outgoing.nbytes
        assert tensor is not None
        again = msgspec.structs.replace(lent.outgoing, again=True)
        try:
            spilled = self.write(again, lambda memory: memory[:nbytes].copy_(tensor[:nbytes]))
        except (OSError, MemoryLimit) as error:
            self.sent(push, reusable=True)
            spilled = msgspec.structs.replace(again, failed=str(error)[:4000] or "?")
        self.exports.over(push, reusable)
        self.tell(Kind.PUSH, lent.session, spilled)

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
        if self._lent.pop(push, None) is not None and self.exports is not None:
            self.exports.over(push, reusable)
        buffer = self._sending.pop(push, None)
        if buffer is None:
            return
        if reusable:
            self.buffers.give_back(buffer, time.monotonic())
        else:
            self.buffers.drop(buffer)

    def drop_spare(self) -> bool:
        """Gives back what nothing was sent from for a while; false if there is none left to look after."""
        before = time.monotonic() - SPARE_S
        self.buffers.drop_spare(before)
        if self.exports is not None:
            self.exports.drop_spare(before)
        return bool(self.kept_nbytes)
