"""Calibration against a real executor: the probes run there, and what they say predicts a real program."""

from __future__ import annotations

import statistics

import torch

from remora.bench import calibration
from remora.bench.harness import Report
from remora.ops.cost import Kind
from remora.plan.duration import total
from remora.plan.kept import VERSION, Calibration, from_json, to_json
from remora.plan.record import Key, Record


def test_the_probes_run_on_an_executor_and_predict_a_training_step(executor):
    torch.manual_seed(0)
    report = Report("calibration")
    device = calibration.calibrated(report, executor.url)
    assert {Kind.PRODUCT, Kind.CONVOLUTION, Kind.ATTENTION, Kind.REDUCE, Kind.MATH, Kind.GATHER} <= set(
        device.rates
    )
    assert 1e-7 < device.call_s < 1e-3
    kept = Calibration(VERSION, "here", device)
    assert from_json(to_json(kept), "here") == kept

    import remora

    remora.connect(executor.url)
    try:
        ((_, step),) = calibration.perceptron()
        step()
        watch, record = calibration.Watch(), Record()
        alone, learned = [], []
        for _ in range(8):
            seen = watch.run(step)
            assert len(seen) >= 2
            keys = [Key(one.template, 0, device.name) for one, _ in seen]
            model = [calibration.predict(one.graph, device) for one, _ in seen]
            better = [record.correct(key, one) for key, one in zip(keys, model, strict=True)]
            for key, one, (_, took_s) in zip(keys, model, seen, strict=True):
                record.add(key, one.seconds, took_s)
            took_s = sum(seconds for _, seconds in seen)
            alone.append(total(model).seconds / took_s)
            learned.append(total(better).seconds / took_s)
    finally:
        remora.disconnect()
    # bounds that a machine which does other things meanwhile keeps; the bars are in `remora bench calibration`
    assert 0.1 < statistics.median(alone) < 10
    assert 0.5 < statistics.median(learned[3:]) < 2
    assert all(entry.runs == 8 for entry in record.entries())
