import mmap

import pytest

from remora.executor.front.blobs import MAX_UPLOADS, Blob, BlobTable, Memory
from remora.executor.front.refusal import Refuse

PAGE = mmap.PAGESIZE
PLENTY = 1 << 40


def room(pages, used=0, folder=PLENTY):
    return Memory(pages * PAGE, used * PAGE, folder)


def gpu(pages, folder, used=0):
    return Memory(pages * PAGE, used * PAGE, folder * PAGE, on_device=False)


def store(table, session, digest, memory, now=0.0, tenant="t", pages=1):
    gone = table.reserve(session, f"{tenant}/u", digest, pages * PAGE, memory)
    table.admit(session, Blob(tenant, digest, pages * PAGE, f"/{digest}", now))
    return [blob.digest for blob in gone]


def test_a_blob_is_seen_by_its_tenant_only():
    table = BlobTable()
    store(table, 1, "a", room(9), tenant="acme")
    assert table.held("acme", ["a", "b"]) == ("a",)
    assert table.held("other", ["a"]) == ()


def test_what_nobody_holds_goes_least_recently_used_first():
    table = BlobTable()
    for session, digest in enumerate("abc"):
        store(table, session, digest, room(3))
    table.release(0, now=5)
    table.release(1, now=4)
    assert store(table, 7, "d", room(3)) == ["b"]
    assert store(table, 7, "e", room(3)) == ["a"]
    with pytest.raises(Refuse) as refusal:  # c, d and e are held
        store(table, 7, "f", room(3))
    assert refusal.value.status == 507


def test_nothing_is_evicted_for_what_would_not_fit_anyway():
    table = BlobTable()
    store(table, 1, "a", room(3))
    table.release(1, now=1)
    with pytest.raises(Refuse):
        table.reserve(2, "t/u", "b", 4 * PAGE, room(3))
    assert table.get("t", "a") is not None


def test_beside_a_gpu_blobs_take_the_folder_s_memory_and_values_the_device_s():
    table = BlobTable()
    for digest in "abc":
        store(table, 1, digest, gpu(3, folder=9))
    assert table.stored_nbytes == 3 * PAGE
    with pytest.raises(Refuse, match=f"free 0 of {3 * PAGE}"):  # the device has copies
        store(table, 1, "d", gpu(3, folder=9, used=3))
    store(table, 1, "d", gpu(4, folder=1, used=3))
    table.release(1, now=1)
    with pytest.raises(Refuse):  # forgetting blobs makes no room on the device
        store(table, 2, "e", gpu(4, folder=9, used=4))
    assert table.held("t", list("abcd")) == tuple("abcd")
    assert table.shrink(gpu(4, folder=9, used=9)) == []
    assert store(table, 2, "e", gpu(9, folder=0)) == ["a"]


def test_a_refusal_shows_its_arithmetic_and_no_other_tenants_name():
    table = BlobTable()
    store(table, 1, "a", room(9), tenant="acme", pages=2)
    with pytest.raises(Refuse) as refusal:
        table.reserve(2, "other/u", "b", 7 * PAGE, room(9, used=1))
    message = refusal.value.message
    assert f"asked for {7 * PAGE} bytes; free {6 * PAGE} of {9 * PAGE}" in message
    assert f"worker {PAGE}" in message
    assert f"other tenants' blobs {2 * PAGE}" in message
    assert "acme" not in message


def test_the_folder_bounds_as_well():
    with pytest.raises(Refuse, match="blob folder has 1 left"):
        BlobTable().reserve(1, "t/u", "a", PAGE, room(9, folder=1))


def test_uploads_reserve_and_give_back():
    table = BlobTable()
    table.reserve(1, "t/u", "a", PAGE, room(1))
    with pytest.raises(Refuse):
        table.reserve(1, "t/u", "b", PAGE, room(1))
    table.release(1, now=0)
    table.reserve(2, "t/u", "b", PAGE, room(1))
    table.unreserve(2, "b")
    assert (table.reserved_nbytes, table.stored_nbytes) == (0, 0)


def test_tiny_blobs_and_uploads_are_bounded_too():
    table = BlobTable()
    table.reserve(1, "t/u", "x", 0, room(1))
    with pytest.raises(Refuse):
        table.reserve(1, "t/u", "y", 0, room(1))
    table = BlobTable()
    for n in range(MAX_UPLOADS):
        table.reserve(1, "t/u", str(n), 0, room(1000))
    with pytest.raises(Refuse) as refusal:
        table.reserve(1, "t/u", "one more", 0, room(1000))
    assert refusal.value.status == 429


def test_the_same_blob_twice_is_stored_once():
    table = BlobTable()
    store(table, 1, "a", room(9))
    table.reserve(2, "t/u", "a", PAGE, room(9))
    stored = table.admit(2, Blob("t", "a", PAGE, "/second", 1.0))
    assert stored.path == "/a"
    assert stored.holders == {1, 2}
    assert table.stored_nbytes == PAGE


def test_the_workers_own_use_pushes_cached_blobs_out():
    table = BlobTable()
    store(table, 1, "held", room(4))
    store(table, 2, "cached", room(4))
    table.release(2, now=1)
    assert table.shrink(room(4, used=2)) == []
    assert [blob.digest for blob in table.shrink(room(4, used=3))] == ["cached"]
    assert table.shrink(room(4, used=4)) == []  # what is held stays


def test_a_tenants_unfinished_uploads_are_bounded_over_its_sessions(monkeypatch):
    monkeypatch.setattr("remora.executor.front.blobs.MAX_TENANT_UPLOADS", 3)
    table = BlobTable()
    for session in range(3):
        table.reserve(session, "acme/u", "a", PAGE, room(99))
    with pytest.raises(Refuse, match="tenant acme has 3 unfinished uploads"):
        table.reserve(3, "acme/v", "b", PAGE, room(99))
    table.reserve(4, "other/u", "a", PAGE, room(99))
    table.unreserve(0, "a")
    table.reserve(3, "acme/v", "b", PAGE, room(99))


def test_a_tenant_holds_no_more_than_it_may():
    table = BlobTable()
    memory = Memory(99 * PAGE, 0, PLENTY, 4 * PAGE, 2 * PAGE)
    table.reserve(1, "acme/u", "a", PAGE, memory)
    with pytest.raises(Refuse, match=r"tenant acme holds .* that it may \(--tenant-memory\)"):
        table.reserve(1, "acme/u", "b", 2 * PAGE, memory)
    table.reserve(1, "acme/u", "b", PAGE, memory)
