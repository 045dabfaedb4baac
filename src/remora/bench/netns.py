"""A small network on one machine, each link of known rate: network namespaces on a bridge, shaped by tbf.

Every member, the client's process among them, hangs by one veth pair on a bridge that has a namespace of its own, and
both ends of the pair pass at most the asked rate: between any two members, and in and out of each. The client's end
lies where this process is. Needs root, Linux, `ip` and `tc`. Delay is not there: many kernels lack netem
(bench/delay_proxy.py has it).
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

CLIENT = -1  # the member that this process is
BURST_NBYTES = 1 << 17  # two of the largest packets that a sender hands down; passes at once
_QUEUE_S = 0.03
_serial = itertools.count()
_NAME = re.compile(r"remora-(\d+)-(\d+)-\d+-\w+")
_DEVICE = re.compile(r"rm(\d+)x\d+")


class NoNamespaces(Exception):
    """This machine cannot do it; says why."""


@dataclass(frozen=True)
class Traffic:
    """Bytes that passed the bridge's ports so far, headers included, by member; the client comes last.

    sent: by the member. received: by it.
    """

    sent: tuple[int, ...]
    received: tuple[int, ...]

    def __sub__(self, earlier: Traffic) -> Traffic:
        return Traffic(
            tuple(a - b for a, b in zip(self.sent, earlier.sent, strict=True)),
            tuple(a - b for a, b in zip(self.received, earlier.received, strict=True)),
        )

    @property
    def between_executors(self) -> int:
        """What the executors sent and the client did not get."""
        return max(0, sum(self.sent[:-1]) - self.received[-1])

    @property
    def busiest(self) -> int:
        """Bytes of the busiest direction of a port: what the link's rate bounds."""
        return max(*self.sent, *self.received)


class Network:
    """`members` namespaces and the client, on a bridge. Use `network`."""

    def __init__(self, members: int, bytes_per_s: float) -> None:
        self.members, self.bytes_per_s = members, bytes_per_s
        serial = next(_serial)
        self._prefix = f"remora-{os.getpid()}-{_started(os.getpid())}-{serial}"
        self._switch = f"{self._prefix}-switch"
        self._client_device = f"rm{os.getpid()}x{serial}"
        self._subnet = ""

    def address(self, member: int) -> str:
        return f"{self._subnet}.{1 if member == CLIENT else 10 + member}"

    def inside(self, member: int) -> tuple[str, ...]:
        """What to put before a command, for it to run in the member's namespace; its process id stays its own."""
        return () if member == CLIENT else ("ip", "netns", "exec", self._namespace(member))

    def traffic(self) -> Traffic:
        """Counted by the kernel at the bridge, so no program's own count enters."""
        ports = {
            link["ifname"]: link["stats64"]
            for link in json.loads(_run("ip", "-n", self._switch, "-j", "-s", "link"))
        }
        order = [*range(self.members), CLIENT]
        return Traffic(
            tuple(ports[_port(member)]["rx"]["bytes"] for member in order),
            tuple(ports[_port(member)]["tx"]["bytes"] for member in order),
        )

    def _namespace(self, member: int) -> str:
        return f"{self._prefix}-{member}"

    def open(self) -> None:
        self._subnet = _free_subnet()
        _run("ip", "netns", "add", self._switch)
        bridge = ("bridge", "forward_delay", "0", "stp_state", "0", "mcast_snooping", "0")
        _run("ip", "-n", self._switch, "link", "add", "bridge", "type", *bridge)
        _up(("ip", "-n", self._switch), "bridge")
        for member in (*range(self.members), CLIENT):
            self._join(member)

    def _join(self, member: int) -> None:
        if member == CLIENT:
            into, device, ip, tc = str(os.getpid()), self._client_device, ("ip",), ("tc",)
        else:
            into, device = self._namespace(member), "eth0"
            ip, tc = ("ip", "-n", into), ("tc", "-n", into)
            _run("ip", "netns", "add", into)
            _run(*ip, "link", "set", "lo", "up")
        switch, port = ("ip", "-n", self._switch), _port(member)
        _run(*switch, "link", "add", port, "type", "veth", "peer", "name", device, "netns", into)
        _run(*switch, "link", "set", port, "master", "bridge")
        _run(*ip, "addr", "add", f"{self.address(member)}/24", "dev", device)
        _up(switch, port)
        _up(ip, device)
        self._shape(("tc", "-n", self._switch), port)
        self._shape(tc, device)

    def _shape(self, tc: tuple[str, ...], device: str) -> None:
        burst = burst_nbytes(self.bytes_per_s)
        queue = max(4 * burst, int(self.bytes_per_s * _QUEUE_S))
        rate = ("rate", f"{self.bytes_per_s * 8:.0f}bit", "burst", str(burst), "limit", str(queue))
        _run(*tc, "qdisc", "add", "dev", device, "root", "tbf", *rate)

    def close(self) -> None:
        """Ends what still runs in the namespaces and removes them. Never raises."""
        with suppress(NoNamespaces):
            _run("ip", "link", "del", self._client_device)
        for name in (*(self._namespace(member) for member in range(self.members)), self._switch):
            _remove(name)


def burst_nbytes(bytes_per_s: float) -> int:
    """What a link of that rate passes at once after a pause."""
    return max(BURST_NBYTES, int(bytes_per_s / 1000))


@contextmanager
def network(members: int, bytes_per_s: float) -> Iterator[Network]:
    """A network that is there for as long as the context; what a killed run left behind is removed first.

    Args:
        bytes_per_s: of each member's link, each way; above 0.

    Raises:
        NoNamespaces: not on this machine; says why.
        ValueError: a number that no network has.
    """
    if not (1 <= members <= 200 and bytes_per_s > 0):
        raise ValueError(f"no network has {members} members at {bytes_per_s} bytes/s")
    _require()
    remove_stale()
    made = Network(members, bytes_per_s)
    try:
        made.open()
        yield made
    finally:
        made.close()


def remove_stale() -> list[str]:
    """Removes the networks of processes that are gone; returns the names of their namespaces."""
    stale = [
        name for name in _namespaces() if (of := _NAME.fullmatch(name)) and _started(int(of[1])) != int(of[2])
    ]
    for name in stale:
        _remove(name)
    for link in json.loads(_run("ip", "-j", "link")):
        of = _DEVICE.fullmatch(link["ifname"])
        if of and not _started(int(of[1])):
            with suppress(NoNamespaces):  # it goes with its peer, at any moment
                _run("ip", "link", "del", link["ifname"])
    return stale


def _require() -> None:
    if sys.platform != "linux":
        raise NoNamespaces(f"network namespaces are Linux's, and this is {sys.platform}")
    if os.geteuid() != 0:
        raise NoNamespaces("network namespaces need root, and this process is not root")
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    if missing:
        raise NoNamespaces(f"there is no {' and no '.join(missing)} (package iproute2)")


def _started(pid: int) -> int:
    """When the process started, in ticks since boot; 0 if it is not there. With the pid, it names a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[19])


def _port(member: int) -> str:
    return "client" if member == CLIENT else f"port{member}"


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _run("ip", "netns", "list").splitlines() if line.strip()]


def _remove(name: str) -> None:
    """Ends what runs in one of our namespaces, and the namespace."""
    with suppress(NoNamespaces):
        for pid in _run("ip", "netns", "pids", name).split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), 9)
    with suppress(NoNamespaces):
        _run("ip", "netns", "del", name)


def _free_subnet() -> str:
    """Three numbers of a /24 that no interface here has, out of the range for benchmarks [RFC 2544]."""
    used = {
        address["local"].rpartition(".")[0]
        for link in json.loads(_run("ip", "-j", "-4", "addr"))
        for address in link["addr_info"]
    }
    numbers = ((os.getpid() + at) % 256 for at in range(256))
    for subnet in (f"198.18.{number}" for number in numbers):
        if subnet not in used:
            return subnet
    raise NoNamespaces("every subnet of 198.18.0.0/16 is in use")


def _up(ip: tuple[str, ...], device: str) -> None:
    _run(*ip, "link", "set", device, "addrgenmode", "none")  # no IPv6: its chatter would be counted
    _run(*ip, "link", "set", device, "up")


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoNamespaces(f"`{' '.join(command)}`: {error}") from None
    if done.returncode:
        raise NoNamespaces(f"`{' '.join(command)}` said: {done.stderr.strip() or done.returncode}")
    return done.stdout
