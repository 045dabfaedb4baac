"""A step's binding arrives whole, bit for bit, however little of it is sent."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.wire.binding import Name, SiteMemory, decode_run, encode_run, frees_of
from remora.wire.codec import decode_to_executor, encode
from remora.wire.messages import Run

_small = st.integers(0, 3)
_float = st.floats(width=64) | st.sampled_from([0.0, -0.0, 1.0, float("nan"), float("inf")])


@st.composite
def sites(draw: st.DrawFn) -> list[tuple[list[Name], list[int | float], tuple[int, ...], tuple[int, ...]]]:
    """What one site binds, run after run: names, holes, keep, frees."""
    n_slots = draw(st.integers(0, 4))
    kinds = draw(
        st.lists(st.sampled_from([st.integers(-(1 << 63), (1 << 64) - 1) | _small, _float]), max_size=4)
    )
    runs = []
    for segment in range(draw(st.integers(1, 6))):
        number = st.integers(0, 700 + segment)
        names = [draw(st.tuples(number, _small, _small)) for _ in range(n_slots)]
        keep = draw(st.lists(_small, max_size=2).map(lambda rows: tuple(rows * 2)))
        frees = draw(st.lists(_small, max_size=1).map(lambda rows: tuple(rows * 3)))
        runs.append((names, [draw(kind) for kind in kinds], keep, frees))
    return runs


@given(sites())
def test_binding_arrives_bit_for_bit(
    runs: list[tuple[list[Name], list[int | float], tuple[int, ...], tuple[int, ...]]],
) -> None:
    near, far = SiteMemory(0), SiteMemory(0)
    for segment, (names, holes, keep, frees) in enumerate(runs, start=700):
        run = encode_run(near, segment, 0, names, holes, keep, frees)
        kinds = tuple("int" if isinstance(value, int) else "float" for value in holes)
        (arrived,) = decode_to_executor(encode((run,)))
        assert isinstance(arrived, Run)
        bound = decode_run(far, arrived, len(names), kinds)
        assert bound.names == names
        assert [_bits(value) for value in bound.holes] == [_bits(value) for value in holes]
        assert bound.keep == keep
        assert [segment - number for number, _, _ in frees_of(far, segment)] == list(frees[:1])


def _bits(value: int | float) -> int | bytes:
    return struct.pack("<d", value) if isinstance(value, float) else value


_flat = st.none() | st.lists(st.integers(-2, 4), max_size=15).map(tuple)


@given(
    st.lists(
        st.tuples(_flat, st.none() | st.lists(_small | _float, max_size=6).map(tuple), _flat, _flat),
        max_size=4,
    ),
    st.integers(0, 3),
    st.lists(st.sampled_from(["int", "float"]), max_size=3).map(tuple),
)
def test_invented_bindings_raise_only_protocol_error(
    fields: list[tuple[tuple[int, ...] | None, ...]], n_slots: int, kinds: tuple[str, ...]
) -> None:
    memory = SiteMemory(0)
    for segment, (slots, holes, keep, frees) in enumerate(fields):
        try:
            bound = decode_run(memory, Run(segment, 0, slots, holes, keep, frees), n_slots, kinds)
        except ProtocolError:
            return
        assert len(bound.names) == n_slots
        assert [type(value).__name__ for value in bound.holes] == list(kinds)
