"""The table of sessions: who may come back, until when, and why a session that is gone has gone.

Pure: the caller passes the clock's reading as `now`, in seconds, and performs what is decided here.
"""

from __future__ import annotations

import hmac
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

from remora.executor.front.refusal import Refuse
from remora.executor.front.tokens import tenant_of
from remora.executor.hop import BulkFile, SessionUsage
from remora.transport.stream import Stream

MAX_GONE = 1024  # ended sessions whose reason is remembered
MAX_ARRIVED = 4096  # pushes that are remembered: many more than can be under way
BULK_GRACE_S = 5.0


@dataclass(eq=False)
class Session:
    """One client's session. `number` names it on the hop to the worker and is never used twice."""

    id: str
    number: int
    secret: str
    principal: str
    lease_s: float
    renewed_at: float
    nonce: bytes  # keys this session's proofs of possession
    push_secret: str  # for other executors, to add values and for nothing else
    epoch: int = 0  # of the last connection; a Grant names 1 as the first to use
    stream: Stream = field(default_factory=Stream)
    bulks: dict[str, BulkFile] = field(default_factory=dict)
    read_at: dict[str, float] = field(default_factory=dict)  # bulks that were read whole
    offers: dict[str, int] = field(default_factory=dict)  # how often the worker was given each blob
    stepped_at: float | None = None  # when the last step went to the worker, if no reply came since
    used: SessionUsage = field(default_factory=SessionUsage)
    arrived: OrderedDict[str, None] = field(default_factory=OrderedDict)  # pushes, which may come twice

    @property
    def tenant(self) -> str:
        return tenant_of(self.principal)

    def renew(self, now: float) -> None:
        self.renewed_at = now

    def check_epoch(self, epoch: int, same_allowed: bool) -> None:
        """A connection may only be replaced by a newer one.

        Raises:
            Refuse: the epoch is not newer (with `same_allowed`: it is older).
        """
        if epoch < 1 or epoch < self.epoch or (epoch == self.epoch and not same_allowed):
            raise Refuse("protocol", f"epoch {epoch} is not newer than epoch {self.epoch} of this session")

    def note_arrival(self, push: str) -> None:
        """The push has come whole: a second try of it is not to be acted on."""
        self.arrived[push] = None
        while len(self.arrived) > MAX_ARRIVED:
            self.arrived.popitem(last=False)

    def bulks_to_drop(self, asked: str | None, now: float) -> list[BulkFile]:
        """Files that were read whole and are not needed for a second try any more.

        A reader that asks for another bulk has the last one; `asked` is that other one, or None.
        """
        done = [
            bulk
            for bulk, read_at in self.read_at.items()
            if (asked is not None and asked != bulk) or now - read_at >= BULK_GRACE_S
        ]
        for bulk in done:
            del self.read_at[bulk]
        return [self.bulks.pop(bulk) for bulk in done]


@dataclass(frozen=True)
class Gone:
    secret: str
    principal: str
    reason: str
    until: float


class SessionTable:
    """Sessions by id and by number."""

    def __init__(self, lease_s: float, quota: int = 64, tenant_quota: int = 64) -> None:
        self.lease_s = lease_s
        self.quota = quota
        self.tenant_quota = tenant_quota
        self.by_number: dict[int, Session] = {}
        self._by_id: dict[str, Session] = {}
        self._gone: OrderedDict[str, Gone] = OrderedDict()
        self._last_number = 0

    def __len__(self) -> int:
        return len(self.by_number)

    def open(self, principal: str, now: float) -> Session:
        """A new session.

        Raises:
            Refuse: the executor has as many as it may have.
        """
        self.check(principal)
        self._last_number += 1
        session = Session(
            id=secrets.token_hex(8),
            number=self._last_number,
            secret=secrets.token_urlsafe(24),
            principal=principal,
            lease_s=self.lease_s,
            renewed_at=now,
            nonce=secrets.token_bytes(32),
            push_secret=secrets.token_urlsafe(24),
        )
        self.by_number[session.number] = self._by_id[session.id] = session
        return session

    def check(self, principal: str) -> None:
        """Whether the principal may open one more session.

        Raises:
            Refuse: the executor, or the tenant, has as many as it may have.
        """
        if len(self) >= self.quota:
            raise Refuse("limit", f"the executor has {len(self)} sessions, which is its limit; try later")
        tenant = tenant_of(principal)
        held = sum(session.tenant == tenant for session in self.by_number.values())
        if held >= self.tenant_quota:
            raise Refuse(
                "limit",
                f"tenant {tenant} has {held} sessions, which is its limit; disconnect() one, or try later",
            )

    def find(self, id: str, secret: str, principal: str, now: float) -> Session:
        """The session that the caller may use; renews its lease.

        Raises:
            Refuse: unknown or over (with the reason, told only to who knows the secret), or a bad secret.
        """
        session = self._by_id.get(id)
        if session is None:
            gone = self._gone.get(id)
            if gone and now < gone.until and _same(gone.secret, secret) and gone.principal == principal:
                raise Refuse("session", f"session {id} is over: {gone.reason}")
            raise Refuse("session", f"there is no session {id[:32]!r}; it may have ended")
        if not _same(session.secret, secret) or session.principal != principal:
            raise Refuse("session", f"session {id} is not yours: wrong secret or principal")
        session.renew(now)
        return session

    def find_for_push(self, id: str, push_secret: str | None) -> Session:
        """The session that another executor may add values to; does not renew its lease.

        push_secret: None finds it for who has yet to prove that it knows the secret.

        Raises:
            Refuse: no such session, or a bad secret.
        """
        session = self._by_id.get(id)
        if session is None:
            raise Refuse("session", f"there is no session {id[:32]!r}; it may have ended")
        if push_secret is not None and not _same(session.push_secret, push_secret):
            raise Refuse("session", f"session {id} has another push secret")
        return session

    def end(self, session: Session, reason: str, now: float) -> None:
        del self.by_number[session.number], self._by_id[session.id]
        self._gone[session.id] = Gone(session.secret, session.principal, reason, now + session.lease_s)
        while len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def expired(self, now: float) -> list[Session]:
        """Sessions whose client has been silent for a whole lease."""
        return [s for s in self.by_number.values() if now - s.renewed_at >= s.lease_s]


def _same(known: str, given: str) -> bool:
    return hmac.compare_digest(known.encode(), given.encode("utf-8", "surrogateescape"))
