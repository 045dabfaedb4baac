"""The memo on disk: what is stored comes back equal, and no file can make a program fail."""

from __future__ import annotations

import dataclasses
import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remora.device import memo_store
from remora.device.infer import Outcome
from remora.device.memo_store import MAGIC, MemoStore, key_digest, pack, unpack
from remora.device.meta import TensorMeta, contiguous_meta, intern
from remora.ops.dtypes import BY_NAME
from remora.ops.layout import Meta

add, mul = torch.ops.aten.add.Tensor, torch.ops.aten.mul.Tensor
META = contiguous_meta((2, 3), torch.float32)

dims = st.lists(st.integers(0, 1 << 40), max_size=5).map(tuple)
metas = dims.flatmap(
    lambda shape: st.builds(
        lambda stride, offset, dtype: intern(Meta(shape, tuple(stride), offset, dtype)),
        st.lists(st.integers(0, 1 << 40), min_size=len(shape), max_size=len(shape)),
        st.integers(0, 1 << 40),
        st.sampled_from(list(BY_NAME.values())),
    )
)
positions = st.integers(0, 100)
outcomes = st.builds(
    Outcome,
    outs=st.lists(st.one_of(metas, positions, st.none()), min_size=1, max_size=4).map(tuple),
    single=st.booleans(),
    container=st.sampled_from([list, tuple]),
    layouts=st.lists(st.lists(positions, max_size=4).map(tuple), max_size=3).map(tuple),
    foldable=st.booleans(),
    is_view=st.booleans(),
    stale=st.lists(positions, max_size=3).map(tuple),
)
NAMED = [torch.float16, torch.strided, torch.channels_last, torch.device("cpu"), torch.device("meta"), 1 + 2j]
typed = st.one_of(
    st.integers(-(1 << 62), 1 << 62), st.floats(), st.booleans(), st.text(max_size=8), st.none()
)
items = st.one_of(
    metas.map(lambda m: [m]), typed.map(lambda v: [type(v), v]), st.sampled_from(NAMED).map(lambda v: [v])
)
keys = st.lists(items, max_size=6).map(lambda parts: (add, *(x for part in parts for x in part)))


def saved(path: Path, entries: dict[Any, Outcome], **options: Any) -> MemoStore:
    store = MemoStore(path, **options)
    for key, outcome in entries.items():
        store.add(key, outcome)
    store.save()
    return MemoStore(path, **options)


def outcome(n: int = 0) -> Outcome:
    return Outcome((META,), True, stale=(n,))


@given(keys, outcomes)
def test_what_is_stored_comes_back_equal(tmp_path_factory: Any, key: Any, stored: Outcome) -> None:
    path = tmp_path_factory.mktemp("memo") / "memo"
    found = saved(path, {key: stored}).find(key)
    assert found == stored
    assert all(a is b for a, b in zip(found.outs, stored.outs, strict=True) if isinstance(a, TensorMeta))


def test_every_field_of_an_outcome_is_stored() -> None:
    fields = {field.name for field in dataclasses.fields(Outcome) if field.init}
    assert fields - {"container", "unknown"} <= set(memo_store.Entry.__struct_fields__)
    assert unpack(pack(outcome(3))) == outcome(3)


@given(st.lists(keys, max_size=8))
def test_different_keys_never_share_an_entry(several: list[Any]) -> None:
    same = {repr(key): key_digest(key) for key in several}
    assert len(set(same.values())) == len(same) or math.nan in [x for key in several for x in key]


def test_numbers_of_different_types_are_different_keys() -> None:
    numbers = [1, 1.0, True, math.nan, math.inf, -math.inf, 0, 0.0, False, None, "1"]
    assert len({key_digest((add, type(n), n)) for n in numbers}) == len(numbers)


def test_the_default_dtype_is_part_of_a_key() -> None:
    key = (add, META)
    single = key_digest(key)
    torch.set_default_dtype(torch.float64)
    try:
        assert key_digest(key) != single
    finally:
        torch.set_default_dtype(torch.float32)


def test_only_what_torch_itself_defines_and_the_client_can_know_is_stored(tmp_path: Path) -> None:
    saved(tmp_path / "memo", {(add, META): Outcome((None,), True, unknown=True), (len, META): outcome()})
    assert not (tmp_path / "memo").exists()


def test_a_number_beyond_64_bits_is_counted_and_left_out(tmp_path: Path) -> None:
    store = MemoStore(tmp_path / "memo")
    store.add((add, int, 1 << 70), outcome())
    assert store.failures == 1
    assert store.find((add, int, 1 << 70)) is None


def test_an_op_whose_schema_changed_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = saved(tmp_path / "memo", {(add, META): outcome(), (mul, META): outcome()})
    digests = {add: "other", mul: memo_store.digest(mul)}
    monkeypatch.setattr(memo_store, "digest", digests.__getitem__)
    assert store.find((add, META)) is None
    assert store.find((mul, META)) == outcome()


@pytest.mark.parametrize(
    "damage",
    [
        lambda good: b"",
        lambda good: b"not ours at all",
        lambda good: good[:-1],
        lambda good: good[:-1] + bytes([good[-1] ^ 1]),
        lambda good: MAGIC + memo_store._digest(b"\x93\x01\x02\x03") + b"\x93\x01\x02\x03",
    ],
)
def test_a_damaged_or_foreign_file_is_ignored_and_replaced(tmp_path: Path, damage: Any) -> None:
    path = tmp_path / "memo"
    saved(path, {(add, META): outcome()})
    path.write_bytes(damage(path.read_bytes()))
    store = MemoStore(path)
    assert store.find((add, META)) is None
    assert store.failures == 1
    assert saved(path, {(add, META): outcome(5)}).find((add, META)) == outcome(5)


def test_the_oldest_entries_make_room(tmp_path: Path) -> None:
    path = tmp_path / "memo"
    first = saved(path, {(add, int, n): outcome(n) for n in range(4)}, max_entries=5)
    assert first.find((add, int, 0)) == outcome(0)  # used again, so young
    first.add((mul, int, 0), outcome())
    first.add((mul, int, 1), outcome())
    first.save()
    now = MemoStore(path, max_entries=5)
    kept = [n for n in range(4) if now.find((add, int, n))]
    assert len(kept) == 3
    assert 0 in kept
    assert now.find((mul, int, 1)) == outcome()


def test_processes_that_save_one_after_the_other_keep_both(tmp_path: Path) -> None:
    path = tmp_path / "memo"
    one, other = MemoStore(path), MemoStore(path)
    one.find((add, META))
    other.find((add, META))
    one.add((add, META), outcome(1))
    other.add((add, int, 2), outcome(2))
    one.save()
    other.save()
    now = MemoStore(path)
    assert [now.find((add, META)), now.find((add, int, 2))] == [outcome(1), outcome(2)]


def test_writers_at_once_leave_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "memo"

    def write(writer: int) -> None:
        for n in range(10):
            saved(path, {(add, int, writer * 100 + n): outcome(n)})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = MemoStore(path)
    assert any(now.find((add, int, writer * 100 + 9)) == outcome(9) for writer in range(4))
    assert now.failures == 0
    assert [file.name for file in tmp_path.iterdir()] == ["memo"]


def test_a_folder_that_cannot_be_written_is_only_counted(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = MemoStore(tmp_path / "file" / "memo")
    store.add((add, META), outcome())
    store.save()
    assert store.failures > 0
    assert store.find((add, META)) is None


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "memo"
    store = saved(path, {(add, META): outcome()})

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    store.add((mul, META), outcome())
    with monkeypatch.context() as patched:
        patched.setattr(memo_store.os, "replace", full)
        store.save()
    assert store.failures == 1
    assert [file.name for file in tmp_path.iterdir()] == ["memo"]
    assert MemoStore(path).find((add, META)) == outcome()
