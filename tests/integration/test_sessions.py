"""A session's life: how it opens, what cuts it, what ends it, and what the program is told."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch
from executor_process import ExecutorProcess, Proxy, executor_process, status_until
from test_transport_http import _certify

import remora
from remora.bench import models
from remora.errors import AuthError, ConnectError, Disconnected, SessionLost, UsageError
from remora.session.connect import current


@pytest.fixture(autouse=True)
def no_session_left():
    yield
    remora.disconnect()


# ---------------------------------------------------------------- connecting


def refused_within_2_s(kind, url, token=None):
    started = time.monotonic()
    with pytest.raises(kind) as caught:
        remora.connect(url, token)
    assert time.monotonic() - started < 2.4
    assert url in str(caught.value)
    return str(caught.value)


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert "nobody listens" in refused_within_2_s(ConnectError, url)


def test_a_silent_peer():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert "nobody answered" in refused_within_2_s(ConnectError, url)


def test_a_peer_that_is_not_remora():
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            peer, _ = other.accept()
            peer.recv(1 << 16)
            peer.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello")
            peer.close()

        thread = threading.Thread(target=answer)
        thread.start()
        url = f"http://127.0.0.1:{other.getsockname()[1]}"
        assert "not Remora's" in refused_within_2_s(ConnectError, url)
        thread.join()


def test_the_wrong_token_and_the_right_one(tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text("sesame acme/ann\n")
    with executor_process("--token-file", str(tokens)) as executor:
        assert "does not know the token" in refused_within_2_s(AuthError, executor.url, "abracadabra")
        assert "asks for a token" in refused_within_2_s(AuthError, executor.url)
        remora.connect([executor.url], token="sesame")
        assert torch.ones(2, device="remora").tolist() == [1, 1]
        remora.disconnect()


def test_one_session_at_a_time_and_tensors_die_with_theirs(executor):
    remora.connect(executor.url)
    first = current().grant.session
    x = torch.arange(3).to("remora")
    with pytest.raises(UsageError, match=r"already connected.*disconnect"):
        remora.connect(executor.url)
    remora.disconnect()
    remora.disconnect()
    for use in (lambda: x + 1, x.cpu, lambda: torch.ones(1, device="remora")):
        with pytest.raises(Disconnected, match=f"session {first} .* has ended"):
            use()
    remora.connect(executor.url)
    for use in (lambda: x + 1, x.cpu, x.tolist):
        with pytest.raises(Disconnected, match=f"lives in session {first}, which has ended"):
            use()
    assert torch.arange(3).to("remora").tolist() == [0, 1, 2]


@pytest.mark.parametrize("way", ["post", "https"])
def test_other_ways_to_an_executor(way, executor, tmp_path, monkeypatch):
    if way == "post":
        monkeypatch.setenv("REMORA_TRANSPORT", "post")
        generates_exactly(executor.url)
        x = torch.ones(10, device="remora")
        for _ in range(30_000):  # never looked at: acknowledgements must come all the same
            x = x + 1
        assert x[0].item() == 30_001
        return
    authority, _ = _certify(tmp_path)
    pem = str(tmp_path / "server.pem")
    with executor_process("--tls-cert", pem, "--tls-key", pem) as secure:
        assert secure.url.startswith("https://")
        assert "REMORA_CA" in refused_within_2_s(ConnectError, secure.url)
        monkeypatch.setenv("REMORA_CA", str(authority))
        generates_exactly(secure.url)
        remora.disconnect()


def generates_exactly(url):
    remora.connect(url)
    expected, ids = LOCAL, models.prompt(5, vocabulary=64)
    got = tiny().to("remora").generate(ids.to("remora"), max_new_tokens=8, do_sample=False).cpu()
    assert torch.equal(got, expected)


def tiny():
    return models.gpt2(layers=2, width=16, heads=2, vocabulary=64)


LOCAL = tiny().generate(models.prompt(5, vocabulary=64), max_new_tokens=8, do_sample=False)


# ---------------------------------------------------------------- processes and threads


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_never_touches_its_parents_connection(executor):
    remora.connect(executor.url)
    session = current().grant.session
    x = torch.arange(4.0).to("remora") * 2
    assert x.tolist() == [0, 2, 4, 6]
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            (x + 1).tolist()
            said = "nothing was raised"
        except Disconnected as error:
            said = str(error)
        except BaseException as error:
            said = repr(error)
        remora.disconnect()
        os.write(writing, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert f"session {session} belongs to process {os.getpid()}" in said
    assert (x + 1).tolist() == [1, 3, 5, 7]
    assert current().link.reconnects == 0


def test_two_threads_get_their_own_results(executor):
    remora.connect(executor.url)
    results = {}

    def work(seed):
        a = torch.full((4, 4), float(seed), device="remora")
        for i in range(150):
            a = a @ torch.eye(4).to("remora") + 1
            if i % 10 == 0:
                assert a[0, 0].item() == seed + i + 1
        results[seed] = a[3, 3].item()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1000, 2000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {0: 150, 1000: 1150, 2000: 2150}


# ---------------------------------------------------------------- cuts


def test_generate_through_cuts_gives_the_same_tokens_and_runs_nothing_twice(executor, capfd):
    proxy = Proxy(executor.port)
    remora.connect(proxy.url)
    model = models.gpt2(layers=2, width=16, heads=2, vocabulary=64)
    ids = models.prompt(6, vocabulary=64)
    torch.manual_seed(3)
    expected = model.generate(ids, max_new_tokens=24, do_sample=True)
    model.to("remora")
    counter = torch.zeros(1, device="remora")
    try:
        for budget in (0, 37, 300, 1111):
            torch.manual_seed(3)
            proxy.budget = budget
            got = model.generate(ids.to("remora"), max_new_tokens=24, do_sample=True).cpu()
            assert torch.equal(got, expected)
            counter.add_(1)  # twice is wrong, and so is not at all
        proxy.cut()
        assert counter.item() == 4
    finally:
        proxy.close()
    assert proxy.cuts >= 5
    assert remora.stats().reconnects >= 4
    said = capfd.readouterr().err
    assert "link was cut" in said
    assert "nothing was lost" in said


def test_a_cut_upload_goes_on(executor):
    proxy = Proxy(executor.port)
    remora.connect(proxy.url)
    source = torch.arange(1 << 21, dtype=torch.float32)
    proxy.budget = 3 << 20
    there = source.to("remora")
    assert torch.equal((there + 1).cpu(), source + 1)
    assert proxy.cuts == 1
    proxy.budget = 5 << 20
    assert torch.equal((there + 2).cpu(), source + 2)  # the way back is cut as well
    proxy.close()


def test_an_idle_client_resumes_by_itself_and_keeps_its_lease():
    with executor_process("--lease", "1.5") as executor:
        proxy = Proxy(executor.port)
        remora.connect(proxy.url)
        x = torch.ones(2, device="remora") + 1
        assert x.tolist() == [2, 2]
        time.sleep(2.5)
        proxy.cut()
        time.sleep(2.5)
        assert executor.status().sessions == 1
        assert x.tolist() == [2, 2]
        proxy.close()
        remora.disconnect()


def test_a_client_that_sleeps_through_its_lease_is_told(tmp_path):
    program = """
import sys, torch, remora
remora.connect(sys.argv[1])
x = torch.ones(2, device="remora") + 1
print(x.tolist(), flush=True)
sys.stdin.readline()
try:
    x.tolist()
except remora.errors.SessionLost as error:
    print(error)
"""
    with executor_process("--lease", "1") as executor:
        client = subprocess.Popen(
            [sys.executable, "-c", program, executor.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert client.stdout.readline() == "[2.0, 2.0]\n"
        client.send_signal(signal.SIGSTOP)
        status_until(executor, lambda status: status.sessions == 0)
        client.send_signal(signal.SIGCONT)
        out, _ = client.communicate("\n", timeout=30)
        assert "its lease of 1 s ended" in out
        assert executor.url in out


def test_a_restarted_executor_has_lost_the_session():
    first = ExecutorProcess()
    remora.connect(first.url)
    x = torch.ones(2, device="remora") + 1
    assert x.tolist() == [2, 2]
    first.stop()
    started = time.monotonic()
    with pytest.raises(SessionLost) as caught:
        x.tolist()
    assert time.monotonic() - started < 2
    assert first.url in str(caught.value)
    with executor_process("--port", str(first.port)) as second:
        with pytest.raises(SessionLost, match="disconnect"):
            x.tolist()
        remora.disconnect()
        remora.connect(second.url)
        assert torch.ones(2, device="remora").tolist() == [1, 1]
        remora.disconnect()


def test_an_executor_restarted_unseen_does_not_know_the_session():
    first = ExecutorProcess()
    proxy = Proxy(first.port)
    remora.connect(proxy.url)
    x = torch.ones(2, device="remora") + 1
    assert x.tolist() == [2, 2]
    os.killpg(first.process.pid, signal.SIGKILL)
    first.process.wait()
    with executor_process("--port", str(first.port)):
        started = time.monotonic()
        with pytest.raises(SessionLost, match="there is no session"):
            x.tolist()
        assert time.monotonic() - started < 2
        remora.disconnect()
    first.stop()
    proxy.close()


def test_silence_is_borne_for_the_grace_period_and_no_longer(executor, monkeypatch, capfd):
    monkeypatch.setenv("REMORA_GRACE", "1.5")
    monkeypatch.setenv("REMORA_CONNECT_TIMEOUT", "0.5")
    proxy = Proxy(executor.port)
    remora.connect(proxy.url)
    x = torch.ones(2, device="remora") + 1
    assert x.tolist() == [2, 2]
    proxy.closed = True  # still listens, and answers nothing
    proxy._thread.join()
    proxy.cut()
    started = time.monotonic()
    with pytest.raises(SessionLost, match="not reached again"):
        x.tolist()
    assert 1.5 <= time.monotonic() - started < 4
    assert "trying again for up to 1.5 s" in capfd.readouterr().err
    proxy.close()


# ---------------------------------------------------------------- the worker


OTHER = """
import sys, torch, remora
remora.connect(sys.argv[1])
x = torch.ones(2, device="remora") + 1
print(x.tolist(), flush=True)
sys.stdin.readline()
try:
    x.tolist()
except remora.errors.SessionLost as error:
    print(error)
remora.disconnect()
remora.connect(sys.argv[1])
print(torch.ones(2, device="remora").tolist())
"""


def test_a_killed_worker_ends_its_sessions_and_nothing_else():
    with executor_process() as executor:
        other = subprocess.Popen(
            [sys.executable, "-c", OTHER, executor.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        remora.connect(executor.url)
        assert other.stdout.readline() == "[2.0, 2.0]\n"
        a = torch.rand(1500, 1500, device="remora")
        a[0, 0].item()
        for _ in range(100):
            a = a @ a  # keeps it busy
        torch.remora.synchronize  # noqa: B018
        current().recorder.cut()
        time.sleep(0.3)
        executor.kill_worker()
        started = time.monotonic()
        with pytest.raises(SessionLost) as caught:
            a.sum().item()
        assert time.monotonic() - started < 2
        text = str(caught.value)
        for part in ("the worker died (signal SIGKILL)", "aten.matmul.default", f"{__file__}:", executor.url):
            assert part in text
        executor.wait_worker(2)
        out, _ = other.communicate("\n", timeout=30)
        assert "the worker died (signal SIGKILL) while it ran aten.matmul.default of another session" in out
        assert out.endswith("[1.0, 1.0]\n")
        remora.disconnect()
        remora.connect(executor.url)  # the port is the same
        assert torch.ones(2, device="remora").tolist() == [1, 1]
        remora.disconnect()


def test_a_long_op_is_not_taken_for_death(executor, monkeypatch):
    from remora.session import link

    monkeypatch.setattr(link, "PING_AFTER_S", 0.2)
    monkeypatch.setattr(link, "SILENCE_S", 0.6)
    remora.connect(executor.url)
    a = torch.rand(1200, 1200, device="remora")
    for _ in range(40):
        a = a @ a
        a = a / a.max()
    assert a.max().item() == 1
    assert remora.stats().reconnects == 0
