"""A training step that nobody reads: no wait, the same templates in each turn, few bytes."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

WARM_UP = 6
STEPS = 20
ADAM_NBYTES = 400  # two floats a parameter, ten parameters, 10 bytes each


def _mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    )


OPTIMIZERS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], int]] = {
    "sgd": (lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9), 60),
    "adam": (lambda parameters: torch.optim.Adam(parameters, lr=0.01), ADAM_NBYTES),
    "adam, a row per parameter": (
        lambda parameters: torch.optim.Adam(parameters, foreach=False),
        ADAM_NBYTES,
    ),
    "adamw": (lambda parameters: torch.optim.AdamW(parameters, lr=0.01), ADAM_NBYTES),
    "adamw, fused": (lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True), 60),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_step_blocks_never_repeats_its_templates_and_sends_little(
    connected: ModuleType, optimizer: str
) -> None:
    make, most_nbytes = OPTIMIZERS[optimizer]
    model = _mlp().to("remora")
    steps = make(model.parameters())
    inputs, labels = torch.randn(8, 16).to("remora"), torch.randint(0, 4, (8,)).to("remora")

    def turn() -> None:
        steps.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        steps.step()

    spent = _spent(connected, turn)
    assert (spent.round_trips, spent.templates) == (0, 0)
    assert spent.bytes_sent <= STEPS * most_nbytes
    assert spent.segments == STEPS  # the executor works on each step while the next is captured


def test_clipping_a_schedule_and_accumulation_block_never(connected: ModuleType) -> None:
    model = _mlp().to("remora")
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(steps, 100)
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    inputs, labels = torch.randn(2, 8, 16).to("remora"), torch.randint(0, 4, (2, 8)).to("remora")

    def turn() -> None:
        steps.zero_grad()
        for half in range(2):
            F.cross_entropy(model(inputs[half]), labels[half]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        steps.step()
        schedule.step()
        average.update_parameters(model)

    spent = _spent(connected, turn)
    assert (spent.round_trips, spent.templates) == (0, 0)


def test_fresh_batches_cost_their_bytes(connected: ModuleType) -> None:
    model = _mlp().to("remora")
    steps = torch.optim.SGD(model.parameters(), lr=0.1)

    def turn() -> None:
        steps.zero_grad()
        inputs, labels = torch.randn(8, 16).to("remora"), torch.randint(0, 4, (8,)).to("remora")
        F.cross_entropy(model(inputs), labels).backward()
        steps.step()

    spent = _spent(connected, turn)
    assert (spent.round_trips, spent.templates) == (0, 0)
    assert spent.bytes_sent <= STEPS * (8 * 16 * 4 + 8 * 8 + 200)


def test_foreach_rows_stand_for_all_parameters(connected: ModuleType) -> None:
    """As on a GPU, optimizers take their foreach form by default."""

    def rows(n_layers: int) -> int:
        parameters = [torch.ones(3, device="remora", requires_grad=True) for _ in range(n_layers)]
        steps = torch.optim.AdamW(parameters)
        for parameter in parameters:
            parameter.grad = torch.ones(3, device="remora")
        steps.step()
        before = connected.stats()
        steps.step()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        return int((connected.stats() - before).ops)

    assert rows(20) - rows(2) <= 18  # the norms are stacked, and taken out one by one


def _spent(remora: ModuleType, turn: Callable[[], None]) -> Any:
    for _ in range(WARM_UP):
        turn()
    before = remora.stats()
    for _ in range(STEPS):
        turn()
    return remora.stats() - before
