"""Published devices and links, and how the command line names them."""

from __future__ import annotations

import pytest

from remora.errors import UsageError
from remora.ops.cost import Kind, Work
from remora.plan.presets import DEVICES, parse_link, preset


@pytest.mark.parametrize("name", DEVICES)
def test_no_preset_is_faster_than_its_data_sheet(name):
    device, published = preset(name), DEVICES[name]
    for dtype, tera in published.tera.items():
        product = Work(int(1e15), int(1e9), int(1e9), Kind.PRODUCT, 1, dtype)
        assert device.kernel_s(product) > 1e15 / (tera * 1e12)
    copy = Work(0, int(1e11), int(1e11), Kind.MOVE)
    assert device.kernel_s(copy, cold_nbytes=copy.nbytes) > 2e11 / published.bytes_per_s
    assert published.source


def test_a_decode_step_of_8b_weights_on_an_h200_is_near_the_bandwidth():
    """16.1 GB of weights read once: 3.35 ms at the published rate; a local graph of eager kernels took 8.65 ms and
    inductor 6.15."""
    weights = Work(2 * 8 * 10**9, 16_100_000_000, 0, Kind.PRODUCT, 1, "bfloat16")
    seconds = preset("h200").kernel_s(weights, weights.nbytes)
    assert 0.00335 < seconds < 0.00865


@pytest.mark.parametrize(("calls", "views", "measured_s"), [(258, 226, 7.5e-3), (1322, 489, 35.0e-3)])
def test_the_host_of_a_gpu_is_as_slow_as_one_was_measured(calls, views, measured_s):
    """Decode steps of GPT-2 124M and of an 8B Llama on an H200's host."""
    device = preset("h200")
    assert calls * device.call_s + views * device.view_s == pytest.approx(measured_s, rel=0.1)


@pytest.mark.parametrize(
    ("text", "bytes_per_s", "latency_s"),
    [
        ("10gbit,5ms", 0.94 * 1.25e9, 5e-3),
        ("1gbit", 0.94 * 1.25e8, 50e-6),
        ("25GBit, 200us", 0.94 * 3.125e9, 200e-6),
        ("2.5gbit,0.5ms", 0.94 * 3.125e8, 0.5e-3),
        ("800mbit,1s", 0.94 * 1e8, 1.0),
    ],
)
def test_links(text, bytes_per_s, latency_s):
    link = parse_link(text)
    assert link.bytes_per_s == pytest.approx(bytes_per_s)
    assert link.latency_s == pytest.approx(latency_s)


@pytest.mark.parametrize(
    "text", ["", "fast", "10", "10gb", "-1gbit", "0gbit", "10gbit,5", "10gbit,5ms,1ms", "1e9gbit"]
)
def test_no_links(text):
    with pytest.raises(UsageError, match="such as 10gbit"):
        parse_link(text)


def test_an_unknown_device_names_the_known_ones():
    assert preset(" H100").name == "h100"
    with pytest.raises(UsageError, match=r"'h300'.*there is: h100"):
        preset("h300")
