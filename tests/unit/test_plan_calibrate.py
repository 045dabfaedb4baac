"""Calibration: from seconds to rates, and back to the same seconds; what is sent; what is read from disk."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remora.ir.graph import Template
from remora.ops.cost import Kind, graph_work
from remora.plan import calibrate, probe_suite, probes
from remora.plan.calibrate import Measured, fit, fit_link, measured, script
from remora.plan.kept import MAX_NBYTES, VERSION, Calibration, from_json, to_json
from remora.plan.presets import preset
from remora.plan.probes import Sets
from remora.wire.messages import Define, Free, Mark, Marked, Run

CPU, GPU = probe_suite.suite(probe_suite.CPU), probe_suite.suite(probe_suite.GPU)


def true_seconds(bench: probes.Bench, name: str) -> Measured:
    """What a device that behaves as the model says would take."""
    device = preset(name)
    return Measured({probe.name: calibrate.predict(device, probe) for probe in bench.probes}, device.run_s)


@pytest.mark.parametrize(("bench", "name"), [(CPU, "cpu-2core"), (GPU, "h200")])
def test_fitting_a_device_that_obeys_the_model_finds_it(bench, name):
    true = preset(name)
    found = fit(
        name, bench, true_seconds(bench, name), true.memory_nbytes, true.cache_nbytes, true.asynchronous
    )
    launch = 0.1 if true.asynchronous else 0.03  # where the last kernel is not hidden by the next launch
    assert median(found.ratios.values()) == pytest.approx(1.0, abs=launch)
    assert all(0.6 < ratio < 1.7 for ratio in found.ratios.values()), found.ratios
    assert found.device.call_s == pytest.approx(true.call_s, rel=0.3)
    works = {probe.name: graph_work(probe.graph)[0] for probe in bench.probes}
    for name, work in works.items():
        hidden = (
            true.asynchronous and true.kernel_s(work) < true.call_s
        )  # behind its launch: nothing shows it
        if work.kind is Kind.PRODUCT and "rows" in name and not hidden:
            assert found.device.kernel_s(work) == pytest.approx(true.kernel_s(work), rel=0.5)


def test_what_was_held_out_sets_the_error_bars():
    seconds = dict(true_seconds(CPU, "cpu-2core").seconds)
    good = fit("cpu", CPU, Measured(seconds, 1e-5), 1 << 33)
    (layer,) = [
        probe.name for probe in CPU.probes if probe.sets is Sets.NOTHING and probe.kind is Kind.PRODUCT
    ]
    seconds[layer] *= 2
    bad = fit("cpu", CPU, Measured(seconds, 1e-5), 1 << 33)
    assert bad.held_out[layer] == pytest.approx(good.held_out[layer] / 2, rel=1e-6)
    assert bad.device.sigma_of(Kind.PRODUCT) > max(0.4, good.device.sigma_of(Kind.PRODUCT))


def test_a_probe_without_time_is_named():
    seconds = dict(true_seconds(CPU, "cpu-2core").seconds)
    seconds["mixed"] = 0.0
    with pytest.raises(ValueError, match="probe 'mixed' took 0"):
        fit("cpu", CPU, Measured(seconds, 1e-5), 1 << 33)
    del seconds["mixed"]
    with pytest.raises(ValueError, match="probe 'mixed' took None"):
        fit("cpu", CPU, Measured(seconds, 1e-5), 1 << 33)


@pytest.mark.parametrize("bench", [CPU, GPU])
def test_probes_are_templates_that_pass_their_checks_and_fit_a_device(bench):
    for template in (bench.prepare, *(probe.template for probe in bench.probes)):
        assert Template.decode(template.body) == template
    for probe in bench.probes:
        assert len(probe.inputs) == probe.template.n_slots == len(probe.graph.slots)
        assert len(probe.graph.holes) == len(probe.template.holes)
    assert probes.nbytes(bench) < 4 << 30
    assert len({probe.name for probe in bench.probes}) == len(bench.probes)


def slower(found: Measured, *factors: float) -> Measured:
    """As it was measured while something else ran, at some probes."""
    seconds = {name: s * factors[at % len(factors)] for at, (name, s) in enumerate(found.seconds.items())}
    return Measured(seconds, found.run_s * factors[0])


def test_devices_of_one_name_and_about_one_speed_are_equal():
    true = true_seconds(CPU, "cpu-2core")
    found = [("cpu", slower(true, 1.78, 1.0, 1.1)), ("cpu", slower(true, 1.0, 1.3, 1.0)), ("other", true)]
    assert calibrate.as_alike(found) == [true, true, true]


def test_devices_that_differ_stay_apart():
    fast = true_seconds(CPU, "cpu-2core")
    slow, other = slower(fast, 2.5), slower(fast, 1.1)
    assert calibrate.as_alike([("cpu", fast), ("cpu", slow)]) == [fast, slow]
    assert calibrate.as_alike([("cpu", fast), ("another cpu", other)]) == [fast, other]


def test_the_script_numbers_what_it_sends_from_where_it_is_told():
    told = script(CPU, segment=100, template=7, site=8, ticket=50)
    defines = [message for message in told.messages if isinstance(message, Define)]
    runs = [message for message in told.messages if isinstance(message, Run)]
    marks = [message.ticket for message in told.messages if isinstance(message, Mark)]
    assert [message.template for message in defines] == list(range(7, 7 + told.templates))
    assert [message.segment for message in runs] == list(range(100, 100 + told.segments))
    assert marks == list(range(50, 50 + told.tickets))
    assert told.messages[-1] == Free(tuple(n for row in range(len(CPU.made)) for n in (100, row, 0)))
    assert len(told.marks) == (CPU.passes - 1) * len(CPU.probes)


def test_the_best_pass_counts_by_the_clock_that_means_the_device():
    told = script(CPU)
    tickets = range(1, 1 + told.tickets)
    marked = {ticket: Marked(ticket, 0.010 * ticket, 0.004 * ticket) for ticket in tickets}
    host = measured(told, marked, asynchronous=False)
    assert host.seconds["mixed"] == pytest.approx(0.004)
    assert host.run_s == pytest.approx(0.006)
    assert measured(told, marked, asynchronous=True).seconds["mixed"] == pytest.approx(0.010)
    with pytest.raises(KeyError):
        measured(told, {}, asynchronous=False)


@given(st.floats(1e-6, 0.2), st.floats(1e6, 1e11))
def test_a_link_is_found_from_its_messages(fixed_s, bytes_per_s):
    samples = [(nbytes, fixed_s + nbytes / bytes_per_s) for nbytes in (0, 1000, 1000, 4 << 20)]
    link = fit_link(samples)
    assert link.latency_s == pytest.approx(fixed_s, rel=0.01)
    assert link.seconds(4 << 20) == pytest.approx(samples[-1][1], rel=0.01)
    assert link.sigma == pytest.approx(0.1)
    assert fit_link(samples, round_trip=True).latency_s == pytest.approx(fixed_s / 2, rel=0.01)


def test_noise_on_a_link_is_in_its_error_bar():
    assert fit_link([(0, 0.01), (0, 0.03), (1 << 20, 0.1), (1 << 20, 0.4)]).sigma > 0.4
    assert fit_link([(0, 0.01), (1 << 20, 0.009)]).bytes_per_s > 1e8  # the larger one was the faster
    with pytest.raises(ValueError, match="two sizes"):
        fit_link([(1000, 0.1), (1000, 0.2)])


def kept() -> Calibration:
    device = fit("cpu", CPU, true_seconds(CPU, "cpu-2core"), 1 << 33).device
    return Calibration(VERSION, "cpu, torch 2.13", device, {"": fit_link([(0, 0.1), (1000, 0.2)])})


def test_a_calibration_comes_back_from_disk_as_it_was():
    calibration = kept()
    assert from_json(to_json(calibration), "cpu, torch 2.13") == calibration


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: b"", "not a calibration"),
        (lambda data: data[: len(data) // 2], "not a calibration"),
        (lambda data: b"\xff" + data, "not a calibration"),
        (lambda data: b"[" * 100_000, "not a calibration"),
        (lambda data: data.replace(b'"call_s":', b'"call_s":-', 1), "not a calibration"),
        (lambda data: data.replace(b'"product":', b'"prodigy":', 1), "not a calibration"),
        (lambda data: data.replace(b'"version":1', b'"version":2', 1), "version 2; this is version 1"),
        (lambda data: data.replace(b"torch 2.13", b"torch 2.11", 1), "measured on 'cpu, torch 2.11'"),
        (lambda data: data + b" " * MAX_NBYTES, "the limit is"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(change, message):
    with pytest.raises(ValueError, match=message):
        from_json(change(to_json(kept())), "cpu, torch 2.13")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_calibration_or_a_value_error(data):
    with pytest.raises(ValueError):
        from_json(data, "")
