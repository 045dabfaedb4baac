"""What a program gives to a pool by itself, not by running rows: uploads, seeds, generators' states, flags."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from blake3 import blake3

from remora.capture.interrupts import uninterrupted
from remora.capture.value import Value
from remora.ir.annotated import NOTHING, Facts
from remora.ir.node import Node
from remora.session.holdings import Made
from remora.session.pinned import Upload
from remora.session.placement import Placement
from remora.session.session import Session
from remora.wire.messages import Adopt, DefaultDtype, Flag, LoadRng, Put, Seed, ToExecutor

_STATE = Facts("uint8", (0,), 1)  # of a generator; only its device knows the size
_SAVING = Node("remora.save_rng.default"), 0


class Given(Session):
    """The part of a session over several executors that does not place rows.

    _indexed: each executor is a device of its own. _generators: those that were seeded, and the default one.
    """

    placement: Placement
    _indexed: bool
    _generators: set[int]

    # -- uploads

    def put(self, dtype: str, shape: tuple[int, ...], data: bytes, index: int = 0) -> int:
        if self._indexed:
            return self._bound(
                index, dtype, shape, len(data), lambda segment: Put(segment, dtype, shape, data)
            )
        return self._pin(Upload(dtype, shape, data, None, len(data)))

    def store(self, dtype: str, shape: tuple[int, ...], data: memoryview, index: int = 0) -> int:
        digest = blake3(data).digest()
        if self._indexed:
            uploads, link = self.lanes[index].uploads, self.lanes[index].link
            with self.recorder.lock:
                self._check()
                link.persist(lambda: uploads.ensure(digest, data))

                def adopt(segment: int) -> Adopt:
                    uploads.adopted(segment, digest)
                    return Adopt(segment, dtype, shape, digest)

                return self._bound(index, dtype, shape, data.nbytes, adopt)
        return self._pin(Upload(dtype, shape, bytes(data), digest, data.nbytes))

    def _bound(
        self,
        index: int,
        dtype: str,
        shape: tuple[int, ...],
        nbytes: int,
        message: Callable[[int], Put | Adopt],
    ) -> int:
        """A value on the device that the program has said. message: makes it, of a segment number."""
        with self.recorder.lock:
            self._check()
            with uninterrupted:
                segment = self.recorder.number()
                said = message(segment)
                self.lanes[index].post(said, nbytes if isinstance(said, Put) else 0)
                self.placement.holdings.uploaded((segment, 0), _facts(dtype, shape, nbytes))
                self.placement.holdings.arrived((segment, 0), index)
                self.placement.ledger.uploads(segment, index, nbytes, False)
            self._transmit()
            return segment

    def _pin(self, upload: Upload) -> int:
        with self.recorder.lock:
            self._check()
            segment = self.recorder.number()
            self.placement.uploaded(segment, upload, _facts(upload.dtype, upload.shape, upload.nbytes))
            return segment

    # -- generator and order

    def seed(self, seed: int, generator: int = 0, index: int = 0) -> None:
        """Where all executors are one device, all of them seed, and whoever is asked for numbers first draws from then
        on: state never has to travel."""
        if self._indexed:
            super().seed(seed, generator, index)
            return
        self._to_all(Seed(seed, generator))
        self._generators.add(generator)
        if self._generators == {0}:
            self.placement.generators = None

    def save_rng(self, generator: int = 0, index: int = 0) -> int:
        with self.recorder.lock:
            if not self._indexed:
                self._in_order(lambda: None)
                index = self.placement.generators or 0
            segment = super().save_rng(generator, index)
            made = Made(0, 0, index, _STATE, 0, _SAVING, NOTHING, "")
            self.placement.holdings.made((segment, 0), made, None, 0)
            return segment

    def load_rng(self, value: Value, generator: int = 0, index: int = 0) -> None:
        if value.home is not self.recorder:
            raise self.recorder.foreign(value)

        def post() -> None:
            at = index
            if not self._indexed:
                at = self.placement.generators = self.placement.generators or 0
            self.placement.bring((value.segment, value.code), at)
            self.lanes[at].post(LoadRng(generator, value.name))

        self._in_order(post)

    def default_dtype(self, name: str) -> None:
        self._to_all(DefaultDtype(name))

    def flag(self, setter: str, values: tuple[bool | int | str | None, ...]) -> None:
        self._to_all(Flag(setter, values))  # type: ignore[arg-type]

    def _to_all(self, message: ToExecutor) -> None:
        def post() -> None:
            for lane in self.lanes:
                lane.post(message)

        self._in_order(post)


def _facts(dtype: str, shape: tuple[int, ...], nbytes: int) -> Facts:
    numel = prod(shape)
    return Facts(dtype, tuple(shape), nbytes // numel if numel else 1)
