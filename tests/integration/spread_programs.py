"""Random programs over several devices: each line on one of them, with copies from the others.

On the CPU a device is a name, and a state of the generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from random_programs import FLOATS, KINDS, Program, Refused


class SpreadProgram(Program):
    """homes: the device of each tensor. Only the tensors of `here` are there for a line that is being made."""

    def __init__(self, seed: int, n_devices: int) -> None:
        self.n_devices = n_devices
        self.homes: dict[str, int] = {}
        self.here: int | None = None
        super().__init__(seed)

    def environment(self, device: str) -> dict[str, Any]:
        if device != "cpu":
            return {"torch": torch, "on": lambda index: f"{device}:{index}"}
        torch.manual_seed(self.seed % 2**31)
        states, now = [torch.get_rng_state() for _ in range(self.n_devices)], [0]

        def on(index: int) -> str:
            states[now[0]] = torch.get_rng_state()
            torch.set_rng_state(states[index])
            now[0] = index
            return device

        return {"torch": torch, "on": on}

    def add(self, kind: Callable[[Program], str]) -> None:
        if kind is not KINDS[0] and self.rng.random() < 0.35:
            kind = self.rng.choice((hop, copy_over))
        self.here = self.rng.randrange(self.n_devices)
        self.env["device"] = self.env["on"](self.here)
        n_lines = len(self.lines)
        super().add(kind)
        if len(self.lines) > n_lines:
            self.lines[-1] = f"device = on({self.here})\n{self.lines[-1]}"
        for name, item in self.env.items():
            if isinstance(item, torch.Tensor):
                self.homes.setdefault(name, self.here)
        self.here = None

    def tensors(self) -> dict[str, torch.Tensor]:
        found = super().tensors()
        return {name: t for name, t in found.items() if self.here in (None, self.homes.get(name))}

    def elsewhere(self) -> str:
        """A tensor of another device."""
        names = [name for name, home in self.homes.items() if home != self.here]
        if not names:
            raise Refused
        return self.rng.choice(names)

    def _backward(self) -> None:
        names = [name for name, t in self.tensors().items() if t.requires_grad and t.dtype in FLOATS]
        if names:
            chosen = self.rng.sample(names, min(3, len(names)))
            total = " + ".join(f"({name} * {name}).sum().double().to(device)" for name in chosen)
            self.lines.append(f"device = on(0)\nloss = {total}; loss.backward()")


def hop(p: Program) -> str:
    assert isinstance(p, SpreadProgram)
    dtype = p.rng.choice(("", "", "", "dtype=torch.float64, ", "dtype=torch.float16, "))
    return f"{p.new()} = {p.elsewhere()}.to(device, {dtype}copy=True)"


def copy_over(p: Program) -> str:
    assert isinstance(p, SpreadProgram)
    name, t = p.tensor(lambda t: 0 not in [s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1])
    line = f"{name}.copy_({p.elsewhere()})"
    return f"with torch.no_grad(): {line}" if t.requires_grad and t.is_leaf else line
