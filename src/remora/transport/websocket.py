"""The step channel over a WebSocket: the `websockets` protocol core on a socket of our own.

`send` and `receive` are for one thread at a time (the session holds a lock around them); `ping` and `close`
may be called from any thread at any moment. What they share is guarded by a lock that is never held while
waiting for the network.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from collections.abc import Mapping

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from remora.errors import ConnectError, RemoraError
from remora.transport.address import Address
from remora.transport.connection import Traffic, connect
from remora.transport.exchange import answered_error
from remora.transport.interface import ChannelCut
from remora.wire.limits import MAX_FRAME_NBYTES

SEND_STALL_S = 60.0  # a peer that takes nothing for so long counts as cut off
_READ_NBYTES = 1 << 16


class WebSocketChannel(Traffic):
    """An open WebSocket; see `open_websocket`."""

    def __init__(
        self, address: Address, tls: ssl.SSLContext | None, protocol: ClientProtocol, timeout_s: float
    ) -> None:
        super().__init__()
        self._address = address
        self._connection = connect(address, tls, self, timeout_s)
        self._protocol = protocol
        self._lock = threading.Lock()
        self._arrived: deque[bytes] = deque()
        self._unsent: deque[memoryview] = deque()
        self._fragments: list[bytes] | None = None  # of a message that has not ended
        self._cut: str | None = None  # why the channel is over
        self._buffer = memoryview(bytearray(_READ_NBYTES))
        self.response: Response | None = None
        self.heard_at = time.monotonic()

    def send(self, frame: bytes) -> None:
        assert len(frame) <= MAX_FRAME_NBYTES, f"frame of {len(frame)} bytes"
        with self._lock:
            self._check_open()
            self._protocol.send_binary(frame)
            self._flush()
        self._finish_sending()

    def receive(self, timeout_s: float) -> bytes | None:
        if self._arrived:
            return self._arrived.popleft()
        deadline = time.monotonic() + timeout_s
        while True:
            with self._lock:
                self._flush()
                self._pump()
                if self._arrived:
                    return self._arrived.popleft()
                self._check_open()
                writable = bool(self._unsent)
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                return None
            self._wait(left_s, writable)

    def ping(self) -> None:
        # A sender that is stuck holds no lock, so this waits only for a call that is about to end.
        with self._lock:
            self._check_open()
            self._protocol.send_ping(b"")
            self._flush()

    def close(self) -> None:
        with self._lock:
            if self._cut is None:
                self._cut = "closed here"
                if self._protocol.state is OPEN:
                    self._protocol.send_close(1000)
                self._flush()
        self.abandon()

    def abandon(self) -> None:
        """Closes the socket without a word."""
        self._connection.close()

    def shake_hands(self, request_headers: Mapping[str, str], deadline: float) -> Response:
        """Sends the upgrade request and waits for its response. Raises TimeoutError, ChannelCut."""
        request = self._protocol.connect()
        for name, value in request_headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        while self.response is None:
            self._flush()
            self._pump()
            if self.response is not None:
                break
            self._check_open()
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise TimeoutError
            self._wait(left_s, bool(self._unsent))
        return self.response

    def _finish_sending(self) -> None:
        """Waits until everything is sent, reading meanwhile: a peer may take nothing until it is read."""
        if not self._unsent:
            return
        deadline = time.monotonic() + SEND_STALL_S
        while True:
            with self._lock:
                before = self.bytes_sent
                self._flush()
                self._pump()
                if not self._unsent:
                    return
                if self._cut is not None:
                    self._check_open()
                if self.bytes_sent > before:
                    deadline = time.monotonic() + SEND_STALL_S
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                with self._lock:
                    self._end(f"the executor took no bytes for {SEND_STALL_S:g} s")
                    self._check_open()
            self._wait(left_s, writable=True)

    def _wait(self, timeout_s: float, writable: bool) -> None:
        try:
            self._connection.wait(timeout_s, readable=True, writable=writable)
        except OSError as error:
            with self._lock:
                self._end(str(error))
                self._check_open()

    def _flush(self) -> None:
        """Hands to the socket what it takes now. Called with the lock held."""
        self._unsent.extend(memoryview(data) for data in self._protocol.data_to_send() if data)
        try:
            while self._unsent:
                n = self._connection.write(self._unsent[0])
                if n < len(self._unsent[0]):
                    self._unsent[0] = self._unsent[0][n:]
                    return
                self._unsent.popleft()
        except OSError as error:
            self._pump()  # the peer's reason may have arrived
            self._end(error.strerror or str(error))

    def _pump(self) -> None:
        """Takes in what the socket has now. Called with the lock held."""
        while self._cut is None:
            try:
                n = self._connection.read(self._buffer)
            except OSError as error:
                return self._end(error.strerror or str(error))
            if n is None:
                return None
            if n == 0:
                self._protocol.receive_eof()
                return self._end("the executor ended the connection without a word")
            self.heard_at = time.monotonic()
            self._protocol.receive_data(bytes(self._buffer[:n]))
            for event in self._protocol.events_received():
                if isinstance(event, Frame):
                    self._take(event)
                elif isinstance(event, Response):
                    self.response = event
            if self._protocol.parser_exc is not None:
                self._end(f"broken WebSocket stream: {self._protocol.parser_exc}")
            self._unsent.extend(memoryview(data) for data in self._protocol.data_to_send() if data)
            if self._cut is not None:
                self._flush()  # the closing word, if the socket takes it
            if n < _READ_NBYTES:
                return None
        return None

    def _take(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE:
            close = self._protocol.close_rcvd
            self._end(f"the executor closed the channel: {close}" if close else "the executor closed it")
        elif frame.opcode is Opcode.TEXT:
            self._end("the executor sent text; frames are binary")
        elif frame.opcode is Opcode.BINARY or frame.opcode is Opcode.CONT:
            if frame.fin and self._fragments is None:
                self._arrived.append(bytes(frame.data))
                return
            self._fragments = [*(self._fragments or []), bytes(frame.data)]
            if frame.fin:
                self._arrived.append(b"".join(self._fragments))
                self._fragments = None

    def _end(self, reason: str) -> None:
        if self._cut is None:
            self._cut = reason

    def _check_open(self) -> None:
        if self._cut is not None:
            raise ChannelCut(f"{self._address.text}: {self._cut}")


def open_websocket(
    address: Address,
    tls: ssl.SSLContext | None,
    path: str,
    headers: Mapping[str, str],
    timeout_s: float,
) -> tuple[WebSocketChannel, Response]:
    """Connects and upgrades, all within `timeout_s`; returns the channel and the upgrade's response.

    Raises:
        ConnectError: not reached, no answer in time, or not a WebSocket.
        AuthError, SessionLost, Refused: the executor's answer.
    """
    deadline = time.monotonic() + timeout_s
    scheme = "wss" if address.secure else "ws"
    uri = parse_uri(f"{scheme}://{address.authority}{address.prefix}{path}")
    protocol = ClientProtocol(uri, max_size=MAX_FRAME_NBYTES)
    channel = WebSocketChannel(address, tls, protocol, timeout_s)
    try:
        response = channel.shake_hands(headers, deadline)
        failure = protocol.handshake_exc
        if isinstance(failure, InvalidStatus):
            raise answered_error(address, response.status_code, bytes(response.body or b""))
        if failure is not None:
            raise failure
        return channel, response
    except BaseException as error:
        channel.abandon()
        if isinstance(error, RemoraError) or not isinstance(error, OSError | WebSocketException):
            raise
        if isinstance(error, TimeoutError):
            text = f"{address.text}: nobody answered within {timeout_s:g} s"
        else:
            text = f"{address.text}: the WebSocket could not be opened ({protocol.handshake_exc or error})"
        raise ConnectError(text) from None
