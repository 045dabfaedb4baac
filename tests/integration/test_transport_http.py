"""HttpTransport against a small aiohttp server: control, bulk, refusals, silence, cuts, TLS."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from transport_peer import GRANT, STATUS, WANTS, Peer, serving

from remora.errors import AuthError, ConnectError, ProtocolError, Refused, SessionLost
from remora.transport.http import HttpTransport
from remora.wire.messages import Refusal

GONE = msgspec.structs.replace(GRANT, session="s2")


@pytest.fixture
def peer() -> Iterator[Peer]:
    with serving(Peer()) as running:
        yield running


@pytest.fixture
def transport(peer: Peer) -> Iterator[HttpTransport]:
    with closing(HttpTransport(peer.url, sleep=lambda _: None)) as opened:
        yield opened


def test_control_routes_share_one_connection(peer: Peer, transport: HttpTransport) -> None:
    assert transport.open_session(WANTS, 2.0) == GRANT
    assert transport.status(2.0) == STATUS
    assert transport.op_table(2.0) == {"aten.add": "d1"}
    transport.prove_blobs(GRANT, {"aa": "bb"})
    transport.close_session(GRANT, 2.0)
    assert peer.proofs == {"aa": "bb"}
    assert len(peer.connections) == 1


def test_an_idle_connection_that_the_server_ended_is_opened_again(
    peer: Peer, transport: HttpTransport
) -> None:
    transport.status(2.0)
    connection = transport._exchange._connection
    assert connection
    connection._sock.shutdown(socket.SHUT_RDWR)  # as a peer's FIN: readable, at the end
    assert transport.status(2.0) == STATUS
    assert len(peer.connections) == 2


def test_blobs_are_put_and_found(peer: Peer, transport: HttpTransport) -> None:
    data = memoryview(bytes(range(256)) * (5 << 12))
    told: list[int] = []
    transport.put_blob(GRANT, "aa", data, told.append)
    transport.put_blob(GRANT, "empty", memoryview(b""))
    assert peer.blobs == {"aa": bytearray(data), "empty": bytearray()}
    assert sum(told) == data.nbytes
    assert len(told) > 1
    assert transport.bytes_sent > data.nbytes
    assert transport.query_blobs(GRANT, ("aa", "cc")).held == ("aa",)


def test_a_cut_put_continues_where_the_server_says(peer: Peer, transport: HttpTransport) -> None:
    data = memoryview(bytes(range(256)) * (32 << 12))  # 32 MiB: more than the socket buffers hold
    peer.cut_put_after = [5 << 20, 20 << 20]
    told: list[int] = []
    transport.put_blob(GRANT, "aa", data, told.append)
    assert peer.blobs["aa"] == data
    assert sum(told) == data.nbytes
    puts = [r for r in peer.requests if r.startswith("PUT")]
    path = f"PUT /v1/sessions/{GRANT.session}/blobs/aa"
    assert puts == [path, f"{path}?offset={5 << 20}", f"{path}?offset={20 << 20}"]


def test_put_gives_up_when_no_try_gets_further(peer: Peer, transport: HttpTransport) -> None:
    peer.cut_put_after = [0] * 20
    with pytest.raises(ConnectError, match="connection broke"):
        transport.put_blob(GRANT, "aa", memoryview(bytes(1 << 20)))
    assert len(peer.cut_put_after) == 20 - 4


def test_a_refused_put_stops_early(peer: Peer, transport: HttpTransport) -> None:
    peer.refuse_put = Refusal("memory", "no room for 256 MiB")
    with pytest.raises(Refused, match="507: no room for 256 MiB"):
        transport.put_blob(GRANT, "aa", memoryview(bytes(256 << 20)))
    assert transport.bytes_sent < 200 << 20
    assert transport.status(2.0) == STATUS


def test_bulk_is_read_into_place_and_resumed(peer: Peer, transport: HttpTransport) -> None:
    peer.bulk["b"] = bytes(range(256)) * (32 << 12)
    into = bytearray(len(peer.bulk["b"]))
    transport.get_bulk(GRANT, "b", memoryview(into))
    assert into == peer.bulk["b"]

    into = bytearray(len(peer.bulk["b"]))
    peer.cut_get_after = [6 << 20, 20 << 20]
    transport.get_bulk(GRANT, "b", memoryview(into))
    assert into == peer.bulk["b"]
    assert transport.bytes_received > 2 * len(into)


def test_bulk_of_another_size_is_refused(peer: Peer, transport: HttpTransport) -> None:
    peer.bulk["b"] = bytes(100)
    with pytest.raises(ProtocolError, match="100 bytes of value 'b', expected 99"):
        transport.get_bulk(GRANT, "b", memoryview(bytearray(99)))


def test_wrong_token(peer: Peer) -> None:
    peer.token = "right"
    with closing(HttpTransport(peer.url, "wrong")) as transport:
        with pytest.raises(AuthError, match="401: wrong token"):
            transport.open_session(WANTS, 2.0)
        with pytest.raises(AuthError):
            transport.open_channel(GRANT, 1, 0, 2.0)
    with closing(HttpTransport(peer.url, "right")) as transport:
        assert transport.open_session(WANTS, 2.0) == GRANT


def test_refusals(transport: HttpTransport) -> None:
    with pytest.raises(Refused, match="426: this executor speaks protocol 1"):
        transport.open_session(msgspec.structs.replace(WANTS, protocol=9), 2.0)
    with pytest.raises(SessionLost, match="session s2 is over"):
        transport.put_blob(GONE, "aa", memoryview(b"x"))
    with pytest.raises(SessionLost):
        transport.query_blobs(GONE, ())


def test_an_answer_that_is_not_the_executors(peer: Peer, transport: HttpTransport) -> None:
    peer.redirect = True
    for ask in (
        lambda: transport.put_blob(GRANT, "aa", memoryview(bytes(10))),
        lambda: transport.open_channel(GRANT, 1, 0, 2.0),
    ):
        with pytest.raises(Refused, match=r"302.*is this the executor's port\?"):
            ask()


def test_one_thread_does_not_wait_for_another_beyond_its_timeout(
    peer: Peer, transport: HttpTransport
) -> None:
    inside = threading.Event()
    stop = threading.Event()

    def slow(nbytes: int) -> None:
        inside.set()
        stop.wait(10)

    putting = threading.Thread(target=transport.put_blob, args=(GRANT, "aa", memoryview(bytes(10)), slow))
    putting.start()
    try:
        assert inside.wait(5)
        with pytest.raises(ConnectError, match="another thread's request"):
            transport.status(0.1)
    finally:
        stop.set()
        putting.join()
    assert transport.status(2.0) == STATUS


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with closing(HttpTransport(f"http://127.0.0.1:{port}")) as transport:
        with pytest.raises(ConnectError, match=f"127.0.0.1:{port}.*nobody listens there.*`remora serve`"):
            transport.status(2.0)
        with pytest.raises(ConnectError, match="nobody listens there"):
            transport.open_channel(GRANT, 1, 0, 2.0)


@pytest.mark.parametrize("mode", ["websocket", "post"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_silent_peer_is_left_within_the_timeout(scheme: str, mode: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{scheme}://127.0.0.1:{server.getsockname()[1]}"
        with closing(HttpTransport(url, mode=mode)) as transport:
            for ask in (
                lambda: transport.open_session(WANTS, 0.3),
                lambda: transport.open_channel(GRANT, 1, 0, 0.3),
            ):
                started = time.monotonic()
                with pytest.raises(ConnectError, match=r"nobody answered within 0.3 s"):
                    ask()
                assert 0.25 < time.monotonic() - started < 1.0


def test_a_peer_that_drips_is_left_within_the_timeout() -> None:
    stop = threading.Event()

    def drip(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n")
            while not stop.wait(0.05):
                connection.sendall(b"X-A: b\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=drip, args=(server,))
        thread.start()
        try:
            with closing(HttpTransport(f"http://127.0.0.1:{server.getsockname()[1]}")) as transport:
                started = time.monotonic()
                with pytest.raises(ConnectError, match="nobody answered"):
                    transport.status(0.4)
                assert time.monotonic() - started < 1.0
        finally:
            stop.set()
            thread.join()


def test_a_name_server_that_keeps_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: time.sleep(1.0))
    with closing(HttpTransport("http://executor.example")) as transport:
        started = time.monotonic()
        with pytest.raises(ConnectError, match=r"'executor.example' was not resolved within 0.2 s"):
            transport.status(0.2)
        assert time.monotonic() - started < 0.8


def test_a_name_that_does_not_exist() -> None:
    with closing(HttpTransport("http://executor.invalid")) as transport:
        with pytest.raises(ConnectError, match=r"executor.invalid' was not resolved.*IP address"):
            transport.status(2.0)


def test_another_kind_of_server() -> None:
    def greet(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=greet, args=(server,))
        thread.start()
        with closing(HttpTransport(f"http://127.0.0.1:{server.getsockname()[1]}")) as transport:
            with pytest.raises(ConnectError, match="connection broke"):
                transport.status(2.0)
        thread.join()


def _certify(folder: Path) -> tuple[Path, ssl.SSLContext]:
    """An authority's file, and a server context for 127.0.0.1 that it signed."""
    now = datetime.datetime.now(datetime.UTC)

    def build(name: str, key: ec.EllipticCurvePrivateKey, issuer: str) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )

    ca_key = ec.generate_private_key(ec.SECP256R1())
    signs = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    ca_name = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        build("test CA", ca_key, "test CA")
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(signs, critical=True)  # Python 3.13 checks strictly
        .add_extension(ca_name, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    key = ec.generate_private_key(ec.SECP256R1())
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        build("executor", key, "test CA")
        .add_extension(names, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_name), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_file, key_file = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(ca.public_bytes(pem))
    key_file.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(key_file)
    return ca_file, context


@pytest.mark.parametrize("mode", ["websocket", "post"])
def test_tls(tmp_path: Path, mode: str) -> None:
    ca_file, server_context = _certify(tmp_path)
    with serving(Peer(), server_context) as peer:
        with closing(HttpTransport(peer.url, ca_file=str(ca_file), mode=mode)) as transport:
            assert transport.open_session(WANTS, 2.0) == GRANT
            data = bytes(range(256)) * (8 << 12)
            transport.put_blob(GRANT, "aa", memoryview(data))
            peer.bulk["b"] = data
            peer.cut_put_after = [3 << 20]  # so that the first request of a connection is a PUT
            transport.put_blob(GRANT, "bb", memoryview(data))
            with closing(HttpTransport(peer.url, ca_file=str(ca_file))) as fresh:
                fresh.put_blob(GRANT, "cc", memoryview(data))
            assert peer.blobs["bb"] == peer.blobs["cc"] == data
            into = bytearray(len(data))
            transport.get_bulk(GRANT, "b", memoryview(into))
            assert peer.blobs["aa"] == into == data

            channel, _ = transport.open_channel(GRANT, 1, 0, 2.0)
            with closing(channel):
                for frame in (
                    bytes([0x93, 1, 0, 0x90]),
                    b"\x93\x02\x00\xc6\x00\x2d\xc6\xc0" + bytes(3_000_000),
                ):
                    channel.send(frame)
                    assert channel.receive(5.0) == frame
                channel.ping()
                assert channel.receive(0.0) is None

        with closing(HttpTransport(peer.url, mode=mode)) as transport:
            with pytest.raises(ConnectError, match=r"not trusted.*REMORA_CA"):
                transport.open_session(WANTS, 2.0)
            with pytest.raises(ConnectError, match=r"not trusted.*REMORA_CA"):
                transport.open_channel(GRANT, 1, 0, 2.0)


def test_https_against_a_plain_port(peer: Peer) -> None:
    with closing(HttpTransport(peer.url.replace("http:", "https:"))) as transport:
        with pytest.raises(ConnectError, match="TLS handshake failed"):
            transport.status(2.0)
