"""Autocast on the device: on a CPU executor what `torch.autocast("cpu")` gives, on a GPU's what "cuda" gives."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from remora.device.sink import bound


def _draw(device: str, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))).to(device)


CALLS: dict[str, Callable[[str], Any]] = {
    "linear": lambda d: functional.linear(_draw(d, 3, 4), _draw(d, 5, 4), _draw(d, 5)),
    "mm": lambda d: _draw(d, 3, 4) @ _draw(d, 4, 3),
    "bmm": lambda d: torch.bmm(_draw(d, 2, 3, 4), _draw(d, 2, 4, 3)),
    "addmm": lambda d: torch.addmm(_draw(d, 3), _draw(d, 3, 4), _draw(d, 4, 3)),
    "einsum": lambda d: torch.einsum("ij,kj->ik", _draw(d, 3, 4), _draw(d, 5, 4)),
    "mv": lambda d: torch.mv(_draw(d, 3, 4), _draw(d, 4)),
    "conv1d": lambda d: functional.conv1d(_draw(d, 1, 2, 8), _draw(d, 3, 2, 3)),
    "conv2d": lambda d: functional.conv2d(_draw(d, 1, 2, 8, 8), _draw(d, 3, 2, 3, 3), padding="same"),
    "conv_transpose2d": lambda d: functional.conv_transpose2d(_draw(d, 1, 2, 8, 8), _draw(d, 2, 3, 3, 3)),
    "attention": lambda d: functional.scaled_dot_product_attention(
        *[_draw(d, 1, 2, 5, 8)] * 3, is_causal=True
    ),
    "softmax": lambda d: torch.softmax(_draw(d, 3, 4).bfloat16(), -1),
    "softmax of linear": lambda d: torch.softmax(_draw(d, 3, 4) @ _draw(d, 4, 3), -1),
    "layer_norm": lambda d: functional.layer_norm(_draw(d, 3, 4) @ _draw(d, 4, 3), (3,)),
    "exp": lambda d: torch.exp(_draw(d, 3, 4).bfloat16()),
    "sum": lambda d: (_draw(d, 3, 4) @ _draw(d, 4, 3)).sum(),
    "prod": lambda d: torch.prod(_draw(d, 3, 4).bfloat16()),
    "norm": lambda d: (_draw(d, 3, 4) @ _draw(d, 4, 3)).norm(),
    "mse_loss": lambda d: functional.mse_loss(_draw(d, 3, 4).bfloat16(), _draw(d, 3, 4)),
    "cross_entropy": lambda d: functional.cross_entropy(
        _draw(d, 3, 4).bfloat16(), torch.tensor([0, 1, 2], device=d)
    ),
    "cat": lambda d: torch.cat([_draw(d, 2).bfloat16(), _draw(d, 3)]),
    "stack": lambda d: torch.stack([_draw(d, 2).bfloat16(), _draw(d, 2).bfloat16()]),
    "pool": lambda d: functional.max_pool3d(_draw(d, 1, 2, 4, 4, 4).bfloat16(), 2),
    "pad": lambda d: functional.pad(_draw(d, 1, 2, 4).bfloat16(), (1, 1), mode="reflect"),
    "inverse": lambda d: torch.linalg.inv(_draw(d, 3, 3)),
    "double": lambda d: _draw(d, 3, 4).double() @ _draw(d, 4, 3).double(),
    "whole numbers": lambda d: torch.arange(4, device=d) @ torch.arange(4, device=d),
    "in place": lambda d: (_draw(d, 3, 3) @ _draw(d, 3, 3)).add_(_draw(d, 3, 3)),
    "interpolate": lambda d: functional.interpolate(_draw(d, 1, 2, 5, 5), size=(7, 3), mode="bilinear"),
    "conv2d same": lambda d: functional.conv2d(_draw(d, 1, 2, 8, 8), _draw(d, 3, 2, 3, 3), padding="same"),
    "tensordot": lambda d: torch.tensordot(_draw(d, 3, 4), _draw(d, 4, 3), 1),
}


def _same(remote: torch.Tensor, local: torch.Tensor) -> None:
    assert remote.device.type == "remora"
    assert remote.dtype == local.dtype
    assert torch.equal(remote.cpu(), local)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_op_gives_what_it_gives_on_the_cpu(connected: ModuleType, call: str, dtype: torch.dtype) -> None:
    try:
        with torch.autocast("cpu", dtype=dtype):
            local = CALLS[call]("cpu")
    except RuntimeError as error:
        with torch.autocast("remora", dtype=dtype), pytest.raises(RuntimeError, match=str(error)[:30]):
            CALLS[call]("remora").cpu()
        return
    with torch.autocast("remora", dtype=dtype):
        _same(CALLS[call]("remora"), local)


def test_contexts_nest_and_can_be_off(connected: ModuleType) -> None:
    def dtypes(device: str) -> list[torch.dtype]:
        x, found = torch.ones(2, 2, device=device), []
        with torch.autocast(device, dtype=torch.bfloat16):
            found.append((x @ x).dtype)
            with torch.autocast(device, enabled=False):
                found.append((x @ x).dtype)
                with torch.autocast(device, dtype=torch.float16):
                    found.append((x @ x).dtype)
            with torch.inference_mode():
                found.append((x @ x).dtype)
            found.append((x @ x).dtype)
        return [*found, (x @ x).dtype]

    assert dtypes("remora") == dtypes("cpu")


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_what_is_kept_whole_otherwise_is_cast_too(connected: ModuleType, mode: Callable[[], Any]) -> None:
    def products(device: str) -> list[torch.Tensor]:
        with mode(), torch.autocast(device, dtype=torch.bfloat16):
            x = _draw(device, 2, 4)
            return [torch.einsum("ij,kj->ik", x, x), torch.tensordot(x, x.T, 1), torch.cov(x)]

    for mine, theirs in zip(products("remora"), products("cpu"), strict=True):
        _same(mine, theirs)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_recurrent_networks_are_cast(connected: ModuleType, mode: Callable[[], Any]) -> None:
    def run(device: str, kind: type[nn.Module]) -> torch.Tensor:
        torch.manual_seed(0)
        layer = kind(4, 5).to(device)  # type: ignore[call-arg]
        with mode(), torch.autocast(device, dtype=torch.bfloat16):
            return layer(_draw(device, 3, 2, 4))[0]  # type: ignore[no-any-return]

    for kind in (nn.LSTM, nn.RNN):
        _same(run("remora", kind), run("cpu", kind))
    gru, local = run("remora", nn.GRU), run("cpu", nn.GRU)  # a CPU casts a part of it
    assert gru.dtype == local.dtype
    assert torch.allclose(gru.cpu(), local, atol=0.01)


@torch.no_grad()
def _equal_parameters(one: nn.Module, other: nn.Module) -> None:
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        _same(mine.detach(), theirs.detach())


class _Net(nn.Module):
    """A weight that is used twice, so that its cast is one node of the graph, or two."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.norm = nn.Embedding(9, 8), nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.inner(functional.gelu(self.inner(self.embed(ids)))))
        return x @ self.embed.weight.T


@pytest.mark.parametrize("cached", [True, False])
def test_a_training_step_equals_the_cpus(connected: ModuleType, cached: bool) -> None:
    def train(device: str) -> tuple[list[float], nn.Module]:
        torch.manual_seed(0)
        model, losses = _Net().to(device), []
        ids = torch.arange(8).reshape(2, 4).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(4):
            optimizer.zero_grad()
            with torch.autocast(device, dtype=torch.bfloat16, cache_enabled=cached):
                loss = functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return [loss.item() for loss in losses], model

    losses, model = train("remora")
    expected, local = train("cpu")
    assert losses == expected
    _equal_parameters(model, local)


def test_a_weight_is_cast_once_in_a_context(connected: ModuleType) -> None:
    layer, x = nn.Linear(4, 4, bias=False).to("remora"), torch.ones(2, 4, device="remora")

    def ops(times: int) -> int:
        before = connected.stats().ops
        with torch.autocast("remora", dtype=torch.bfloat16):
            for _ in range(times):
                layer(x)
        return connected.stats().ops - before  # type: ignore[no-any-return]

    with torch.no_grad():
        first, more = ops(1), ops(3)
        assert more == first + 2 * (first - 1)
        with torch.autocast("remora", dtype=torch.bfloat16):
            layer(x)
            with torch.enable_grad():
                assert layer(x).requires_grad
                layer(x).sum().backward()
    assert layer.weight.grad is not None


class _Square(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="remora", cast_inputs=torch.float32)
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.seen = x.dtype
        return x @ x

    @staticmethod
    @torch.amp.custom_bwd(device_type="remora")
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        assert not torch.is_autocast_enabled("remora")
        return grad @ x.T + x.T @ grad


def test_custom_functions_choose_their_precision(connected: ModuleType) -> None:
    x = torch.ones(2, 2, device="remora", requires_grad=True)
    with torch.autocast("remora", dtype=torch.bfloat16):
        half = x @ x
        assert half.dtype == torch.bfloat16
        assert _Square.apply(half).dtype == torch.float32
    _Square.apply(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [[4, 4], [4, 4]]


def test_checkpointing_recomputes_under_autocast(connected: ModuleType) -> None:
    from torch.utils.checkpoint import checkpoint

    def gradient(device: str) -> torch.Tensor:
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.4), nn.Linear(4, 4)).to(device)
        x = _draw(device, 3, 4).requires_grad_()
        torch.manual_seed(1)
        with torch.autocast(device, dtype=torch.bfloat16):
            out = checkpoint(layer, x, use_reentrant=False)
        out.float().sum().backward()
        assert layer[0].weight.grad is not None
        return layer[0].weight.grad

    _same(gradient("remora"), gradient("cpu"))


def test_a_gpus_executor_has_a_gpus_lists(connected: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound, "device_type", "cuda")
    half = _draw("remora", 3, 3).bfloat16()
    with torch.autocast("remora", dtype=torch.bfloat16):
        single = {
            "exp": torch.exp(half),
            "softmax": torch.softmax(half, -1),
            "sum": half.sum(),
            "norm": half.norm(),
            "norm of rows": torch.norm(half, dim=1),
            "layer_norm": functional.layer_norm(half, (3,)),
            "promoted": torch.addcmul(half, half, half.float()),
        }
        assert {name: t.dtype for name, t in single.items()} == dict.fromkeys(single, torch.float32)
        kept = {
            "given": torch.softmax(half, -1, dtype=torch.bfloat16),
            "sum given": half.sum(dtype=torch.bfloat16),
            "unlisted": torch.cat([half, half]),
            "promoted": torch.addcmul(half, half, half),
            "lower": torch.einsum("ij,jk", half.float(), half.float()),
        }
        assert {name: t.dtype for name, t in kept.items()} == dict.fromkeys(kept, torch.bfloat16)
        with pytest.raises(RuntimeError, match="unsafe to autocast"):
            functional.binary_cross_entropy(half, half)
        with pytest.raises(RuntimeError, match="prioritize"):
            torch.addcmul(half, half, half.half())
    assert torch.equal(single["norm of rows"].cpu(), torch.norm(half.cpu(), dim=1, dtype=torch.float32))


def _scaled(device: str, explode_at: int) -> tuple[list[float], list[torch.Tensor], int]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0, growth_interval=3)
    scales = []
    import remora

    before = remora.stats().round_trips
    for step in range(7):
        optimizer.zero_grad()
        x = _draw("cpu", 6, 4).to(device) * (1e30 if step == explode_at else 1.0)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(x).pow(2).mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler._scale.clone())
    waits = remora.stats().round_trips - before
    return [s.item() for s in scales], [p.detach().cpu() for p in model.parameters()], waits


def test_grad_scaler_skips_the_steps_that_the_cpu_skips(connected: ModuleType) -> None:
    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run
    scales, parameters, waits = _scaled("remora", 2)
    expected, theirs, _ = _scaled("cpu", 2)
    assert scales == expected
    assert scales[1:3] == [1024, 512]
    assert scales[-1] > 512
    for mine, local in zip(parameters, theirs, strict=True):
        assert torch.equal(mine, local)
    assert waits == 7  # a step reads whether anything overflowed, as on cuda, and nothing else waits
