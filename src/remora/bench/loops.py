"""Loops such as a user writes, that read a value in each step, for what run-ahead costs where it guesses wrongly."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection

import torch

WIDTH, ROWS = 512, 64
GAP = 8  # steps that are alike between two turns, at least

Body = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# Each another program; none grows without bound.
BODIES: tuple[Body, ...] = (
    lambda state, weight: torch.tanh(state @ weight),
    lambda state, weight: torch.sigmoid(state @ weight) - 0.5,
    lambda state, weight: torch.nn.functional.layer_norm(state @ weight, (WIDTH,)),
    lambda state, weight: torch.sin((state * 2.0) @ weight),
    lambda state, weight: torch.softmax(state @ weight, -1) * WIDTH,
    lambda state, weight: torch.clamp((state + 1.0) @ weight.t(), -1.0, 1.0),
)


def turning(device: str, steps: int, turns: Collection[int] = ()) -> torch.Tensor:
    """The same program in every step, but in those of `turns`, where another op computes the same values."""
    state, weight = _start(device)
    for step in range(steps):
        state = torch.tanh(state @ weight)
        state = state / 0.5 if step in turns else state * 2.0
        _look(state)
    return state


def wandering(device: str, steps: int, seed: int) -> torch.Tensor:
    """A program that is drawn anew in each step, so that nothing can be told of the next one."""
    rng = random.Random(seed)
    state, weight = _start(device)
    for _ in range(steps):
        state = rng.choice(BODIES)(state, weight)
        _look(state)
    return state


def turns(steps: int, count: int, rng: random.Random) -> list[int]:
    """`count` steps in random places, no period to be found in them, each GAP or more from the one before it.

    Raises:
        ValueError: there is no room for so many.
    """
    spare = steps - (count + 1) * GAP
    if spare < 0:
        raise ValueError(f"{count} turns do not fit into {steps} steps with {GAP} between them")
    before = sorted(rng.randint(0, spare) for _ in range(count))
    return [(number + 1) * GAP + extra for number, extra in enumerate(before)]


def _start(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    return torch.randn(ROWS, WIDTH, generator=generator).to(device), weight.to(device)


def _look(state: torch.Tensor) -> None:
    """The branch of the step."""
    if state.abs().max() > 1e6:
        raise ArithmeticError("the loop ran away")
