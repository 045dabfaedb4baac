"""Tensors of any shape, strides and dtype go to the device and come back as a local copy would be."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from remora.pool.embedded import EmbeddedExecutor

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.uint16, torch.uint32),
    *(torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
)


@pytest.fixture(scope="module")
def connected() -> Iterator[None]:
    import remora

    executor = EmbeddedExecutor("--device", "cpu")
    remora.connect(executor.start())
    yield
    remora.disconnect()
    executor.stop()


def _tensor(choice: random.Random) -> torch.Tensor:
    sizes = [choice.choice((0, 1, 1, 2, 3, 5)) for _ in range(choice.randrange(5))]
    tensor = torch.rand([2 * size for size in sizes]).mul(5).round().to(choice.choice(DTYPES))
    for dim, size in enumerate(sizes):
        if choice.random() < 0.5:
            tensor = tensor.narrow(dim, choice.randint(0, size), size)
        else:
            tensor = tensor[(slice(None),) * dim + (slice(None, None, 2),)]
    tensor = tensor.permute(choice.sample(range(len(sizes)), len(sizes)))
    kind = choice.random()
    if kind < 0.2 and sizes and tensor.shape[0]:
        return tensor.narrow(0, 0, 1).expand(3, *tensor.shape[1:])
    if kind < 0.6:
        return tensor.clone() if kind < 0.5 else tensor.contiguous()
    return tensor.conj() if tensor.is_complex() else tensor


def _bytes(tensor: torch.Tensor) -> Any:
    flat = tensor.resolve_conj().reshape(-1)
    return (
        torch.empty(flat.numel(), dtype=flat.dtype).copy_(flat).view(torch.uint8).tolist()
        if flat.numel()
        else []
    )


@pytest.mark.parametrize("seed", range(4))
def test_there_and_back(connected: None, seed: int) -> None:
    choice = random.Random(seed)
    torch.manual_seed(seed)
    for _ in range(60):
        tensor = _tensor(choice)
        options: list[dict[str, Any]] = [
            {},
            {"non_blocking": True},
            {"memory_format": torch.contiguous_format},
        ]
        if not tensor.is_complex():
            options.append({"dtype": torch.float32})
        if tensor.dim() == 4:
            options.append({"memory_format": torch.channels_last})
        option = choice.choice(options)
        there, expected = tensor.to("remora", **option), tensor.to("cpu", copy=True, **option)
        back = there.cpu()
        about = tensor.dtype, tuple(tensor.shape), tensor.stride(), option
        assert there.stride() == tensor.to("meta", **option).stride(), about
        assert (back.stride(), back.dtype) == (expected.stride(), expected.dtype), about
        assert _bytes(back) == _bytes(expected), about
        local, remote = (
            torch.zeros(tensor.shape, dtype=tensor.dtype),
            torch.zeros_like(tensor, device="remora"),
        )
        local.copy_(there)
        assert _bytes(remote.copy_(tensor).cpu()) == _bytes(local) == _bytes(expected.to(tensor.dtype)), about
