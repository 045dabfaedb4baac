"""Two `Stream` ends over a link that is cut and resumed at will: every message once, in order, both ways."""

from __future__ import annotations

from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from remora.transport.stream import Stream
from remora.wire.codec import decode_envelope, encode

ENDS = st.sampled_from([0, 1])


class TwoEnds(RuleBasedStateMachine):
    """Ends 0 and 1. Frames in flight towards an end are in its `inbox`, in order, as TCP keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.ends = (Stream(ack_every=3), Stream(ack_every=3))
        self.sent: tuple[list[bytes], list[bytes]] = ([], [])  # by each end
        self.got: tuple[list[bytes], list[bytes]] = ([], [])  # at each end
        self.inboxes: tuple[deque[bytes], deque[bytes]] = (deque(), deque())
        self.connected = True

    @rule(end=ENDS, nbytes=st.integers(0, 40))
    def send(self, end: int, nbytes: int) -> None:
        message = encode((len(self.sent[end]), bytes(nbytes)))
        self.sent[end].append(message)
        frame = self.ends[end].send(message)
        if self.connected:  # else it is kept, for the next connection
            self.inboxes[1 - end].append(frame)

    @precondition(lambda self: self.connected)
    @rule(end=ENDS, frames=st.integers(1, 5))
    def deliver(self, end: int, frames: int) -> None:
        for _ in range(min(frames, len(self.inboxes[end]))):
            envelope = decode_envelope(self.inboxes[end].popleft())
            if self.ends[end].receive(envelope):
                self.got[end].append(bytes(envelope.messages))
            if self.ends[end].ack_due:
                self.inboxes[1 - end].append(self.ends[end].ack_frame())
                assert not self.ends[end].ack_due

    @precondition(lambda self: self.connected)
    @rule(arriving=st.tuples(st.integers(0, 5), st.integers(0, 5)))
    def cut(self, arriving: tuple[int, int]) -> None:
        """Some of what is in flight still arrives; the rest is gone."""
        for end in (0, 1):
            self.deliver(end, arriving[end])
        for inbox in self.inboxes:
            inbox.clear()
        self.connected = False

    @precondition(lambda self: not self.connected)
    @rule(lags=st.tuples(st.integers(0, 3), st.integers(0, 3)))
    def resume(self, lags: tuple[int, int]) -> None:
        """Each end says what it has; it may say less, as bytes of the old connection are counted late."""
        self.connected = True
        says = [max(self.ends[e].received - lags[e], self.ends[1 - e].acked) for e in (0, 1)]
        for end in (0, 1):
            self.inboxes[1 - end].extend(self.ends[end].resume(says[1 - end]))

    @invariant()
    def nothing_is_lost_doubled_or_swapped(self) -> None:
        for end in (0, 1):
            assert self.got[end] == self.sent[1 - end][: len(self.got[end])]

    @invariant()
    def exactly_the_unacknowledged_is_kept(self) -> None:
        for end, stream in enumerate(self.ends):
            assert stream.acked <= self.ends[1 - end].received
            assert stream.kept_frames == stream.sent - stream.acked
            assert stream.kept_nbytes == sum(map(len, self.sent[end][stream.acked :]))

    def teardown(self) -> None:
        if not self.connected:
            self.resume((0, 0))
        while any(self.inboxes):
            self.deliver(0, 1)
            self.deliver(1, 1)
        assert self.got == (self.sent[1], self.sent[0])
        assert all(stream.sent - stream.acked < stream.ack_every for stream in self.ends)


TwoEnds.TestCase.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)
TestTwoEnds = TwoEnds.TestCase
