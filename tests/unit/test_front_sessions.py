import pytest

from remora.executor.front.refusal import Refuse
from remora.executor.front.sessions import BULK_GRACE_S, SessionTable
from remora.executor.hop import BulkFile

ANN, BOB = "acme/ann", "acme/bob"


def refused(call, *args, **kwargs):
    with pytest.raises(Refuse) as refusal:
        call(*args, **kwargs)
    return refusal.value


def test_only_secret_and_principal_together_find_a_session():
    table = SessionTable(lease_s=10)
    session = table.open(ANN, now=0)
    assert table.find(session.id, session.secret, ANN, now=1) is session
    for id, secret, principal in [
        ("nope", session.secret, ANN),
        (session.id, "guess", ANN),
        (session.id, "é", ANN),
        (session.id, session.secret, BOB),
    ]:
        assert refused(table.find, id, secret, principal, now=1).status == 404


def test_numbers_are_never_used_twice():
    table = SessionTable(lease_s=10)
    first = table.open(ANN, now=0)
    table.end(first, "closed", now=0)
    assert table.open(ANN, now=0).number == first.number + 1


def test_the_quota_bounds_open_sessions():
    table = SessionTable(lease_s=10, quota=1)
    session = table.open(ANN, now=0)
    assert refused(table.open, ANN, now=0).kind == "limit"
    table.end(session, "closed", now=0)
    table.open(ANN, now=0)


def test_a_lease_ends_after_silence_only():
    table = SessionTable(lease_s=10)
    session = table.open(ANN, now=0)
    table.find(session.id, session.secret, ANN, now=9)
    assert table.expired(now=18.9) == []
    assert table.expired(now=19) == [session]


def test_the_reason_of_an_end_is_told_to_its_owner_for_a_lease():
    table = SessionTable(lease_s=10)
    session = table.open(ANN, now=0)
    table.end(session, "the worker died", now=5)
    assert "worker died" in refused(table.find, session.id, session.secret, ANN, now=14).message
    assert "worker died" not in refused(table.find, session.id, "guess", ANN, now=14).message
    assert "worker died" not in refused(table.find, session.id, session.secret, BOB, now=14).message
    assert "worker died" not in refused(table.find, session.id, session.secret, ANN, now=15).message


def test_epochs_only_grow():
    session = SessionTable(lease_s=10).open(ANN, now=0)
    session.check_epoch(1, same_allowed=False)
    session.epoch = 3
    assert refused(session.check_epoch, 3, same_allowed=False).kind == "protocol"
    assert refused(session.check_epoch, 2, same_allowed=True).kind == "protocol"
    session.check_epoch(3, same_allowed=True)


def test_a_bulk_goes_when_another_is_asked_for_or_after_a_moment():
    session = SessionTable(lease_s=10).open(ANN, now=0)
    a, b = BulkFile("a", "/a", 1), BulkFile("b", "/b", 1)
    session.bulks.update(a=a, b=b)
    session.read_at["a"] = 0
    assert session.bulks_to_drop("a", now=1) == []  # a second try
    assert session.bulks_to_drop("b", now=1) == [a]
    session.read_at["b"] = 1
    assert session.bulks_to_drop(None, now=1) == []
    assert session.bulks_to_drop(None, now=1 + BULK_GRACE_S) == [b]
    assert session.bulks == {}


def test_a_tenant_leaves_sessions_to_others():
    table = SessionTable(9.0, quota=4, tenant_quota=2)
    first = table.open("acme/ann", 0.0)
    table.open("acme/bob", 0.0)
    with pytest.raises(Refuse, match="tenant acme has 2 sessions"):
        table.open("acme/ann", 0.0)
    table.open("other/eve", 0.0)
    table.end(first, "closed", 1.0)
    table.open("acme/ann", 1.0)
    with pytest.raises(Refuse, match="the executor has 4 sessions"):
        table.open("third/cid", 1.0) and table.open("third/cid", 1.0)
