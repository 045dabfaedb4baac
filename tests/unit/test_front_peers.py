"""Which other executors an executor may be sent to."""

import pytest

from remora.executor.front.carrier import carrier_to
from remora.executor.front.peers import PeerRule, parse_peers
from remora.executor.front.refusal import Refuse
from remora.wire.messages import Peer

PUBLIC, LOCAL = parse_peers("any", False), parse_peers("any", True)


def allows(rule: PeerRule, url: str, ip: str) -> bool:
    try:
        address = rule.check(url)
    except Refuse:
        return False
    return rule.permits(address, ip)


@pytest.mark.parametrize(
    ("ip", "public", "local"),
    [
        ("10.0.0.7", True, False),
        ("192.168.1.2", True, False),
        ("93.184.216.34", True, False),
        ("2606:2800:220:1::1", True, False),
        ("127.0.0.1", False, True),
        ("127.8.9.1", False, True),
        ("::1", False, True),
        ("::ffff:127.0.0.1", False, True),
        ("169.254.169.254", False, False),  # a cloud's metadata
        ("::ffff:169.254.169.254", False, False),
        ("fe80::1%eth0", False, False),
        ("0.0.0.0", False, False),
        ("::", False, False),
        ("224.0.0.1", False, False),
        ("255.255.255.255", False, False),
    ],
)
def test_any_means_neither_this_machine_nor_its_provider(ip, public, local):
    host = f"[{ip}]" if ":" in ip and "%" not in ip else "some.name"
    assert allows(PUBLIC, f"http://{host}:8470", ip) == public
    assert allows(LOCAL, f"http://{host}:8470", ip) == local
    assert not allows(parse_peers("none", False), f"http://{host}:8470", ip)


@pytest.mark.parametrize(
    ("listed", "url", "ip", "allowed"),
    [
        ("gpu-1:8470", "http://gpu-1:8470", "10.0.0.1", True),
        ("gpu-1:8470", "http://GPU-1:8470", "10.0.0.1", True),
        ("gpu-1:8470", "http://gpu-1:22", "10.0.0.1", False),
        ("gpu-1", "http://gpu-1:22", "10.0.0.1", True),
        ("gpu-1", "http://gpu-2:22", "10.0.0.1", False),
        ("gpu-1, gpu-2", "https://gpu-2", "10.0.0.1", True),
        ("127.0.0.1:8471", "http://127.0.0.1:8471", "127.0.0.1", True),
        ("127.0.0.1:8471", "http://127.0.0.1:8472", "127.0.0.1", False),
        ("10.1.0.0/16", "http://10.1.2.3:1", "10.1.2.3", True),
        ("10.1.0.0/16:8470", "http://10.1.2.3:1", "10.1.2.3", False),
        ("10.1.0.0/16", "http://10.2.2.3:1", "10.2.2.3", False),
        ("10.1.0.0/16", "http://node7:1", "10.1.2.3", True),  # where the name leads decides
        ("10.1.0.0/16", "http://node7:1", "127.0.0.1", False),
        ("[::1]:8470", "http://[::1]:8470", "::1", True),
        ("fd00::/8", "http://[fd00::7]:1", "fd00::7", True),
    ],
)
def test_a_list_allows_what_it_names(listed, url, ip, allowed):
    assert allows(parse_peers(listed, False), url, ip) == allowed


@pytest.mark.parametrize(
    "text", ["", "any,10.0.0.1", "host:0", "host:99999", "ho st", "10.0.0.0/99", "x@y", "a:b"]
)
def test_a_list_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"is not (HOST|a network)"):
        parse_peers(text, False)


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1:80/admin",
        "http://10.0.0.1:80/?q",
        "http://user:pass@10.0.0.1",
        "file:///etc/passwd",
        "gopher://10.0.0.1",
        "http://10.0.0.1\r\nX: y",
        "http://",
        "10.0.0.1",
    ],
)
def test_a_peer_is_a_host_and_a_port(url):
    with pytest.raises(Refuse):
        PUBLIC.check(url)


@pytest.mark.parametrize(
    "peer",
    [
        Peer(0, "http://10.0.0.1", "../status", "s"),
        Peer(0, "http://10.0.0.1", "a b", "s"),
        Peer(0, "http://10.0.0.1", "", "s"),
        Peer(0, "http://10.0.0.1", "abc", "s\r\nX: y"),
        Peer(0, "http://10.0.0.1", "abc", ""),
        Peer(0, "https://10.0.0.1", "abc", "s", "no certificate"),
    ],
)
def test_what_goes_into_a_request_is_checked(peer):
    with pytest.raises(Refuse, match=r"^peer 0: "):
        carrier_to(peer, PUBLIC)
