"""The worker's end of the hop, for reading."""

from __future__ import annotations

import select
import socket

from remora.errors import ProtocolError
from remora.executor.hop import HEADER, MAX_PACKET_NBYTES, Kind


class Packets:
    """The packets that the front sends."""

    def __init__(self, hop: socket.socket) -> None:
        self.hop = hop
        self._buffer = bytearray()

    def next(self) -> tuple[Kind, int, bytes] | None:
        """Blocks; None when the front has closed the hop."""
        while True:
            if len(self._buffer) >= HEADER.size:
                nbytes, kind, number = HEADER.unpack_from(self._buffer)
                if nbytes > MAX_PACKET_NBYTES:
                    raise ProtocolError(f"packet of {nbytes} bytes on the hop")
                end = HEADER.size + nbytes
                if len(self._buffer) >= end:
                    body = bytes(memoryview(self._buffer)[HEADER.size : end])
                    del self._buffer[:end]
                    return Kind(kind), number, body
            received = self.hop.recv(1 << 18)
            if not received:
                return None
            self._buffer += received

    def quiet(self, timeout_s: float) -> bool:
        """Whether nothing came for so long."""
        return not self._buffer and not select.select([self.hop], [], [], timeout_s)[0]
