"""A calibration as bytes that a session keeps on disk. What is read back is checked; what cannot be used says why."""

from __future__ import annotations

import msgspec

from remora.plan.devices import Device, Link

VERSION = 1
MAX_NBYTES = 1 << 20


class Calibration(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was measured of one executor. key: what it was measured on; another key means: measure again.

    links: by the address of the other end; '' is the client.
    """

    version: int
    key: str
    device: Device
    links: dict[str, Link] = {}


def to_json(calibration: Calibration) -> bytes:
    return msgspec.json.encode(calibration)


def from_json(data: bytes, key: str | None) -> Calibration:
    """Inverse of `to_json`. key: None: whatever it was measured on.

    Raises:
        ValueError: it cannot be used, and why: damaged, of another version, or measured on something else.
    """
    if len(data) > MAX_NBYTES:
        raise ValueError(f"a calibration of {len(data):,} bytes; the limit is {MAX_NBYTES:,}")
    try:
        found = msgspec.json.decode(data, type=Calibration)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a calibration: {error}") from None
    if found.version != VERSION:
        raise ValueError(f"a calibration of version {found.version}; this is version {VERSION}")
    if key is not None and found.key != key:
        raise ValueError(f"measured on {found.key!r}, which is not {key!r}")
    return found
