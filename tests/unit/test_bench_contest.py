"""What a trial must be to count: of its arm, no faster than link and device, and with the bytes that it says."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remora.bench.arms import LOCAL, Arm, Trial, differences
from remora.bench.contest import BETWEEN, BOTH_WAYS, DOWN, UP, Carries, Entry, carried, check
from remora.bench.harness import Impossible, NotAsSaid

ARM = Arm("explicit", 2, "blind", run_ahead=False)
URLS = ["http://a:1", "http://b:1", "http://c:1"]
SESSION = {
    "policy": "explicit",
    "addresses": URLS[:2],
    "transports": ["websocket", "websocket"],
    "run_ahead": [False, False],
}
WAYS = {"client>0": 400, "0>client": 3000, "client>1": 60, "1>client": 70, "0>1": 400_000, "1>0": 7}
TRIAL = Trial(0.01, 0.002, ("x",), {"ops": 9, "whole_calls": 0, "reconnects": 0}, nbytes=WAYS)
ENTRY = Entry(
    ARM, lambda _: None, 1, None, (Carries(BETWEEN, 393_216, 8000), Carries(BOTH_WAYS, 3072, 700)), 0.001
)
LINK = 1e8


def test_a_session_that_is_what_its_arm_says_has_no_differences() -> None:
    assert differences(ARM, URLS, SESSION) == []
    assert differences(LOCAL, URLS, None) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("policy", "semantic"),
        ("policy", None),
        ("addresses", URLS[:1]),
        ("addresses", ["http://127.0.0.1:9", URLS[1]]),
        ("transports", ["websocket", "post"]),
        ("run_ahead", [True, True]),
    ],
)
def test_another_session_is_refused_with_what_differs(field: str, value: object) -> None:
    (said,) = differences(ARM, URLS, {**SESSION, field: value})
    assert said == f"its {field} is {value}, not {SESSION[field]}"


def test_local_that_has_a_session_and_remote_that_has_none_are_refused() -> None:
    assert differences(LOCAL, URLS, SESSION) == ["it has a session"]
    assert differences(ARM, URLS, None) == ["it is local"]


def test_bytes_are_added_up_by_direction() -> None:
    assert carried(WAYS) == {UP: 460, DOWN: 3070, BETWEEN: 400_007, BOTH_WAYS: 3530}


def test_a_trial_as_it_should_be_passes() -> None:
    check("seed", ENTRY, TRIAL, LINK)


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (replace(TRIAL, spent={**TRIAL.spent, "ops": 0}), "recorded no op"),
        (replace(TRIAL, spent={**TRIAL.spent, "reconnects": 1}), "cut in between"),
        (
            replace(TRIAL, nbytes={**WAYS, "0>1": 3000}),
            "3007 bytes between executors, where 393216 to 401216",
        ),
        (replace(TRIAL, nbytes={**WAYS, "0>client": 201_000}), "both ways, where 3072 to 3772"),
    ],
)
def test_a_trial_that_is_not_its_arms_is_refused(spoilt: Trial, says: str) -> None:
    with pytest.raises(NotAsSaid, match=says):
        check("seed", ENTRY, spoilt, LINK)


def test_nothing_is_faster_than_the_link_or_the_device() -> None:
    with pytest.raises(Impossible, match=r"0>1: 400000 bytes .* but the link carries 0.01 GB/s"):
        check("seed", ENTRY, TRIAL, LINK / 10)
    with pytest.raises(Impossible, match=r"took .* cannot in less than 100"):
        check("seed", replace(ENTRY, floor_s=0.1), TRIAL, LINK)


def test_local_that_sends_is_refused() -> None:
    with pytest.raises(NotAsSaid, match="it is local"):
        check("seed", Entry(LOCAL, lambda _: None, 1, None), TRIAL, LINK)
