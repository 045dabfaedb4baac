"""The record: what one run of a template says of the next."""

from __future__ import annotations

import random
from math import exp

import pytest

from remora.plan import record as record_module
from remora.plan.duration import Duration
from remora.plan.record import Key, Record


def key(template: int = 1, size: int = 10, device: str = "d") -> Key:
    return Key(bytes([template]) * 16, size, device)


PREDICTED = Duration(1.0, {"d: product": 0.3})


def test_without_a_run_the_model_stands():
    assert Record().correct(key(), PREDICTED) == PREDICTED


def test_a_template_is_predicted_as_it_ran():
    record = Record()
    record.add(key(), 1.0, 2.0)
    found = record.correct(key(), Duration(3.0))
    assert found.seconds == pytest.approx(6.0)
    assert 0.1 < found.sigma_s / found.seconds < 0.2


def test_the_first_run_does_not_count_once_there_is_another():
    record = Record()
    for measured_s in (50.0, 2.0, 2.0):
        record.add(key(), 1.0, measured_s)
    assert record.correct(key(), PREDICTED).seconds == pytest.approx(2.0)


def test_the_error_bar_shrinks_with_runs_and_is_honest_about_noise():
    rng = random.Random(0)
    sigmas = []
    for noise in (0.0, 0.2):
        record = Record()
        for _ in range(20):
            record.add(key(), 1.0, 2.0 * exp(rng.gauss(0.0, noise)))
        found = record.correct(key(), PREDICTED)
        sigmas.append(found.sigma_s / found.seconds)
    assert sigmas[0] < 0.05
    assert 0.08 < sigmas[1] < 0.4


def test_a_program_that_becomes_slower_is_followed():
    record = Record()
    for measured_s in [1.0] * 20 + [3.0] * record_module.REMEMBERED:
        record.add(key(), 1.0, measured_s)
    assert record.correct(key(), PREDICTED).seconds == pytest.approx(3.0)


def test_another_size_of_a_template_is_the_next_best():
    record = Record()
    record.add(key(size=4), 1.0, 2.0)
    record.add(key(size=20), 1.0, 4.0)
    near = record.correct(key(size=6), PREDICTED)
    assert near.seconds == pytest.approx(2.0)
    assert near.sigma_s > record.correct(key(size=4), PREDICTED).sigma_s / 2 * 2.5


def test_templates_that_never_ran_learn_from_the_others_on_their_device():
    record = Record()
    for template, measured_s in enumerate((2.0, 2.1, 1.9)):
        record.add(key(template), 1.0, measured_s)
    assert record.correct(key(99), PREDICTED).seconds == pytest.approx(2.0, rel=0.02)
    assert record.correct(key(99, device="other"), PREDICTED) == PREDICTED


def test_entries_say_what_was_predicted_before_the_run_and_what_it_took():
    record = Record()
    record.add(key(), 1.0, 2.0)
    record.add(key(), 1.5, 3.0)
    (entry,) = record.entries()
    assert (entry.runs, entry.predicted_s, entry.measured_s) == (2, 1.5, 3.0)
    assert entry.corrected_s == pytest.approx(3.0)
    assert entry.factor == pytest.approx(2.0)


def test_no_time_tells_nothing():
    record = Record()
    record.add(key(), 0.0, 1.0)
    record.add(key(), 1.0, 0.0)
    assert record.entries() == []


def test_the_record_is_bounded(monkeypatch):
    monkeypatch.setattr(record_module, "MAX_TEMPLATES", 10)
    record = Record()
    for template in range(30):
        record.add(key(template), 1.0, 2.0)
    assert len(record) == 10
    assert record.correct(key(29), PREDICTED).seconds == pytest.approx(2.0)
