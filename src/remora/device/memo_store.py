"""The metadata memo on disk, so that a new process starts warm.

A file belongs to one version of PyTorch, of Remora and of the code that infers. In it each op has its entries
beside the digest of its schema, still encoded: an entry is decoded when its call first comes. A key is
kept as its digest, since it is only ever compared. Nothing here makes a program fail: what cannot be read or
written is counted in `failures` and costs speed alone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from blake3 import blake3
from torch._ops import OpOverload

from remora import __version__
from remora.config import cache_dir
from remora.device.infer import Outcome
from remora.device.meta import TensorMeta, intern
from remora.ops.dtypes import BY_NAME, NAMES
from remora.ops.layout import Meta
from remora.ops.schema import digest, op_name

MAGIC = b"remora memo 1\n"
DIGEST_NBYTES = 16
MAX_ENTRIES = 20_000
MAX_FILE_NBYTES = 64 << 20
MAX_FILES = 8  # of other versions of PyTorch or Remora

_ABSENT = (msgspec.DecodeError, ValueError, KeyError)


class PackedMeta(msgspec.Struct, array_like=True, frozen=True):
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: str
    lazy: int = 0


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """An Outcome, and the age: the number of the save in which it was last used."""

    age: int
    outs: tuple[PackedMeta | int | None, ...]
    single: bool
    is_list: bool
    layouts: tuple[tuple[int, ...], ...]
    foldable: bool
    is_view: bool
    stale: tuple[int, ...]


class OpEntries(msgspec.Struct, array_like=True, frozen=True):
    schema: str
    entries: msgspec.Raw  # Encoded


class Stored(msgspec.Struct, array_like=True, frozen=True):
    saves: int
    ops: dict[str, OpEntries]


T = TypeVar("T")
Entries = dict[bytes, Entry]
Encoded = dict[bytes, msgspec.Raw]  # Entries
_stored = msgspec.msgpack.Decoder(Stored)
_entries = msgspec.msgpack.Decoder(Entries)
_encoded = msgspec.msgpack.Decoder(Encoded)
_entry = msgspec.msgpack.Decoder(Entry)
_pack = msgspec.msgpack.Encoder().encode
_NONE = _pack({})  # of no entries


class MemoStore:
    """The memo's entries on disk, and those of this process that are not there yet.

    Args:
        path: None: the file of this PyTorch and Remora in `config.cache_dir()`, found at the first miss.
    """

    def __init__(self, path: Path | None = None, max_entries: int = MAX_ENTRIES) -> None:
        self.path = path
        self.max_entries = max_entries
        self.hits = 0
        self.failures = 0
        self._lock = threading.Lock()
        self._file: Stored | None = None
        self._known: dict[str, Encoded] = {}  # ops that have come
        self._used: dict[str, set[bytes]] = {}
        self._fresh: dict[str, Entries] = {}

    def forked(self) -> None:
        """In a child process: what another thread of the parent held, nobody holds here."""
        self._lock = threading.Lock()

    def load(self) -> None:
        """Reads the file, which else the first `find` does."""
        with self._lock:
            self._loaded()

    def find(self, key: tuple[Any, ...]) -> Outcome | None:
        """The outcome that an earlier process stored under a memo key whose first item is the op."""
        op = key[0]
        if not _is_kept(op):
            return None
        with self._lock:
            name = op_name(op)
            known = self._known.get(name)
            if known is None:
                known = self._known[name] = self._entries_of(op, self._loaded(), _encoded)
            if not known:
                return None
            try:
                hashed = key_digest(key)
                entry = known.get(hashed)
                outcome = unpack(_entry.decode(entry)) if entry is not None else None
            except (OverflowError, TypeError):
                return None
            except _ABSENT:
                self.failures += 1
                return None
            if outcome is not None:
                self.hits += 1
                self._used.setdefault(name, set()).add(hashed)
            return outcome

    def add(self, key: tuple[Any, ...], outcome: Outcome) -> None:
        """Remembers an outcome for the next `save`; one that only the executor knows is left out."""
        op = key[0]
        if outcome.unknown or not _is_kept(op):
            return
        with self._lock:
            fresh = self._fresh.setdefault(op_name(op), {})
            try:
                fresh[key_digest(key)] = pack(outcome)
            except (OverflowError, TypeError, KeyError):  # an int of more than 64 bits, an exotic dtype
                self.failures += 1

    def save(self) -> None:
        """Merges what is new into the file, atomically. Without anything new: nothing happens."""
        with self._lock:
            if not any(self._fresh.values()):
                return
            try:
                self._write(self._merged())
            except (OSError, ValueError):
                self.failures += 1
            else:
                self._fresh.clear()
                self._used.clear()

    def _loaded(self) -> Stored:
        if self._file is None:
            self._file = self._read()
        return self._file

    def _read(self) -> Stored:
        """What the file says now; nothing, if it is absent, corrupt or foreign."""
        try:
            if self.path is None:
                self.path = default_path()
            with self.path.open("rb") as file:
                content = file.read(MAX_FILE_NBYTES + 1)
        except FileNotFoundError:
            return Stored(0, {})
        except (OSError, ValueError):
            self.failures += 1
            return Stored(0, {})
        start = len(MAGIC) + DIGEST_NBYTES
        body = memoryview(content)[start:]
        try:
            if len(content) > MAX_FILE_NBYTES or content[:start] != MAGIC + _digest(body):
                raise ValueError("not a memo, or a damaged one")
            return _stored.decode(body)
        except _ABSENT:
            self.failures += 1
            return Stored(0, {})

    def _entries_of(self, op: OpOverload, stored: Stored, decoder: msgspec.msgpack.Decoder[T]) -> T:
        """An op's entries, none if its schema is another one: as far as `decoder` decodes them."""
        found = stored.ops.get(op_name(op))
        raw = found.entries if found is not None and found.schema == digest(op) else _NONE
        try:
            return decoder.decode(raw)
        except _ABSENT:
            self.failures += 1
            return decoder.decode(_NONE)

    def _merged(self) -> Stored:
        """The file as it is now, which another process may have written since, with what this one adds."""
        stored = self._read()
        age = stored.saves + 1
        ops = dict(stored.ops)
        merged: dict[str, tuple[str, Entries]] = {}
        for name in {**self._fresh, **self._used}:
            op = _resolve(name)
            entries = self._entries_of(op, stored, _entries)
            for hashed in self._used.get(name, ()):
                if hashed in entries:
                    entries[hashed] = msgspec.structs.replace(entries[hashed], age=age)
            for hashed, entry in self._fresh.get(name, {}).items():
                entries[hashed] = msgspec.structs.replace(entry, age=age)
            merged[name] = (digest(op), entries)
        for name, found in ops.items():
            if name not in merged:
                try:
                    merged[name] = (found.schema, _entries.decode(found.entries))
                except _ABSENT:
                    self.failures += 1
        _drop_oldest(merged, self.max_entries)
        packed = {
            n: OpEntries(s, msgspec.Raw(_pack(entries))) for n, (s, entries) in merged.items() if entries
        }
        return Stored(age, packed)

    def _write(self, stored: Stored) -> None:
        assert self.path is not None  # _read has found it
        body = _pack(stored)
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=".memo-", dir=folder)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(MAGIC + _digest(body) + body)
            os.replace(temporary, self.path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        files = sorted(folder.glob("memo-*.msgpack"), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in files[MAX_FILES:]:
            old.unlink(missing_ok=True)


def pack(outcome: Outcome) -> Entry:
    return Entry(
        0,
        tuple(_packed_meta(out) if isinstance(out, TensorMeta) else out for out in outcome.outs),
        outcome.single,
        outcome.container is list,
        outcome.layouts,
        outcome.foldable,
        outcome.is_view,
        outcome.stale,
    )


def unpack(entry: Entry) -> Outcome:
    return Outcome(
        tuple(_unpacked_meta(out) if isinstance(out, PackedMeta) else out for out in entry.outs),
        entry.single,
        list if entry.is_list else tuple,
        entry.layouts,
        entry.foldable,
        entry.is_view,
        entry.stale,
    )


@lru_cache(maxsize=1 << 12)
def _packed_meta(meta: TensorMeta) -> PackedMeta:
    return PackedMeta(tuple(meta.shape), tuple(meta.stride), meta.offset, NAMES[meta.dtype], meta.lazy)


def _unpacked_meta(packed: PackedMeta) -> TensorMeta:
    return intern(Meta(packed.shape, packed.stride, packed.offset, BY_NAME[packed.dtype]), packed.lazy)


def key_digest(key: tuple[Any, ...]) -> bytes:
    """The digest of a memo key without its op. The default dtype is in it, which gives results theirs.

    Raises TypeError, OverflowError for a key that has no name on disk.
    """
    return _digest(_pack([NAMES[torch.get_default_dtype()], *map(_spelled, key[1:])]))


def _spelled(item: Any) -> Any:
    """An item of a key as MessagePack tells it apart from any other: numbers as they are, the rest named."""
    kind = type(item)
    if kind is TensorMeta:
        return _packed_meta(item)
    if kind is int or kind is float or kind is bool or item is None or kind is str:
        return item
    if isinstance(item, type):
        return ("type", item.__name__)
    if isinstance(item, (torch.dtype, torch.layout, torch.memory_format, torch.device)):
        return (kind.__name__, str(item))
    if kind is complex:
        return ("complex", item.real, item.imag)
    raise TypeError(f"a {kind.__name__} in a memo key")


def _is_kept(op: Any) -> bool:
    """Only PyTorch's own ops: what the program registers may behave otherwise the next time."""
    return isinstance(op, OpOverload) and op.namespace == "aten"


def _resolve(name: str) -> OpOverload:
    _, base, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, base), overload)  # type: ignore[no-any-return]


def _drop_oldest(ops: dict[str, tuple[str, Entries]], keep: int) -> None:
    surplus = sum(len(entries) for _, entries in ops.values()) - keep
    if surplus <= 0:
        return
    by_age = sorted(
        (entry.age, name, hashed) for name, (_, entries) in ops.items() for hashed, entry in entries.items()
    )
    for _, name, hashed in by_age[:surplus]:
        del ops[name][1][hashed]


def _digest(data: Any) -> bytes:
    return blake3(data).digest(length=DIGEST_NBYTES)


def default_path() -> Path:
    """Named by everything that an outcome depends on besides its key and its op's schema."""
    code = _sources((Path(__file__).parent, Path(__file__).parents[1] / "ops"))
    versions = f"{torch.__version__}-{__version__}-py{sys.version_info[0]}{sys.version_info[1]}"
    return cache_dir() / f"memo-{versions}-{code}.msgpack"


def _sources(folders: Iterable[Path]) -> str:
    hashed = blake3()
    for folder in folders:
        for file in sorted(folder.glob("*.py")):
            hashed.update(file.name.encode())
            hashed.update(file.read_bytes())
    return hashed.hexdigest(length=8)


store = MemoStore()
