"""Addresses of executors: what a URL says, checked."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from remora.errors import UsageError

DEFAULT_PORT = 8470


@dataclass(frozen=True)
class Address:
    host: str
    port: int
    secure: bool
    prefix: str = ""  # path in front of every route, for executors behind a proxy

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def text(self) -> str:
        return f"{'https' if self.secure else 'http'}://{self.authority}{self.prefix}"


def parse_address(url: str) -> Address:
    """The address in `url`, such as http://127.0.0.1:8470.

    Raises:
        UsageError: the URL cannot be an executor's; the message says what to write.
    """
    example = f"an executor's URL looks like http://10.0.0.7:{DEFAULT_PORT}"
    if "://" not in url:
        raise UsageError(f"{url!r} has no scheme; {example}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"{url!r} is not a URL ({error}); {example}") from None
    if parts.scheme not in ("http", "https"):
        raise UsageError(f"{url!r} has the scheme {parts.scheme!r}; use http or https; {example}")
    if not parts.hostname or any(c.isspace() or not c.isprintable() for c in url):
        raise UsageError(f"{url!r} names no host; {example}")
    if "@" in parts.netloc:
        raise UsageError(f"the URL of {parts.hostname!r} holds a password; give it as token (REMORA_TOKEN)")
    if parts.query or parts.fragment:
        raise UsageError(f"{url!r} has a query or a fragment; {example}")
    if port == 0:
        raise UsageError(f"{url!r} has port 0; {example}")
    return Address(parts.hostname, port or DEFAULT_PORT, parts.scheme == "https", parts.path.rstrip("/"))
