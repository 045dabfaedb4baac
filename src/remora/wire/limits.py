"""Bounds of the protocol. Both ends refuse what is larger, before they allocate for it."""

from __future__ import annotations

PROTOCOL = 4
OLDEST_PROTOCOL = 2  # has no run-ahead; what older clients are granted, whose predictions would be others

MAX_FRAME_NBYTES = 8 << 20
MAX_MESSAGES = 4096  # in one frame
MAX_INLINE_NBYTES = 64 << 10  # tensors up to here travel inside frames, larger ones in HTTP bodies
MAX_DIMS = 64
MAX_NUMEL = 1 << 48
MAX_TEMPLATES = 65_536  # a session
MAX_SITES = 262_144  # a session
MAX_GENERATORS = 4096  # a session, at a time
MAX_UNACKED_FRAMES = 4096
MAX_UNACKED_NBYTES = 64 << 20
MAX_BLOB_NBYTES = 1 << 40
MAX_PEERS = 64  # executors that a session may push values to
MAX_DEPTH = 64  # programs that an executor may be ahead of a client
MAX_PUSHED = 4096  # values in one push
MAX_PARCEL_HEADER_NBYTES = 1 << 20
BULK_CHUNK_NBYTES = 1 << 20
