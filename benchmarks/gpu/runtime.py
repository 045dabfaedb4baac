"""Generators, dropout, autocast, flags, events, memory and profiler of the device against the same GPU used locally.

    python benchmarks/gpu/runtime.py

Client and executor are two processes on one machine. Each check compares with local PyTorch on the executor's kind
of device, bit for bit. `--device cpu` checks the script where there is no GPU. The last line is JSON: what failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, record_function

import remora
from remora.pool.embedded import EmbeddedExecutor


def large(local: str) -> torch.Tensor:
    """Whose products take a while."""
    side = 4096 if local.startswith("cuda") else 256
    return torch.ones(side, side, device="remora")


def same(remote: Any, local: Any, what: str) -> None:
    assert remote.device.type == "remora", what
    assert remote.dtype == local.dtype, f"{what}: {remote.dtype}, locally {local.dtype}"
    assert torch.equal(remote.cpu(), local.cpu()), f"{what}: other values"


def draws(device: str, generator: Any) -> dict[str, torch.Tensor]:
    ones = torch.ones(1000, device=device)
    return {
        "rand": torch.rand(1000, device=device, generator=generator),
        "randn": torch.randn(999, device=device, generator=generator),
        "randint": torch.randint(0, 9, (99,), device=device, generator=generator),
        "randperm": torch.randperm(99, device=device, generator=generator),
        "normal_": ones.clone().normal_(generator=generator),
        "exponential_": ones.clone().exponential_(generator=generator),
        "bernoulli": torch.bernoulli(ones / 3, generator=generator),
        "multinomial": torch.multinomial(ones[:50], 9, generator=generator),
    }


def generators(local: str) -> None:
    ours, theirs = (torch.Generator(device).manual_seed(3) for device in ("remora", local))
    for _ in range(2):
        mine, expected = draws("remora", ours), draws(local, theirs)
        for name in mine:
            same(mine[name], expected[name], name)
    assert torch.equal(ours.get_state(), theirs.get_state())
    assert ours.initial_seed() == theirs.initial_seed() == 3
    ours.set_state(theirs.manual_seed(8).get_state())
    assert ours.initial_seed() == 8
    torch.manual_seed(5)
    mine = draws("remora", None)
    state = torch.remora.get_rng_state()
    torch.manual_seed(5)
    expected = draws(local, None)
    for name in mine:
        same(mine[name], expected[name], f"{name} by default")
    module = torch.cuda if local.startswith("cuda") else torch
    assert torch.equal(state, module.get_rng_state())


def dropout(local: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for p in (0.123, 0.5):
            found = []
            for device in ("remora", local):
                torch.manual_seed(1)
                x = torch.arange(5000.0, device=device).to(dtype).requires_grad_()
                out = functional.dropout(x, p)
                out.float().sum().backward()
                found.append((out.detach(), x.grad))
            same(found[0][0], found[1][0], f"dropout {p} {dtype}")
            same(found[0][1], found[1][1], f"gradient of dropout {p} {dtype}")


def autocast(local: str) -> None:
    def calls(device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        x = torch.rand(4, 8, 16, generator=torch.Generator().manual_seed(0)).to(device)
        half = x.to(dtype)
        return {
            "linear": functional.linear(x, x[0]),
            "matmul": x @ x.mT,
            "einsum": torch.einsum("bij,bkj->bik", x, x),
            "conv1d": functional.conv1d(x, x[:, :, :3]),
            "conv1d same": functional.conv1d(x, x[:, :, :3], padding="same"),
            "softmax": torch.softmax(half, -1),
            "layer_norm": functional.layer_norm(half, (16,)),
            "exp": half.exp(),
            "sum": half.sum(),
            "norm": half.norm(),
            "cat": torch.cat([half, half]),
            "addcmul": torch.addcmul(half, half, half.float()),
            "mse_loss": functional.mse_loss(half, x),
            "cross_entropy": functional.cross_entropy(half[0], torch.arange(8, device=device)),
            "interpolate": functional.interpolate(half[None], size=(5, 5), mode="bilinear"),
            "attention": functional.scaled_dot_product_attention(*[x[:, None]] * 3),
        }

    for dtype in (torch.bfloat16, torch.float16):
        with torch.no_grad(), torch.autocast("remora", dtype=dtype):
            mine = calls("remora", dtype)
        with torch.no_grad(), torch.autocast(local.partition(":")[0], dtype=dtype):
            expected = calls(local, dtype)
        for name in mine:
            same(mine[name], expected[name], f"{name} in {dtype}")


def flags(local: str) -> None:
    qkv = [torch.rand(1, 2, 300, 64, generator=torch.Generator().manual_seed(n)).bfloat16() for n in range(3)]

    def attention(device: str) -> torch.Tensor:
        with torch.no_grad():
            return functional.scaled_dot_product_attention(*[t.to(device) for t in qkv])

    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        with sdpa_kernel(backend):
            same(attention("remora"), attention(local), f"attention by {backend}")
    x = torch.rand(256, 256, generator=torch.Generator().manual_seed(0))
    for tf32 in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        there = x.to("remora") @ x.to("remora")
        same(there, x.to(local) @ x.to(local), f"matmul with allow_tf32={tf32}")


def events(local: str) -> None:
    x = large(local)
    torch.remora.synchronize()
    before = remora.stats().round_trips
    start, end = (torch.remora.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(10):
        x = x @ x / len(x)
    end.record()
    while not end.query():
        pass
    assert remora.stats().round_trips == before, "an event was waited for"
    assert start.elapsed_time(end) > 0
    assert torch.remora.memory_allocated() >= x.nbytes
    assert torch.remora.mem_get_info()[0] > 0
    print(torch.remora.get_device_properties(), start.elapsed_time(end), "ms", file=sys.stderr)


def profiled(local: str) -> None:
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.PrivateUse1]) as prof:
        with record_function("outer"):
            x = large(local)
            with record_function("inner"):
                for _ in range(10):
                    x = x @ x / len(x)
    times = {event.key: event.device_time_total for event in prof.key_averages()}
    print({name: times[name] for name in ("outer", "inner")}, "us", file=sys.stderr)
    assert times["outer"] >= times["inner"] > 100


CHECKS: tuple[Callable[[str], None], ...] = (generators, dropout, autocast, flags, events, profiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    executor = EmbeddedExecutor("--device", device, "--threads", "1")
    failed = {}
    try:
        remora.connect(executor.start())
        for check in CHECKS:
            try:
                check(device)
            except Exception as error:
                traceback.print_exc()
                failed[check.__name__] = str(error)[:300]
    finally:
        remora.disconnect()
        executor.stop()
    print(json.dumps({"device": device, "torch": torch.__version__, "checks": len(CHECKS), "failed": failed}))


if __name__ == "__main__":
    main()
