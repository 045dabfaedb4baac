"""Devices and links that nobody has measured, by their published numbers: for `remora estimate`.

Peak rates are dense, without sparsity, as PyTorch uses them by default: float32 on ordinary units, since TF32 is off.
What programs reach of the peaks is a factor with an error bar, so every estimate carries one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from remora.errors import UsageError
from remora.ops.cost import Kind
from remora.plan.devices import Curve, Device, Link, Rates, flat

GB, TB, TERA = 10**9, 10**12, 10**12
GIB = 1 << 30

# Share of the peak that PyTorch's kernels reach, and its relative error. On one H200: copies 0.87 of the published
# bandwidth, bfloat16 products of 4096 about 0.75 of the published rate; smaller sizes and older devices reach less.
PRODUCT_SHARE, PRODUCT_SIGMA = 0.65, 0.25
ATTENTION_SHARE, ATTENTION_SIGMA = 0.40, 0.40
CONVOLUTION_SHARE, CONVOLUTION_SIGMA = 0.45, 0.40
MEMORY_SHARE, MEMORY_SIGMA = 0.80, 0.15
CALL_SIGMA = 0.40
SCALAR_SHARE = 0.5  # of the float32 peak, for functions of single elements


@dataclass(frozen=True, slots=True)
class Published:
    """A device's data sheet. tera: dense operations per second by dtype, in 10**12. source: where that stands."""

    name: str
    tera: dict[str, float]
    bytes_per_s: float
    memory_nbytes: int
    cache_nbytes: int
    call_s: float
    asynchronous: bool
    source: str


# The executor's interpreter and a launch, on a server's processor. On an H200's host a decode step of GPT-2 124M (258
# calls, 226 views) took 7.5 ms of it, one of an 8B Llama (1,322 calls, 489 views) 35.0 ms: 21.5 and 23.1 us a call.
GPU_CALL_S = 22e-6
CPU_CALL_S = 3e-6
VIEW_SHARE = 0.4  # of a call, where nothing is launched

DEVICES = {
    device.name: device
    for device in (
        Published(
            "h100",
            {"float64": 34, "float32": 67, "bfloat16": 989, "float16": 989, "float8_e4m3fn": 1979},
            3.35 * TB, 80 * GB, 50 << 20, GPU_CALL_S, True,
            "NVIDIA H100 data sheet, SXM5 80 GB; sparse numbers halved",
        ),
        Published(
            "h200",
            {"float64": 34, "float32": 67, "bfloat16": 989, "float16": 989, "float8_e4m3fn": 1979},
            4.8 * TB, 141 * GB, 50 << 20, GPU_CALL_S, True,
            "NVIDIA H200 data sheet, SXM 141 GB; sparse numbers halved",
        ),
        Published(
            "a100",
            {"float64": 9.7, "float32": 19.5, "bfloat16": 312, "float16": 312},
            2.039 * TB, 80 * GB, 40 << 20, GPU_CALL_S, True,
            "NVIDIA A100 data sheet, SXM4 80 GB",
        ),
        Published(
            "a10",
            {"float32": 31.2, "bfloat16": 125, "float16": 125},
            600 * GB, 24 * GB, 6 << 20, GPU_CALL_S, True,
            "NVIDIA A10 data sheet",
        ),
        Published(
            "l4",
            {"float32": 30.3, "bfloat16": 121, "float16": 121, "float8_e4m3fn": 242},
            300 * GB, 24 * GB, 48 << 20, GPU_CALL_S, True,
            "NVIDIA L4 data sheet; sparse numbers halved",
        ),
        Published(
            "t4",
            {"float32": 8.1, "bfloat16": 8.1, "float16": 65},
            300 * GB, 16 * GB, 4 << 20, GPU_CALL_S, True,
            "NVIDIA T4 data sheet; it has no bfloat16 units, so PyTorch computes it in float32",
        ),
        Published(
            "rtx4090",
            {"float32": 82.6, "bfloat16": 165.2, "float16": 165.2, "float8_e4m3fn": 330.3},
            1.008 * TB, 24 * GB, 72 << 20, GPU_CALL_S, True,
            "NVIDIA Ada GPU architecture whitepaper, appendix A: products that accumulate in float32",
        ),
        Published(
            "cpu-2core",
            {"float64": 0.08, "float32": 0.16, "bfloat16": 0.04, "float16": 0.02},
            25 * GB, 8 * GB, 32 << 20, CPU_CALL_S, False,
            "two cores of 2.5 GHz with two AVX2 multiply-add units: 32 float32 operations a cycle and core",
        ),
    )
}  # fmt: skip

_LINK = re.compile(r"(?P<rate>\d+(\.\d+)?)(?P<unit>[kmgt])bit(,(?P<delay>\d+(\.\d+)?)(?P<time>us|ms|s))?")
_PER_UNIT = {"k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
ETHERNET_SHARE = 0.94  # of the line rate that TCP carries as payload in frames of 1500 bytes
SWITCHED_S = 50e-6  # one way through a switch and two kernels, where no delay is given
MESSAGE_S = 100e-6  # of one transfer at its ends: an HTTP request
LINK_SIGMA = 0.2


def preset(name: str) -> Device:
    """A device by its published numbers.

    Raises:
        UsageError: nobody has written it down here; names those that there are.
    """
    published = DEVICES.get(name.strip().lower())
    if published is None:
        raise UsageError(f"no device is called {name.strip()!r}; there is: {', '.join(DEVICES)}")
    return _device(published)


def parse_link(text: str) -> Link:
    """`10gbit`, `10gbit,5ms`, `800mbit,200us` to a link; the delay is one way.

    Raises:
        UsageError: it is none.
    """
    found = _LINK.fullmatch(text.strip().lower().replace(" ", ""))
    if found is None or float(found["rate"]) <= 0:
        raise UsageError(
            f"--link {text!r} is no link; write its rate and the delay one way, such as 10gbit or 1gbit,5ms "
            "(units: kbit, mbit, gbit, tbit; us, ms, s)"
        )
    bits_per_s = float(found["rate"]) * _PER_UNIT[found["unit"]]
    latency_s = float(found["delay"]) * _SECONDS[found["time"]] if found["delay"] else SWITCHED_S
    return Link(ETHERNET_SHARE * bits_per_s / 8, latency_s, MESSAGE_S, LINK_SIGMA)


def _device(published: Published) -> Device:
    memory = flat(MEMORY_SHARE * published.bytes_per_s)
    near = flat(MEMORY_SHARE * published.bytes_per_s * (1 if published.asynchronous else 3))
    fixed_s = 2e-6 if published.asynchronous else 0.0
    scalar = {"float32": flat(SCALAR_SHARE * published.tera["float32"] * TERA)}

    def rates(share: float, sigma: float) -> Rates:
        curves = {dtype: _occupied(share * tera * TERA) for dtype, tera in published.tera.items()}
        return Rates(fixed_s, near, memory, curves, sigma)

    return Device(
        name=published.name,
        memory_nbytes=published.memory_nbytes,
        call_s=published.call_s,
        view_s=VIEW_SHARE * published.call_s,
        run_s=5e-5,
        rates={
            Kind.PRODUCT: rates(PRODUCT_SHARE, PRODUCT_SIGMA),
            Kind.ATTENTION: rates(ATTENTION_SHARE, ATTENTION_SIGMA),
            Kind.CONVOLUTION: rates(CONVOLUTION_SHARE, CONVOLUTION_SIGMA),
            Kind.MOVE: Rates(fixed_s, near, memory, {}, MEMORY_SIGMA),
            Kind.GATHER: Rates(fixed_s, near, memory, {}, 2 * MEMORY_SIGMA),
            Kind.REDUCE: Rates(fixed_s, near, memory, scalar, 2 * MEMORY_SIGMA),
            Kind.MATH: Rates(fixed_s, near, memory, scalar, 2 * MEMORY_SIGMA),
        },
        cache_nbytes=published.cache_nbytes,
        asynchronous=published.asynchronous,
        sigma=CALL_SIGMA,
    )


def _occupied(peak: float) -> Curve:
    """The peak rate, and half of it for few operations a byte, where tiles are narrow."""
    return Curve(((1.0, peak / 2), (128.0, peak)))
