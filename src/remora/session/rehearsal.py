"""`remora estimate`, behind its command line: the devices that are named there, and the session on them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remora.config import ClientSettings
from remora.errors import RemoraError, UsageError
from remora.plan.devices import Device, Link, Pool
from remora.plan.kept import MAX_NBYTES, from_json
from remora.plan.policies import policy_named
from remora.plan.presets import DEVICES, parse_link, preset
from remora.session.calibration import CLIENT, calibrated
from remora.session.connect import alike, rehearse, wants
from remora.session.estimated import PUBLISHED, EstimatedSession
from remora.transport.http import HttpTransport

DEFAULT_LINK = "10gbit"
_URLS = ("http://", "https://")


@dataclass(frozen=True)
class Named:
    """A device of the command line. source: where its numbers come from. address: as its peers name it; ''. links: to
    others by address; CLIENT is this machine."""

    device: Device
    source: str
    address: str
    links: dict[str, Link]


def rehearsing(
    devices: str,
    links: Sequence[str],
    placement: str | None = None,
    memory_nbytes: int = 0,
    bearer: str | None = None,
    token: int = 0,
) -> list[EstimatedSession]:
    """From now on sessions are estimated. Returns the list to which each is added when it opens.

    Args:
        devices: with commas between them: a name of plan/presets, the file of a calibration, or the address of an
            executor, which is measured now.
        links: one for all, or one for each: rate and delay between the client and it. None: as it was measured, or
            DEFAULT_LINK.
        memory_nbytes: that each grants; 0: what it has.
        bearer: the token of executors that are measured. token: a token of a text that nothing computed.

    Raises:
        UsageError: something named does not exist, or cannot be of one pool.
        ConnectError, Refused: an executor cannot be measured.
    """
    settings = ClientSettings()
    named = _named(devices, settings, bearer or settings.token)
    alike([("cuda" if one.device.asynchronous else "cpu", one.device.name) for one in named])
    policy = policy_named(placement or ("semantic" if len(named) > 1 else "local"))
    pool, said = _pool(named, links)
    sources = [one.source for one in named]
    planned = len(named) > 1 or placement is not None
    sessions: list[EstimatedSession] = []

    def make() -> EstimatedSession:
        sessions.append(
            EstimatedSession(pool, policy, settings, sources, said, memory_nbytes, planned, token)
        )
        return sessions[-1]

    rehearse(make)
    return sessions


def _named(text: str, settings: ClientSettings, token: str | None) -> list[Named]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UsageError(f"--device {text!r} names no device; there is: {', '.join(DEVICES)}")
    addresses = [word for word in words if word.startswith(_URLS)]
    measured = dict(zip(addresses, _measured(addresses, settings, token), strict=True))
    return [measured[word] if word in measured else _written(word) for word in words]


def _written(word: str) -> Named:
    if word.endswith(".json") or "/" in word:
        try:
            with Path(word).open("rb") as file:
                found = from_json(file.read(MAX_NBYTES + 1), None)
        except (OSError, ValueError) as error:
            raise UsageError(f"--device {word}: {error}") from None
        return Named(found.device, "calibration", "", dict(found.links))
    return Named(preset(word), PUBLISHED, "", {})


def _measured(addresses: Sequence[str], settings: ClientSettings, token: str | None) -> list[Named]:
    """All of them together, so that the links between them are known too."""
    transports = [
        HttpTransport(each, token, ca_file=settings.ca_file, mode=settings.transport) for each in addresses
    ]
    opened = []
    try:
        for transport in transports:
            opened.append((transport, transport.open_session(wants(), settings.connect_timeout_s)))
        pool = calibrated(opened, settings, wants()) if opened else Pool(())
    finally:
        for transport, grant in opened:
            with suppress(RemoraError, OSError):  # else its lease ends it
                transport.close_session(grant, 1.0)
        for transport in transports:
            transport.close()
    found = []
    for number, (address, device) in enumerate(zip(addresses, pool.devices, strict=True)):
        links = {addresses[to]: link for (source, to), link in pool.links.items() if source == number}
        found.append(Named(device, "measured", address, {CLIENT: pool.client[number], **links}))
    return found


def _pool(named: Sequence[Named], texts: Sequence[str]) -> tuple[Pool, str]:
    """The devices with their links, and these in words."""
    if len(texts) not in (0, 1, len(named)):
        raise UsageError(
            f"--link is given {len(texts)} times for {len(named)} devices; once for all, or once for each"
        )
    parsed = [parse_link(text) for text in texts] * (len(named) if len(texts) == 1 else 1)
    client = parsed or [one.links.get(CLIENT) or parse_link(DEFAULT_LINK) for one in named]
    links = {}
    for a, source in enumerate(named):
        for b, target in enumerate(named):
            if a != b:
                known = None if texts else source.links.get(target.address)
                links[a, b] = known or _slower(client[a], client[b])
    kinds = ["measured" if CLIENT in one.links else f"{DEFAULT_LINK} (assumed)" for one in named]
    said = "; ".join(texts) or ", ".join(dict.fromkeys(kinds))
    return Pool(tuple(one.device for one in named), links, tuple(client)), said


def _slower(a: Link, b: Link) -> Link:
    return Link(
        min(a.bytes_per_s, b.bytes_per_s),
        max(a.latency_s, b.latency_s),
        max(a.message_s, b.message_s),
        max(a.sigma, b.sigma),
    )
