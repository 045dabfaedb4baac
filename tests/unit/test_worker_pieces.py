"""Which rows become graphs: the order keeps every meaning, and pieces are as few as they can be."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from remora.executor.worker.pieces import MIN_LAUNCHES, Row, arrange, registers_written

SLOTS = 3


def row(number, reads, makes, same=True, fence=False, views=None, launches=True):
    return Row(
        number, (number,), frozenset(reads), (makes,), same and not fence, fence, views or {}, launches
    )


def numbers(stages):
    return [("graph" if stage.piece else "eager", [row.number for row in stage.rows]) for stage in stages]


def chain(first, source, n):
    """n rows, each reading the one before."""
    return [row(first + at, [source if not at else 9 + first + at], 10 + first + at) for at in range(n)]


def test_rows_around_one_that_changes_are_two_pieces():
    rows = [
        *chain(0, 0, 4),
        row(4, [13], 14, same=False),
        row(5, [14], 15),
        row(6, [15], 16),
        row(7, [16], 17),
    ]
    before, between, after = arrange(rows, {17}, ())
    assert numbers([before, between, after]) == [
        ("graph", [0, 1, 2, 3]),
        ("eager", [4]),
        ("graph", [5, 6, 7]),
    ]
    assert before.takes == (0,)
    assert before.gives == (13,)
    assert after.takes == (14,)
    assert after.gives == (17,)
    assert 10 in before.drops
    assert 13 in between.drops


def test_rows_that_need_nothing_of_what_changes_join_an_earlier_piece():
    rows = [*chain(0, 0, 3), row(3, [12], 13, same=False), row(4, [1], 14), row(5, [13, 14], 15, same=False)]
    assert numbers(arrange(rows, {15}, ())) == [("graph", [0, 1, 2, 4]), ("eager", [3, 5])]


def test_a_row_that_writes_keeps_its_place():
    rows = [*chain(0, 0, 3), row(3, [12], 13, fence=True), *chain(4, 1, 3)]
    assert numbers(arrange(rows, {16}, ())) == [("graph", [0, 1, 2]), ("eager", [3]), ("graph", [4, 5, 6])]


def test_a_view_of_what_is_outside_is_made_where_it_is_read():
    view = {13: 1}
    rows = [
        *chain(0, 0, 3),
        row(3, [1], 13, views=view, launches=False),
        row(4, [12], 14, same=False),
        row(5, [14, 13], 15),
        row(6, [15], 16),
        row(7, [16], 17),
    ]
    assert numbers(arrange(rows, {17}, ())) == [("graph", [0, 1, 2]), ("eager", [4]), ("graph", [3, 5, 6, 7])]
    shown = [*rows[:4], row(4, [12, 13], 14, same=False), *rows[5:]]
    assert numbers(arrange(shown, {17}, ())) == [
        ("eager", [3]),
        ("graph", [0, 1, 2]),
        ("eager", [4]),
        ("graph", [5, 6, 7]),
    ]
    written = [*rows[:4], row(4, [12], 14, fence=True), *rows[5:]]
    assert numbers(arrange(written, {17}, ()))[0] == ("eager", [3])


def test_a_piece_that_launches_little_runs_eagerly_and_views_do_not_count():
    views = [row(at, [0], 10 + at, launches=False) for at in range(9)]
    rows = [*views, *chain(9, 18, MIN_LAUNCHES - 1)]
    assert [stage.piece for stage in arrange(rows, {rows[-1].makes[0]}, ())] == [False]


def test_a_view_of_what_is_outside_that_is_kept_is_one_of_the_real_thing():
    rows = [row(0, [0], 10, views={10: 0}, launches=False), *chain(1, 10, 3)]
    stages = arrange(rows, {10, 13}, ())
    assert numbers(stages) == [("eager", [0]), ("graph", [1, 2, 3])]
    inside = arrange(rows, {13}, ())
    assert numbers(inside) == [("graph", [0, 1, 2, 3])]


def test_what_cannot_be_copied_is_read_eagerly_unless_a_graph_made_it():
    rows = [*chain(0, 0, 4), row(4, [1], 14), row(5, [13, 14], 15)]
    assert numbers(arrange(rows, {15}, {1, 11})) == [("eager", [4]), ("graph", [0, 1, 2, 3, 5])]


def test_slots_that_are_written_are_found_through_views():
    rows = [row(0, [1], 10, views={10: 1}), row(1, [10], 11, views={11: 10}), row(2, [11, 0], 12, fence=True)]
    assert registers_written(rows, {2: [11]}, SLOTS) == {1}


@st.composite
def programs(draw):
    rows = []
    for number in range(draw(st.integers(1, 25))):
        known = [*range(SLOTS), *(10 + r for r in range(number))]
        reads = draw(st.lists(st.sampled_from(known), min_size=1, max_size=3))
        view = draw(st.booleans()) and draw(st.booleans())
        rows.append(
            row(
                number,
                reads,
                10 + number,
                draw(st.booleans()) or draw(st.booleans()),
                draw(st.integers(0, 7)) == 0,
                {10 + number: reads[0]} if view else {},
                not view,
            )
        )
    kept = draw(st.sets(st.sampled_from([r.makes[0] for r in rows])))
    return rows, kept, draw(st.sets(st.sampled_from([*range(SLOTS), *(10 + r.number for r in rows)])))


@settings(max_examples=400, deadline=None)
@given(programs())
def test_any_program_keeps_its_meaning(case):
    rows, kept, uncopyable = case
    stages = arrange(rows, kept, uncopyable)
    order = [row for stage in stages for row in stage.rows]
    assert sorted(r.number for r in order) == list(range(len(rows)))
    place = {r.number: at for at, r in enumerate(order)}
    made: set[int] = set(range(SLOTS))
    for r in order:
        assert r.reads <= made  # nothing is read before it is made
        made.update(r.makes)
        for other in rows:
            if r.fence and other.number != r.number:  # a fence keeps its place among all
                assert (place[other.number] < place[r.number]) == (other.number < r.number)
    gone: set[int] = set()
    graphed = {register for stage in stages if stage.piece for r in stage.rows for register in r.makes}
    for stage in stages:
        read = {register for r in stage.rows for register in r.reads}
        assert not read & gone  # nothing is dropped before it is read
        assert not set(stage.drops) & kept
        gone |= set(stage.drops)
        if stage.piece:
            assert all(r.same for r in stage.rows)
            assert sum(r.launches for r in stage.rows) >= MIN_LAUNCHES
            assert not {t for t in stage.takes if t in uncopyable and t not in graphed}
            for given_out in stage.gives:
                root, sources = given_out, {m: s for r in stage.rows for m, s in r.views.items()}
                while root in sources:
                    root = sources[root]
                assert root not in stage.takes
