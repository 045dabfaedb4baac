"""Ctrl-C is held off while something must happen wholly."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from remora.capture.interrupts import Uninterrupted


def press():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_comes_when_the_outermost_block_ends():
    held, done = Uninterrupted(), []

    def act():
        with held:
            with held:
                press()
                done.append("inner")
            done.append("outer")
        done.append("behind")

    with pytest.raises(KeyboardInterrupt):
        act()
    assert done == ["inner", "outer"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with held:
        pass  # nothing is left over


def test_an_error_inside_leaves_the_programs_handler_in_place():
    held = Uninterrupted()
    with pytest.raises(ValueError), held:
        raise ValueError
    with pytest.raises(KeyboardInterrupt):
        press()


def test_a_handler_of_the_programs_own_is_called_and_other_threads_change_nothing():
    held, came = Uninterrupted(), []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        with held:
            press()
            assert came == []
        assert came == [signal.SIGINT]

        def elsewhere():
            with held:
                came.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert came[1] is not held._note
    finally:
        signal.signal(signal.SIGINT, before)
