"""A worker without a device, which speaks the hop: for tests of the front alone.

Fetch is answered by Values that hold its names as text, or the session's number if it names none; Barrier
by Done. A Seed makes trouble: 1 writes a bulk value, 2 notes progress and dies, 3 dies without a note. What
comes is noted in received.log.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import struct
from pathlib import Path

from remora.executor import hop
from remora.executor.hop import HEADER, Kind, packet
from remora.wire.codec import decode_to_executor, encode
from remora.wire.messages import Barrier, Done, Fetch, Payload, Seed, Values

BULK = bytes(range(256)) * 16384  # 4 MiB


def read_exactly(sock: socket.socket, nbytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < nbytes:
        part = sock.recv(nbytes - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)


def reply_to(message: object, session: int, folder: Path, sock: socket.socket) -> None:
    if isinstance(message, Fetch):
        text = ",".join(map(str, message.names or (session,))).encode()
        value = Payload("uint8", (len(text),), (1,), text, len(text))
        sock.sendall(packet(Kind.REPLY, session, encode((Values(message.ticket, (value,)),))))
    elif isinstance(message, Barrier):
        sock.sendall(packet(Kind.REPLY, session, encode((Done(message.ticket),))))
    elif isinstance(message, Seed) and message.seed == 1:
        path = folder / f"bulk-{session}"
        path.write_bytes(BULK)
        sock.sendall(packet(Kind.BULK, session, hop.BulkFile("b1", str(path), len(BULK))))
        value = Payload("uint8", (len(BULK),), (1,), None, len(BULK), "b1")
        sock.sendall(packet(Kind.REPLY, session, encode((Values(0, (value,)),))))
    elif isinstance(message, Seed) and message.seed in (2, 3):
        if message.seed == 2:
            (folder / "progress").write_bytes(struct.pack("<IQI", session, 7, 3))
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("--fd", "--folder", "--device", "--memory", "--threads"):
        parser.add_argument(name, required=True)
    options = parser.parse_args()
    if options.device == "cuda:99":
        raise SystemExit(7)
    assert os.environ["REMORA_EXECUTOR"] == "1"
    folder = Path(options.folder)
    sock = socket.socket(fileno=int(options.fd))
    sock.sendall(
        packet(Kind.READY, 0, hop.WorkerReady("2.11.0", "cpu", 1 << 30, "digest", {"aten.add": "d"}))
    )
    with open(folder.parent / "received.log", "a", buffering=1) as log:
        while True:
            try:
                nbytes, kind, session = HEADER.unpack(read_exactly(sock, HEADER.size))
                payload = read_exactly(sock, nbytes)
            except EOFError:
                return
            log.write(f"{Kind(kind).name} {session}\n")
            if kind == Kind.STEP:
                for message in decode_to_executor(payload):
                    reply_to(message, session, folder, sock)
                usage = hop.Usage(1000, {session: (10, 0.5, 2)})
                sock.sendall(packet(Kind.USAGE, 0, usage))


if __name__ == "__main__":
    main()
