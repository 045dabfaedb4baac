"""URLs: what is taken, and what the error says about the rest."""

from __future__ import annotations

import pytest

from remora.errors import UsageError
from remora.transport.address import parse_address
from remora.transport.http import HttpTransport


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://gpu", "http://gpu:8470"),
        ("https://gpu.example.org/", "https://gpu.example.org:8470"),
        ("http://10.0.0.7:9000/", "http://10.0.0.7:9000"),
        ("http://[::1]:1", "http://[::1]:1"),
        ("https://proxy/team/a/", "https://proxy:8470/team/a"),
    ],
)
def test_addresses(url: str, text: str) -> None:
    assert parse_address(url).text == text


@pytest.mark.parametrize(
    ("url", "story"),
    [
        ("gpu:8470", "no scheme"),
        ("ftp://gpu", "scheme 'ftp'"),
        ("http://", "names no host"),
        ("http://a b", "names no host"),
        ("http://gpu:99999", "not a URL"),
        ("http://gpu:zero", "not a URL"),
        ("http://gpu:0", "port 0"),
        ("http://me:pw@gpu", "REMORA_TOKEN"),
        ("http://gpu?x=1", "query"),
    ],
)
def test_what_is_no_address_is_explained(url: str, story: str) -> None:
    with pytest.raises(UsageError, match=story):
        parse_address(url)


def test_a_password_is_not_repeated() -> None:
    with pytest.raises(UsageError) as raised:
        parse_address("http://me:hunter2@gpu")
    assert "hunter2" not in str(raised.value)


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="websocket or post"):
        HttpTransport("http://gpu", mode="smoke")
    with pytest.raises(UsageError, match="REMORA_CA"):
        HttpTransport("https://gpu", ca_file="/nowhere/ca.pem")
    with pytest.raises(UsageError, match="REMORA_TOKEN"):
        HttpTransport("http://gpu", "a\r\nb")
