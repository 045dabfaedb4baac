"""Predictions of messages, and the depth that is worth it."""

from __future__ import annotations

import pytest

from remora.runahead import programs
from remora.runahead.ahead import RunningAhead
from remora.runahead.depth import Depth
from remora.runahead.form import are_one, step_between, stepped
from remora.runahead.predictor import WORTH, Agreement, Predictor
from remora.wire.messages import Barrier, Put, Run

SAME, ALIKE, OTHER = Agreement.SAME, Agreement.ALIKE, Agreement.OTHER


class Stream:
    """Messages as a client numbers them."""

    def __init__(self) -> None:
        self.segment = self.ticket = 0

    def run(self, site=0, holes=None, frees=None, asks=False):
        self.segment += 1
        self.ticket += asks
        wants = (0, 0) if asks else None
        return Run(self.segment, site, None, holes, None, frees, wants, self.ticket if asks else None)

    def program(self, **kw):
        return [self.run(0), self.run(1, asks=True, **kw)]


def taken(predictor, messages):
    return [predictor.take(message) for message in messages]


def settled(predictor, stream, **kw):
    """After two programs that are known from their first message on."""
    for _ in range(3):
        taken(predictor, stream.program(**kw))


def test_what_came_twice_is_expected_a_third_time():
    predictor, stream = Predictor(), Stream()
    assert taken(predictor, stream.program()) == [OTHER, OTHER]
    assert taken(predictor, stream.program()) == [OTHER, OTHER]
    assert taken(predictor, stream.program()) == [SAME, SAME]
    assert predictor.epoch == 0


def test_names_that_ended_are_not_predicted():
    predictor, stream = Predictor(), Stream()
    settled(predictor, stream)
    assert taken(predictor, stream.program(frees=(1, 0, 0))) == [SAME, ALIKE]
    assert taken(predictor, stream.program()) == [SAME, SAME]


def test_a_number_that_grows_by_a_fixed_step_is_predicted():
    predictor, stream = Predictor(), Stream()
    for at in range(4):
        taken(predictor, stream.program(holes=(0, 10 + 3 * at)))
    assert taken(predictor, stream.program(holes=(0, 22))) == [SAME, SAME]
    assert taken(predictor, stream.program(holes=(0, 26))) == [SAME, OTHER]
    assert predictor.epoch == 1


def test_two_numbers_make_no_step():
    predictor, stream = Predictor(), Stream()
    taken(predictor, stream.program(holes=(0, 7)))
    for value in (1, 2):
        taken(predictor, stream.program(holes=(0, value)))
    assert predictor.expected is None


def test_a_period_of_two_programs():
    predictor, stream = Predictor(), Stream()
    for _ in range(3):
        taken(predictor, [stream.run(0), stream.run(1, asks=True), stream.run(2, asks=True)])
    assert taken(predictor, [stream.run(0), stream.run(1, asks=True), stream.run(2, asks=True)]) == [SAME] * 3


def test_numbers_are_compared_by_their_bits():
    one, other = Run(1, 0, holes=(0, 0.0)), Run(1, 0, holes=(0, -0.0))
    assert one == other
    assert not are_one(one, other)
    nan = float("nan")
    assert are_one(Run(1, 0, holes=(0, nan)), Run(1, 0, holes=(0, float("nan"))))
    assert step_between((nan, 1, b"x"), (float("nan"), 3, b"x")) == (0, 2, 0)
    assert str(stepped((nan, 3, -0.0), (0, 2, 0))) == "(nan, 5, -0.0)"
    for a, b in ((0.0, -0.0), (1, 1.0), (b"x", b"y"), (1.0, nan)):
        assert step_between((a,), (b,)) is None
    assert stepped((1 << 62,), (1,)) is None  # no message holds what might come of it


def test_bytes_that_change_are_never_predicted():
    predictor, stream = Predictor(), Stream()
    for at in range(9):
        stream.segment += 1
        assert predictor.take(Put(stream.segment, "uint8", (1,), bytes([at]))) is OTHER
        assert taken(predictor, stream.program()) == [OTHER, OTHER]


def test_a_message_that_is_never_predicted_ends_what_was():
    predictor, stream = Predictor(), Stream()
    settled(predictor, stream)
    assert predictor.expected is not None
    assert predictor.take(Barrier(99)) is OTHER
    assert (predictor.epoch, predictor.expected) == (1, None)


def test_what_keeps_breaking_has_to_repeat_for_longer_each_time():
    predictor, stream = Predictor(), Stream()
    needed = []
    for _ in range(3):
        count = 0
        while predictor.expected is None:
            taken(predictor, stream.program())
            count += 1
        needed.append(count)
        taken(predictor, [stream.run(5, asks=True)])
    assert needed[0] < needed[1] < needed[2]


def test_a_prediction_that_lasted_is_forgiven():
    predictor, stream = Predictor(), Stream()
    settled(predictor, stream)
    for odd in range(5, 8):
        for _ in range(WORTH):
            assert taken(predictor, stream.program()) == [SAME, SAME]
        taken(predictor, [stream.run(odd, asks=True)])
        taken(predictor, stream.program())
        assert predictor.expected is not None


def running(depth=8):
    ahead, stream = RunningAhead(depth), Stream()
    for _ in range(3):
        for message in stream.program():
            ahead.said(message)
        ahead.answered(1)
    return ahead, stream


def go(ahead, answer=1):
    """Runs one program ahead; its messages."""
    messages = []
    while True:
        message = ahead.coming()
        if message is None:
            return messages
        ahead.ran(None)
        messages.append(message)
        if message.ticket is not None:
            ahead.answered(answer)
            return messages


def test_it_runs_what_the_client_will_say_and_no_further_than_its_depth():
    ahead, stream = running()
    assert go(ahead) + go(ahead) == stream.program() + stream.program()
    assert ahead.coming() is None
    stream.segment -= 4
    stream.ticket -= 2
    for message in stream.program():
        ran, undone = ahead.said(message)
        assert (ran.message, undone) == (message, [])
    assert ahead.coming() is not None


def test_another_answer_than_always_stops_it_until_the_client_goes_beyond():
    ahead, stream = running()
    assert len(go(ahead, answer=2)) == 2
    assert ahead.coming() is None
    for message in stream.program():
        ahead.said(message)
    assert ahead.coming() is None
    ahead.said(stream.run(0))
    assert ahead.coming() is not None


def test_answers_that_always_differ_stop_nothing():
    ahead, stream = RunningAhead(8), Stream()
    for at in range(3):
        for message in stream.program():
            ahead.said(message)
        ahead.answered(at)
    assert len(go(ahead, answer=7)) == len(go(ahead, answer=8)) == 2


def test_a_message_that_differs_undoes_all_that_is_unconfirmed():
    ahead, stream = running()
    first = go(ahead)
    second = go(ahead)
    _, undone = ahead.said(stream.run(9))
    assert [was.message for was in undone] == [*reversed(second), *reversed(first)]
    assert (ahead.epoch, ahead.coming()) == (1, None)


def test_a_confirmation_of_nothing_is_refused():
    with pytest.raises(LookupError):
        RunningAhead(8).confirmed()


def test_the_depth_grows_where_the_client_waits_for_an_executor_that_stands_still():
    depth = Depth(16)
    depth.confirmed(1, lead=0, stalled=False)
    assert depth.programs == 2
    for expected in (4, 8, 16, 16):
        under_way = depth.programs
        depth.confirmed(1, lead=0, stalled=True)
        assert depth.programs == expected
        if expected != under_way:  # what the change does shows when this is confirmed
            depth.confirmed(under_way, lead=0, stalled=True)
            assert depth.programs == expected
    assert Depth(1).programs == 1


def test_the_depth_shrinks_by_half_of_what_was_to_spare_all_the_while():
    depth = Depth(64)
    depth.programs = 32
    for lead in (20, 12, 30):
        depth.confirmed(8, lead, stalled=True)
    assert depth.programs == 32
    depth.confirmed(8, 25, stalled=True)
    assert depth.programs == 32 - (12 - 8) // 2
    depth.confirmed(32, 60, stalled=True)  # of before
    depth.confirmed(30, 7, stalled=True)
    assert depth.programs == 30
    depth.broken()
    depth.confirmed(30, 2, stalled=False)
    assert depth.programs == 30


def test_what_was_coming_and_was_said_instead_is_not_coming_again():
    ahead, stream = running()
    first, second = stream.program()
    assert ahead.coming() == first
    assert ahead.said(first) == (None, [])
    assert ahead.coming() == second


def long_settled():
    predictor, stream = Predictor(), Stream()
    settled(predictor, stream)
    for _ in range(WORTH):
        assert taken(predictor, stream.program()) == [SAME, SAME]
    return predictor, stream


def test_a_loop_goes_on_behind_what_broke_it_off():
    predictor, stream = long_settled()
    assert taken(predictor, [stream.run(7, asks=True)]) == [OTHER]
    assert taken(predictor, stream.program()) == [OTHER, OTHER]  # the first time it has to be seen
    for odd in (7, 8, 9):  # then it may be any
        for _ in range(WORTH):
            assert taken(predictor, stream.program()) == [SAME, SAME]
        assert taken(predictor, [stream.run(6), stream.run(odd, asks=True)]) == [OTHER, OTHER]
        assert taken(predictor, stream.program()) == [SAME, SAME]
    assert predictor.epoch == 4


def test_what_came_before_comes_again_from_its_first_program_on():
    """A loop with a beginning of its own, and another one with the same beginning but for its bytes."""
    predictor, stream = Predictor(), Stream()

    def once(data):
        stream.segment += 1
        beginning = [Put(stream.segment, "uint8", (1,), data), stream.run(1, asks=True)]
        first = [stream.run(2, asks=True)]
        rest = [message for _ in range(6) for message in stream.program()]
        stream.ticket += 1
        return taken(predictor, [*beginning, *first, *rest, Barrier(stream.ticket)])

    for data in (b"a", b"b", b"c"):
        once(data)
    assert once(b"d") == [OTHER, OTHER, SAME, *[SAME] * 12, OTHER]
    assert predictor.expected is None  # whoever waits for all that was done may do anything next


def test_a_period_in_which_a_program_repeats():
    predictor, stream = Predictor(), Stream()
    for _ in range(12):
        said = [*stream.program(), *stream.program(), *stream.program(), stream.run(7, asks=True)]
        agreed = taken(predictor, said)
    assert agreed == [SAME] * 7


def test_names_that_are_told_move_along():
    predictor, stream = Predictor(), Stream()
    for at in range(3):
        for number in (at, at + 100):
            message = stream.run(1, asks=True)
            told = (0, 0, message.segment - 3, 1, 0) if number >= 100 else None
            message = Run(message.segment, 1, told, None, None, None, (0, 0), message.ticket)
            agreed = predictor.take(message)
    assert agreed is SAME


def test_a_jump_of_a_number_that_counts_does_not_end_the_counting():
    predictor, stream = Predictor(), Stream()
    for at in range(12):
        taken(predictor, stream.program(holes=(0, 10 + 3 * at)))
    assert taken(predictor, stream.program(holes=(0, 10))) == [SAME, OTHER]
    assert taken(predictor, stream.program(holes=(0, 13))) == [SAME, SAME]


def test_a_loop_that_breaks_off_soon_is_not_looked_for():
    predictor, stream = Predictor(), Stream()
    settled(predictor, stream)
    taken(predictor, [stream.run(7, asks=True)])
    assert taken(predictor, stream.program()) == [OTHER, OTHER]


def test_messages_that_are_malformed_are_taken_all_the_same():
    predictor = Predictor()
    for at in range(1, 9):
        predictor.take(Run(at, 0, (1, 0), (0,), None, None, (0, 0), at))
        predictor.take(Run(at, 0, None, (0, 1, 2) if at % 2 else (0,), None, None, (0,), None))


def test_so_much_is_remembered_and_no_more(monkeypatch):
    monkeypatch.setattr(programs, "MAX_NBYTES", 20_000)
    monkeypatch.setattr(programs, "MAX_PROGRAM_NBYTES", 5_000)
    predictor, stream = Predictor(), Stream()
    for at in range(300):
        stream.segment += 1
        said = [Put(stream.segment, "uint8", (at,), bytes(at % 3000)), stream.run(at, asks=True)]
        taken(predictor, said)
        assert predictor._programs._nbytes <= 20_000
    stream.segment += 1
    taken(predictor, [Put(stream.segment, "uint8", (6000,), bytes(6000)), stream.run(1, asks=True)])
    assert predictor.kind == programs.UNKNOWN
    settled(predictor, stream)
    assert predictor.expected is not None


def test_what_is_answered_late_is_undone_too():
    ahead, stream = RunningAhead(8), Stream()
    for _ in range(3):
        for message in stream.program():
            ahead.said(message)
    while ahead.coming() is not None:
        message = ahead.coming()
        ahead.ran(None)
        if message.wants is not None:
            ahead.answered(1, late=True)
    ahead.feedback(0)
    assert ahead.depth.programs == 2  # more would not help a client that waits in any case
    _, undone = ahead.said(stream.run(9))
    assert len(undone) == 4
