"""The generators of the sessions: one random stream each on the device's default generator, and named ones.

Ops without a generator argument (dropout) draw from the device's default generator, which there is only once;
so it continues the stream of one session at a time. A named generator is an object of its own.
"""

from __future__ import annotations

from typing import Protocol

import torch

from remora.errors import ProtocolError

DEFAULT = 0  # the index of a session's default generator


class Stream(Protocol):
    """A session's generators. rng: the default one's state while another session draws."""

    rng: torch.Tensor | None
    seed: int
    generators: dict[int, torch.Generator]


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
            self.owner.rng = self._default().get_state()
        self.owner = session
        if session.rng is None:
            self._default().manual_seed(session.seed)
        else:
            self._default().set_state(session.rng)

    def leave(self, session: Stream) -> None:
        if self.owner is session:
            self.owner = None

    def find(self, session: Stream, index: int) -> torch.Generator:
        """A generator of the session. Raises ProtocolError if there is none.

        The default one is right until another session enters.
        """
        if index == DEFAULT:
            self.enter(session)
            return self._default()
        found = session.generators.get(index)
        if found is None:
            raise ProtocolError(f"the session has no generator {index}")
        return found

    def seed(self, session: Stream, seed: int, index: int = DEFAULT) -> None:
        self._made(session, index).manual_seed(seed)

    def state(self, session: Stream, index: int = DEFAULT) -> torch.Tensor:
        """uint8 bytes on the CPU, as the device's generator writes them."""
        return self.find(session, index).get_state()

    def restore(self, session: Stream, state: torch.Tensor, index: int = DEFAULT) -> None:
        """Raises what PyTorch raises for a state that is not one of this device."""
        self._made(session, index).set_state(state)

    def _made(self, session: Stream, index: int) -> torch.Generator:
        if index != DEFAULT and index not in session.generators:
            session.generators[index] = torch.Generator(self.device)
        return self.find(session, index)

    def _default(self) -> torch.Generator:
        if self.device.type == "cuda":
            torch.cuda.init()
            return torch.cuda.default_generators[self.device.index or 0]
        return torch.default_generator
