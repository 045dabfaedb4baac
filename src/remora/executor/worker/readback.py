"""A value on its way to the host, while the device goes on with what comes next."""

from __future__ import annotations

from typing import Any

import torch


class Readback:
    """Starts to copy a tensor as it is at this place of the stream: what is written to it later does not show."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: Any = None
        if tensor.device.type != "cuda":
            self._host = (
                tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
            )
            return
        exact = tensor.detach().resolve_conj().resolve_neg().contiguous()
        self._host = torch.empty(exact.shape, dtype=exact.dtype, pin_memory=True)
        self._host.copy_(exact, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record(torch.cuda.current_stream(tensor.device))

    def ready(self) -> bool:
        """Whether `take` gives it at once."""
        return self._event is None or self._event.query()

    def take(self) -> torch.Tensor:
        """The value as a contiguous CPU tensor. Waits for it; raises what the device raises."""
        if self._event is not None:
            self._event.synchronize()
        return self._host
