"""mycelya-torch's own server class behind a socket on loopback, in place of the cloud that it is made for.

Its client stays as it is but for the transport: where its local mode calls the server in the same process, a batch is
sent over the socket, without waiting, and its answer is looked for when mycelya asks. Batches are pickled, as it does
itself: only for a peer that one trusts.
"""

from __future__ import annotations

import pickle
import socket
import struct
import sys
import threading
from queue import Empty, Queue
from typing import Any

import cloudpickle

_LENGTH = struct.Struct("!Q")
PATIENCE_S = 0.001  # its client asks in a loop that would take the whole core


def send(peer: socket.socket, what: Any) -> None:
    body = cloudpickle.dumps(what)
    peer.sendall(_LENGTH.pack(len(body)))
    peer.sendall(body)


def receive(peer: socket.socket) -> Any:
    """Raises EOFError when the peer has gone."""
    (nbytes,) = _LENGTH.unpack(_exactly(peer, _LENGTH.size))
    return pickle.loads(_exactly(peer, nbytes))


def _exactly(peer: socket.socket, nbytes: int) -> bytearray:
    body = bytearray(nbytes)
    view = memoryview(body)
    while view:
        got = peer.recv_into(view)
        if not got:
            raise EOFError("the peer has gone")
        view = view[got:]
    return body


def serve(port: int) -> None:
    """One client, until it goes."""
    import torch
    from mycelya_torch.servers.mock.server import create_mock_modal_app

    torch.set_num_threads(1)
    _, server_class = create_mock_modal_app(machine_id="bench")
    server = server_class()
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            peer, _ = listener.accept()
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with peer:
                try:
                    while True:
                        send(peer, _answer(server, receive(peer)))
                except (EOFError, ConnectionError):
                    pass


def _answer(server: Any, calls: Any) -> Any:
    try:
        return server.execute_batch.local(calls)
    except Exception as error:
        return error


class _Answers:
    """The answers of one connection, in the order of the batches."""

    def __init__(self, port: int) -> None:
        self.peer = socket.create_connection(("127.0.0.1", port))
        self.peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.asked: Queue[Queue[Any]] = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, calls: Any) -> Queue[Any]:
        answer: Queue[Any] = Queue(1)
        self.asked.put(answer)
        send(self.peer, calls)
        return answer

    def _read(self) -> None:
        while True:
            try:
                found = receive(self.peer)
            except (EOFError, OSError) as error:
                found = ConnectionError(f"the server has gone: {error}")
            self.asked.get().put(found)
            if isinstance(found, ConnectionError):
                return


def connect(port: int) -> Any:
    """A machine of mycelya's whose server is behind the port."""
    from mycelya_torch import RemoteMachine
    from mycelya_torch.clients.mock.client import MockClient

    answers = _Answers(port)

    def start(self: Any, *_: Any, **__: Any) -> None:
        self._server_instance = answers

    def execute_batch(self: Any, calls: Any) -> Any:
        return answers.ask(calls)

    def get_rpc_result(self: Any, answer: Queue[Any], blocking: bool) -> Any:
        try:
            found = answer.get(timeout=None if blocking else PATIENCE_S)
        except Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    MockClient.start, MockClient.execute_batch = start, execute_batch
    MockClient.get_rpc_result = get_rpc_result
    return RemoteMachine("mock")


if __name__ == "__main__":
    serve(int(sys.argv[1]))
