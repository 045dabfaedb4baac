"""One random stream per session, on a generator that the device has only once."""

from __future__ import annotations

from typing import Protocol

import torch


class Stream(Protocol):
    """What holds a session's generator state while another session draws."""

    rng: torch.Tensor | None
    seed: int


class Generators:
    """Gives the device's default generator to one session at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.owner: Stream | None = None

    def enter(self, session: Stream) -> None:
        """After this, the default generator continues the session's stream."""
        if self.owner is session:
            return
        if self.owner is not None:
            self.owner.rng = self._get()
        self.owner = session
        if session.rng is None:
            self.seed(session, session.seed)
        else:
            self._set(session.rng)

    def leave(self, session: Stream) -> None:
        if self.owner is session:
            self.owner = None

    def seed(self, session: Stream, seed: int) -> None:
        if self.owner is not session:
            session.rng = session.rng if session.rng is not None else torch.empty(0, dtype=torch.uint8)
            if self.owner is not None:
                self.owner.rng = self._get()
            self.owner = session
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):
                torch.cuda.manual_seed(seed)
        else:
            torch.default_generator.manual_seed(seed)

    def state(self, session: Stream) -> torch.Tensor:
        self.enter(session)
        return self._get()

    def restore(self, session: Stream, state: torch.Tensor) -> None:
        self.enter(session)
        self._set(state)

    def _get(self) -> torch.Tensor:
        if self.device.type == "cuda":
            return torch.cuda.get_rng_state(self.device)
        return torch.default_generator.get_state()

    def _set(self, state: torch.Tensor) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state, self.device)
        else:
            torch.default_generator.set_state(state)
