"""Who is calling: bearer tokens, the principals they stand for, and where one may do without them."""

from __future__ import annotations

import hmac
import ipaddress
import re
from dataclasses import dataclass

from remora.executor.front.refusal import Refuse

LOCAL_PRINCIPAL = "local/user"
DEFAULT_PRINCIPAL = "default/user"
_PRINCIPAL = re.compile(r"[\w.@-]{1,31}/[\w.@-]{1,32}")  # fits wire's Word


@dataclass(frozen=True)
class Tokens:
    """Pairs of token and principal. None at all: no token is asked for."""

    entries: tuple[tuple[bytes, str], ...] = ()

    @property
    def tenants(self) -> frozenset[str]:
        """Everybody who can come."""
        return frozenset(tenant_of(principal) for _, principal in self.entries) or frozenset(
            {tenant_of(LOCAL_PRINCIPAL)}
        )

    def principal(self, authorization: str | None) -> str:
        """The principal of an Authorization header.

        Raises:
            Refuse: no token, or an unknown one.
        """
        if not self.entries:
            return LOCAL_PRINCIPAL
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer":
            raise Refuse("auth", "this executor asks for a token: send 'Authorization: Bearer TOKEN'")
        given = token.strip().encode("utf-8", "surrogateescape")
        found = None
        for known, principal in self.entries:  # all of them, so that time tells nothing
            if hmac.compare_digest(given, known):
                found = principal
        if found is None:
            raise Refuse("auth", "this executor does not know the token")
        return found


def parse_tokens(text: str) -> Tokens:
    """Reads lines `TOKEN [tenant/user]`; '#' starts a comment line.

    Raises:
        ValueError: names the line, never the token.
    """
    entries: list[tuple[bytes, str]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        principal = words[1] if len(words) > 1 else DEFAULT_PRINCIPAL
        if len(words) > 2 or not _PRINCIPAL.fullmatch(principal):
            raise ValueError(f"line {number}: expected 'TOKEN [tenant/user]'")
        entries.append((words[0].encode(), principal))
    if not entries:
        raise ValueError("it holds no token, so nobody could use the executor")
    if len({token for token, _ in entries}) < len(entries):
        raise ValueError("a token stands on two lines")
    return Tokens(tuple(entries))


def tenant_of(principal: str) -> str:
    return principal.partition("/")[0]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`; a name that is not 'localhost' counts as public."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
