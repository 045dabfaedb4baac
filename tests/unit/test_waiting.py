"""Which values a stream waits for: events in, decisions out."""

from hypothesis import given
from hypothesis import strategies as st

from remora.executor.worker.waiting import MAX_ABANDONED, Waiting

A, B, C = (1, 0, 0), (1, 1, 0), (2, 0, 0)


def test_a_stream_waits_until_all_are_there():
    waiting = Waiting()
    waiting.wait([A, B], "x", there=())
    assert waiting.held
    assert waiting.arrive([A]) == {A}
    assert waiting.held
    waiting.arrive([B])
    assert not waiting.held
    waiting.wait([A, B], "x", there={A, B})
    assert not waiting.held


def test_what_does_not_come_ends_the_wait_and_has_a_story_that_names_the_sender():
    waiting = Waiting()
    waiting.wait([A], "gpu-1", there=())
    waiting.abandon([A, B], "it died", there=())
    assert not waiting.held
    assert waiting.story(A) == "this tensor was to come from executor gpu-1, and did not: it died"
    assert waiting.story(B) == "this tensor was to come from another executor, and did not: it died"
    waiting.wait([B], "gpu-2", there=())
    assert not waiting.held
    assert "from executor gpu-2, and" in waiting.story(B)
    assert waiting.story(C) is None


def test_what_came_stays_and_what_was_abandoned_never_comes():
    waiting = Waiting()
    waiting.arrive([A])
    waiting.abandon([A, B], "late", there={A})
    assert waiting.story(A) is None
    assert waiting.arrive([B, C]) == {C}


def test_the_first_reason_is_kept_and_their_number_is_bounded():
    waiting = Waiting()
    waiting.abandon([A], "first", there=())
    waiting.abandon([A], "second", there=())
    assert waiting.story(A).endswith("first")
    waiting.abandon(((3, row, 0) for row in range(MAX_ABANDONED)), "all", there=())
    assert len(waiting.abandoned) == MAX_ABANDONED
    assert waiting.story(A) is None


names = st.sampled_from([A, B, C])
events = st.one_of(
    st.tuples(st.just("wait"), st.sets(names)),
    st.tuples(st.just("arrive"), st.sets(names)),
    st.tuples(st.just("abandon"), st.sets(names)),
)


@given(st.lists(events, max_size=20))
def test_against_a_model(script):
    """A stream is held exactly by what was awaited and has neither come nor been given up since."""
    waiting, there, given_up, awaited = Waiting(), set(), set(), set()
    for event, names in script:
        if event == "wait":
            if waiting.held:  # a stream that stands still says nothing
                continue
            waiting.wait(names, "x", there)
            awaited |= names
        elif event == "arrive":
            kept = waiting.arrive(names - there)
            assert kept == names - there - given_up
            there |= kept
        else:
            waiting.abandon(names, "y", there)
            given_up |= names - there
        assert set(waiting.missing) == awaited - there - given_up
        assert not there & given_up
        assert all((waiting.story(name) is not None) == (name in given_up) for name in (A, B, C))
