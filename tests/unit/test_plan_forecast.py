"""A forecast: the median step with its error, what fits, text and JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from remora.plan.devices import CLIENT
from remora.plan.duration import Duration
from remora.plan.forecast import Forecast, Memory, Reads, Traffic, phases
from remora.plan.timeline import Took

GIB = 1 << 30


def step(phase: str, seconds: float, client_s: float = 0.001) -> Took:
    whole = Duration(seconds, {"client": client_s / 10, "d: product": seconds / 10})
    return Took(phase, whole, client_s, Duration(seconds / 2, {}), 482, 31, True)


TREE = Forecast(
    "semantic",
    "10gbit,5ms",
    (
        Memory("h100", "published", 80 * GIB, {"weight": 15 * GIB, "kv_cache": GIB}, 17 * GIB),
        Memory("a10", "published", 24 * GIB, {"weight": GIB, "": 1}, GIB),
    ),
    phases([step("prefill", 0.5), step("decode", 0.03), step("decode", 0.01), step("decode", 0.02)]),
    (Traffic(CLIENT, 0, "weight", 15 * GIB, 290, 13.0, 2.6), Traffic(0, 1, "kv_cache", GIB, 3, 1.0, 0.2)),
    Reads(5, 4, 20, (("script.py:11", 4),)),
    notes=("said",),
)


def test_a_phase_is_its_median_step() -> None:
    prefill, decode = TREE.phases
    assert (prefill.name, prefill.steps, prefill.step_s) == ("prefill", 1, 0.5)
    assert (decode.steps, decode.step_s, decode.first_s) == (3, 0.02, 0.03)
    assert decode.sigma_s == pytest.approx(0.002, rel=0.01)
    assert decode.steps_per_s == pytest.approx(50)
    assert decode.steps_per_s_sigma == pytest.approx(5, rel=0.01)


def test_a_client_that_scatters_is_trusted_less() -> None:
    (decode,) = phases(step("decode", 0.02, client_s) for client_s in (0.01, 0.02, 0.03))
    assert decode.sigma_s > 0.0148


def test_it_fits_where_every_executor_has_room() -> None:
    assert TREE.fits
    small = replace(TREE.executors[1], cap_nbytes=GIB - 5)
    assert small.missing_nbytes == 5
    assert not replace(TREE, executors=(TREE.executors[0], small)).fits
    assert not replace(TREE, refused="the pool is too small").fits


def test_text() -> None:
    text = str(TREE)
    assert max(map(len, text.splitlines())) <= 100
    assert "Memory: it fits" in text
    assert "0 h100 (published)" in text
    assert "client to 0: weight" in text
    assert "0 to 1: kv_cache" in text
    assert "decode (TPOT)" in text
    assert "4 of 5 reads" in text
    assert "script.py:11 (4)" in text
    assert "it DOES NOT FIT" in str(replace(TREE, refused="the pool is too\x1b[31m small"))
    assert "\x1b" not in str(replace(TREE, refused="the pool is too\x1b[31m small"))


def test_json_has_what_follows_from_the_numbers() -> None:
    tree = json.loads(TREE.to_json())
    assert tree["fits"] is True
    assert tree["executors"][0]["held"] == {"weight": 15 * GIB, "kv_cache": GIB}
    assert tree["executors"][0]["missing_nbytes"] == 0
    assert tree["phases"][1]["steps_per_s"] == pytest.approx(50)
    assert tree["reads"]["where"] == [["script.py:11", 4]]


def test_bytes_of_a_step_do_not_depend_on_which_one_was_slow():
    slow_or_fast = [
        Took("decode", Duration(seconds, {}), 0.001, Duration(0.01, {}), 482, nbytes, True)
        for seconds, nbytes in ((0.02, 3673), (0.01, 28), (0.03, 28))
    ]
    (phase,) = phases(slow_or_fast)
    assert (phase.step_s, phase.sent_nbytes) == (0.02, 28)
