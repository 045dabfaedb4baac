"""What the sessions of a worker share: one device, and the ways to the front."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from remora.executor.worker.bounds import Bounds
from remora.executor.worker.describe import Marks
from remora.executor.worker.flags import Flags
from remora.executor.worker.graphs import Recorder, recorder_of
from remora.executor.worker.loose import Kernels, kernels_of
from remora.executor.worker.memory import Maps
from remora.executor.worker.outbox import Outbox
from remora.executor.worker.reading import Reading
from remora.executor.worker.rng import Generators
from remora.executor.worker.tiers import Tiers
from remora.executor.worker.values import Values

if TYPE_CHECKING:
    from remora.executor.worker.session import WorkerSession


@dataclass
class Device:
    """What all sessions of a worker share.

    spill: writes a large value's bytes where the front can send them from, and returns the bulk's name.
    held: who holds how much, for a principal to read. room_nbytes: what values may still take.
    release: tells the front that a session needs a blob no longer, and how often it was offered.
    outbox: what goes to other executors. returned: paths of what came from them and is needed no longer.
    """

    device: torch.device
    generators: Generators
    progress: Any
    maps: Maps
    spill: Callable[[WorkerSession, memoryview], str]
    held: Callable[[str], str]
    room_nbytes: Callable[[], int]
    release: Callable[[int, bytes, int], None]
    outbox: Outbox
    returned: list[str] = field(default_factory=list)
    flags: Flags = field(default_factory=Flags)
    marks: Marks = field(init=False)
    recorder: Recorder | None = field(init=False)
    kernels: Kernels | None = field(init=False)
    tiers: list[Tiers] = field(default_factory=list)  # of the sessions, if the device has graphs

    def __post_init__(self) -> None:
        self.marks = Marks(self.device)
        self.recorder = recorder_of(self.device)
        self.kernels = kernels_of(self.device)

    def tiers_of(self, values: Values, exact: bool) -> Tiers | None:
        """A new session's."""
        if self.recorder is None:
            return None
        room_nbytes, drop_graphs = self.room_nbytes, self.drop_graphs
        made = Tiers(values, self.recorder, room_nbytes, drop_graphs, self.device, self.kernels, exact)
        self.tiers.append(made)
        return made

    def reading(self, tensors: Sequence[torch.Tensor], bounds: Bounds | None) -> Reading | None:
        """None: the device has computed them already."""
        return Reading(tensors, bounds) if self.device.type == "cuda" else None

    def drop_graphs(self) -> bool:
        """Makes room: graphs are recorded again when there is enough. Whether there were any."""
        return sum(tiers.clear() for tiers in self.tiers) > 0

    def adopt(self, path: str, nbytes: int) -> torch.Tensor:
        """What another executor sent, as uint8 in a storage of its own: mapped on a CPU. Raises OSError."""
        ended = partial(self.returned.append, path)
        if self.device.type == "cpu":
            return torch.frombuffer(self.maps.share(path, nbytes, ended), dtype=torch.uint8)
        with open(path, "rb") as file:
            mapped = mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_COPY)
        tensor = torch.frombuffer(mapped, dtype=torch.uint8).to(self.device)
        ended()
        return tensor
