"""Which other executors this one may speak to for its clients: a client names the address, the operator the rule.

Pure. An address is judged twice: as it is written, and by each IP address that its name has when it is connected
to, so that a name cannot mean something else the second time.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from remora.errors import UsageError
from remora.executor.front.refusal import Refuse
from remora.transport.address import Address, parse_address

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_ANY, _NONE = "any", "none"


@dataclass(frozen=True)
class Listed:
    """One entry of the list. port: 0 stands for every one. network: if the entry is an IP address, or many."""

    host: str
    port: int
    network: Network | None


@dataclass(frozen=True)
class PeerRule:
    """any: every address but those that only this machine, or its provider, can mean. With `loopback_only`, as an
    executor that is reached through loopback has it, nothing but loopback. listed: these, and no other."""

    any: bool = True
    loopback_only: bool = False
    listed: tuple[Listed, ...] = ()

    def check(self, url: str) -> Address:
        """The address in a URL that a client gave.

        Raises:
            Refuse: it is none, or one that the rule forbids.
        """
        try:
            address = parse_address(url)
        except UsageError as error:
            raise Refuse("protocol", f"peer: {error}") from None
        if address.prefix:
            raise Refuse(
                "protocol", f"peer {address.text!r} has a path; an executor's peer is a host and a port"
            )
        if not self.any and not self.listed:
            raise Refuse("auth", "this executor speaks to no other one (--peers none)", 403)
        if self.listed and not any(_names(entry, address) for entry in self.listed):
            raise Refuse(
                "auth", f"this executor may not speak to {address.authority}: --peers does not list it", 403
            )
        return address

    def permits(self, address: Address, ip: str) -> bool:
        """Whether `address`, which is now at `ip`, may be connected to."""
        found = _ip(ip)
        if self.listed:
            return any(
                _names(entry, address) and (entry.network is None or found in entry.network)
                for entry in self.listed
            )
        if self.loopback_only:
            return self.any and found.is_loopback
        odd = found.is_loopback or found.is_link_local or found.is_multicast or found.is_unspecified
        return self.any and not odd and not found.is_reserved


def parse_peers(text: str, loopback_only: bool) -> PeerRule:
    """Reads `any`, `none`, or HOST[:PORT],… where HOST may be a network such as 10.0.0.0/8.

    Raises:
        ValueError: names the entry.
    """
    words = [word.strip() for word in text.split(",")]
    if words == [_ANY]:
        return PeerRule(True, loopback_only)
    if words == [_NONE]:
        return PeerRule(False, loopback_only)
    return PeerRule(False, loopback_only, tuple(_listed(word) for word in words))


def _listed(word: str) -> Listed:
    host, port = word, ""
    if word.startswith("["):
        host, _, port = word[1:].partition("]")
        port = port.removeprefix(":")
    elif word.count(":") == 1:
        host, _, port = word.partition(":")
    wrong = not host or host in (_ANY, _NONE) or any(c.isspace() or c in "@?#" for c in host)
    if wrong or (port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536)):
        raise ValueError(f"{word!r} is not HOST or HOST:PORT, and neither 'any' nor 'none'")
    try:
        network: Network | None = ipaddress.ip_network(host, strict=False)
    except ValueError:
        if "/" in host:
            raise ValueError(f"{word!r} is not a network such as 10.0.0.0/8") from None
        network = None
    return Listed(host.lower(), int(port or 0), network)


def _names(entry: Listed, address: Address) -> bool:
    """Whether an entry is about the address as it is written; a network is about names, too, see `permits`."""
    if entry.port not in (0, address.port):
        return False
    if entry.network is None:
        return entry.host == address.host.lower()
    try:
        return _ip(address.host) in entry.network
    except ValueError:
        return True  # a name; where it is decides


def _ip(text: str) -> IPAddress:
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped if mapped is not None else found
