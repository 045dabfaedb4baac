"""Which blobs are stored, for whom, and which go when memory is short. Pure: performs nothing itself.

A blob is keyed by (tenant, digest). Sessions hold it; one that nobody holds stays as a cache and goes,
least recently used first, when its memory is needed. An upload reserves its memory before a byte arrives.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from remora.executor.front.refusal import Refuse
from remora.executor.front.tokens import tenant_of
from remora.wire.limits import MAX_BLOB_NBYTES

MAX_UPLOADS = 64  # unfinished at once, a session
MAX_TENANT_UPLOADS = 512  # of all sessions of a tenant


@dataclass(eq=False)
class Blob:
    tenant: str
    digest: str  # hex
    nbytes: int
    path: str
    used_at: float
    holders: set[int] = field(default_factory=set)  # numbers of sessions


@dataclass(frozen=True)
class Memory:
    """What the blobs must fit in: the folder's memory, and the device's, both less what is not blobs.

    on_device: a stored blob is a value's own memory, as on a CPU; else the device gets a copy of it, which counts
    among what workers use.
    """

    capacity_nbytes: int
    used_nbytes: int  # by the workers
    folder_free_nbytes: int
    tenant_capacity_nbytes: int = 0  # what one tenant may hold; 0: all
    tenant_used_nbytes: int = 0  # by the worker of the tenant that asks
    on_device: bool = True


def pages(nbytes: int) -> int:
    """Memory that a file of `nbytes` takes; not zero, so that tiny blobs are bounded too."""
    return max(1, -(-nbytes // mmap.PAGESIZE)) * mmap.PAGESIZE


class BlobTable:
    def __init__(self) -> None:
        self._blobs: dict[tuple[str, str], Blob] = {}
        self._reserved: dict[tuple[int, str], tuple[str, int]] = {}  # (session, digest): (principal, nbytes)
        self.stored_nbytes = 0
        self.reserved_nbytes = 0

    def get(self, tenant: str, digest: str) -> Blob | None:
        return self._blobs.get((tenant, digest))

    def held(self, tenant: str, digests: Iterable[str]) -> tuple[str, ...]:
        return tuple(d for d in digests if (tenant, d) in self._blobs)

    def reserve(
        self,
        session: int,
        principal: str,
        digest: str,
        nbytes: int,
        memory: Memory,
        most: int = MAX_UPLOADS,
    ) -> list[Blob]:
        """Sets memory aside for an upload. Returns the blobs that are forgotten for it: remove their files.

        most: how many the session may have unfinished.

        Raises:
            Refuse: too large, too many uploads, or no memory even without the cache.
        """
        if (session, digest) in self._reserved:
            raise Refuse("busy", f"blob {digest} is just being uploaded by this session")
        if nbytes > MAX_BLOB_NBYTES:
            raise Refuse("memory", f"a blob of {nbytes} bytes; the limit is {MAX_BLOB_NBYTES}")
        if sum(number == session for number, _ in self._reserved) >= most:
            raise Refuse("limit", f"the session has {most} unfinished uploads, which is the limit")
        tenant = tenant_of(principal)
        reserved = [size for who, size in self._reserved.values() if tenant_of(who) == tenant]
        if len(reserved) >= MAX_TENANT_UPLOADS:
            raise Refuse(
                "limit", f"tenant {tenant} has {len(reserved)} unfinished uploads, which is the limit"
            )
        need = pages(nbytes)
        if memory.tenant_capacity_nbytes:
            held = sum(pages(b.nbytes) for b in self._blobs.values() if b.holders and b.tenant == tenant)
            held = held if memory.on_device else 0
            taken = memory.tenant_used_nbytes + held + sum(reserved)
            if need + taken > memory.tenant_capacity_nbytes:
                raise Refuse(
                    "memory",
                    f"asked for {nbytes} bytes; tenant {tenant} holds {taken} of the "
                    f"{memory.tenant_capacity_nbytes} that it may (--tenant-memory)",
                )
        free = self._free(memory)
        if not memory.on_device and need > self._room(memory):
            raise Refuse("memory", self._arithmetic(nbytes, max(self._room(memory), 0), principal, memory))
        cached = sum(pages(b.nbytes) for b in self._blobs.values() if not b.holders)
        if need > free + cached:
            raise Refuse("memory", self._arithmetic(nbytes, max(free + cached, 0), principal, memory))
        gone = self._forget_cached(need - free)
        self._reserved[session, digest] = (principal, need)
        self.reserved_nbytes += need
        return gone

    def unreserve(self, session: int, digest: str) -> None:
        _, nbytes = self._reserved.pop((session, digest), ("", 0))
        self.reserved_nbytes -= nbytes

    def admit(self, session: int, blob: Blob) -> Blob:
        """Turns a verified upload into a stored blob; returns the one to use, which may be an older equal."""
        self.unreserve(session, blob.digest)
        stored = self._blobs.setdefault((blob.tenant, blob.digest), blob)
        if stored is blob:
            self.stored_nbytes += pages(blob.nbytes)
        self.hold(session, stored, blob.used_at)
        return stored

    def hold(self, session: int, blob: Blob, now: float) -> None:
        blob.holders.add(session)
        blob.used_at = now

    def let_go(self, session: int, blob: Blob, now: float) -> None:
        """The session needs the blob no longer; it stays as a cache."""
        blob.holders.discard(session)
        blob.used_at = now

    def release(self, session: int, now: float) -> None:
        """The session is over: it holds and uploads nothing any more."""
        for blob in self._blobs.values():
            if session in blob.holders:
                self.let_go(session, blob, now)
        for number, digest in list(self._reserved):
            if number == session:
                self.unreserve(number, digest)

    def held_nbytes_of_others(self, tenant: str) -> int:
        """Of blobs that sessions of other tenants hold: no cache, so not to be had."""
        return sum(pages(b.nbytes) for b in self._blobs.values() if b.holders and b.tenant != tenant)

    def shrink(self, memory: Memory) -> list[Blob]:
        """Gives cached blobs up when the worker's own use has grown. Remove the files of what is returned."""
        return self._forget_cached(-self._free(memory))

    def _free(self, memory: Memory) -> int:
        """What forgetting cached blobs makes more."""
        in_folder = memory.folder_free_nbytes - self.reserved_nbytes
        return min(in_folder, self._room(memory) - self.stored_nbytes) if memory.on_device else in_folder

    def _room(self, memory: Memory) -> int:
        """Of the device."""
        return memory.capacity_nbytes - memory.used_nbytes - self.reserved_nbytes

    def _forget_cached(self, need_nbytes: int) -> list[Blob]:
        gone: list[Blob] = []
        for blob in sorted((b for b in self._blobs.values() if not b.holders), key=lambda b: b.used_at):
            if need_nbytes <= 0:
                break
            need_nbytes -= pages(blob.nbytes)
            self.stored_nbytes -= pages(blob.nbytes)
            del self._blobs[blob.tenant, blob.digest]
            gone.append(blob)
        return gone

    def _arithmetic(self, nbytes: int, free: int, principal: str, memory: Memory) -> str:
        held: Counter[str] = Counter()
        for blob in self._blobs.values():
            if blob.holders:
                ours = blob.tenant == tenant_of(principal)
                held["your tenant's" if ours else "other tenants'"] += blob.nbytes
        blobs = "".join(f", {who} blobs {n}" for who, n in held.items())
        return (
            f"asked for {nbytes} bytes; free {free} of {memory.capacity_nbytes} "
            f"(worker {memory.used_nbytes}, uploads under way {self.reserved_nbytes}"
            f"{blobs}; the blob folder has {memory.folder_free_nbytes} left)"
        )
