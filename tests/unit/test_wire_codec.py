"""What a steady step costs on the wire."""

from __future__ import annotations

from remora.wire.binding import SiteMemory, encode_run
from remora.wire.codec import decode_envelope, encode
from remora.wire.frames import StepFrame
from remora.wire.messages import Run


def test_steady_run_frame_costs_20_bytes() -> None:
    """A decode loop's frame after an hour of steps: the segment and the site, and 6 more to ask for a value."""
    assert len(encode(StepFrame(60_000, 60_000, (Run(60_000, site=40),)))) == 20
    asking = Run(60_000, site=40, wants=(700, 0), ticket=60_000)
    assert len(encode(StepFrame(60_000, 60_000, (asking,)))) == 26


def test_repeated_step_sends_no_binding() -> None:
    memory = SiteMemory(0)
    weight, cache = (3, 0, 0), (599, 4, 0)
    uploaded = frozenset({0})
    encode_run(memory, 600, 1, [weight, cache], [1, 0.5], (4, 0), (1, 4, 0), uploaded=uploaded)
    run = encode_run(memory, 601, 1, [weight, (600, 4, 0)], [1, 0.5], (4, 0), (1, 4, 0))
    assert run == Run(601, 1)


def test_empty_frame_is_an_acknowledgement() -> None:
    envelope = decode_envelope(encode(StepFrame(0, 9)))
    assert (envelope.seq, envelope.ack, bytes(envelope.messages)) == (0, 9, b"\x90")
