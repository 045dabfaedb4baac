"""Generators of the devices: `torch.Generator("remora")`, the default ones, and their states.

A generator lives on the executor and is drawn from there, so its numbers are those of the executor's device. The
client knows its number in the session and its seed. A state stays on the executor by name until it is read, so
that `fork_rng` and checkpointing wait for nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch.utils._pytree import tree_map

from remora.capture.recorder import Recorder
from remora.capture.value import Kept, Value
from remora.device import index as indices
from remora.device.index import current, device_at, index_of
from remora.device.meta import contiguous_meta
from remora.device.sink import bound
from remora.errors import Disconnected, NotSupported
from remora.wire.limits import MAX_GENERATORS

_PyTorchs = torch._C.Generator
FIRST_SEED = _PyTorchs().initial_seed()  # what PyTorch starts every generator from
_STATE_NBYTES = {"cpu": _PyTorchs().get_state().numel(), "cuda": 16}  # cuda: seed and offset

_by_impl: WeakValueDictionary[int, RemoraGenerator] = WeakValueDictionary()
_free_numbers: defaultdict[int, deque[int]] = defaultdict(
    deque
)  # by device: a number never changes its device
_n_numbers = 1  # 0 is the default generator's, on each device


class RngState(torch.Tensor):
    """A generator's state: a uint8 CPU tensor whose bytes are fetched when something looks at them."""

    _value: Value
    _seed: int
    _real: torch.Tensor | None

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            return func(*tree_map(_read, args), **tree_map(_read, kwargs or {}))


def _read(item: Any) -> Any:
    if type(item) is not RngState:
        return item
    state: torch.Tensor | None = item.__dict__["_real"]
    if state is None:
        value = item.__dict__["_value"]
        recorder, sink = bound.need()
        if value.home is not recorder:
            raise recorder.foreign(value)
        (fetched,) = sink.fetch([value])
        state = torch.frombuffer(bytearray(fetched.data or b""), dtype=torch.uint8)
        item.__dict__["_real"] = state
    return state


class RemoraGenerator(_PyTorchs):
    """A `torch.Generator` on the remora device. Its draws are recorded rows; nothing here waits for them.

    It is PyTorch's CPU generator by birth, so that PyTorch's argument parser takes it, and nobody draws from that.
    """

    index: int  # of its device
    _number: int
    _seed: int
    _session: str | None  # where the executor knows it; None: nowhere yet, it starts from its seed there

    def __new__(cls, number: int, index: int) -> RemoraGenerator:
        self = _PyTorchs.__new__(cls, "cpu")
        self._number, self._seed, self._session, self.index = number, FIRST_SEED, None, index
        _by_impl[self._cdata] = self
        return self

    def __init__(self, number: int, index: int) -> None: ...

    def __del__(self) -> None:
        if self._number:
            _free_numbers[self.index].append(self._number)  # whoever gets it seeds it first

    def __repr__(self) -> str:
        return f"<torch.Generator of device {self.device} at {id(self):#x}>"

    @property
    def device(self) -> torch.device:
        return device_at(self.index)

    def manual_seed(self, seed: int) -> RemoraGenerator:
        _PyTorchs.manual_seed(self, seed)  # raises for what is no seed, and maps a negative one
        self._seed = _PyTorchs.initial_seed(self)
        self._session = None
        if bound.sink is not None:
            self._introduce()
        return self

    def seed(self) -> int:
        """Seeds with a number from the operating system, and returns it."""
        seed = _PyTorchs().seed()
        self.manual_seed(seed)
        return seed

    def initial_seed(self) -> int:
        return self._seed

    def get_state(self) -> torch.Tensor:
        number = self._settle()
        recorder, sink = bound.need()
        state = torch.Tensor._make_subclass(RngState, torch.empty(0, dtype=torch.uint8, device="meta"))
        meta = contiguous_meta((_state_nbytes(),), torch.uint8)
        value = Kept(recorder, sink.save_rng(number, index_of(self.index)), 0, meta)
        state.__dict__.update(_value=value, _seed=self._seed, _real=None)
        return state

    def set_state(self, new_state: torch.Tensor) -> RemoraGenerator:
        """Raises TypeError, RuntimeError: it is no state of a generator of the executor's device."""
        recorder, sink = bound.need()
        unread = type(new_state) is RngState and new_state.__dict__["_real"] is None
        if unread:
            value, seed = new_state.__dict__["_value"], new_state.__dict__["_seed"]
        else:
            state = _checked(_read(new_state))
            value, seed = _uploaded(state, self.index), _seed_in(state)
        sink.load_rng(value, self._number, index_of(self.index))
        self._session, self._seed = recorder.session, seed
        return self

    def clone_state(self) -> RemoraGenerator:
        """A new generator that continues from the same state."""
        return _generator(self.index).set_state(self.get_state())

    def get_offset(self) -> int:
        raise NotSupported("the offset of a generator of the remora device; use get_state()")

    def set_offset(self, offset: int) -> None:
        raise NotSupported("the offset of a generator of the remora device; use set_state()")

    def graphsafe_get_state(self) -> Any:
        raise NotSupported("graph-safe states of a generator of the remora device; use get_state()")

    def graphsafe_set_state(self, state: Any) -> Any:
        raise NotSupported("graph-safe states of a generator of the remora device; use set_state()")

    def __reduce__(self) -> Any:
        return _rebuilt, (self.get_state().clone(), self._seed, self.index)

    def _settle(self) -> int:
        """The generator's number, with the executor knowing it. Raises Disconnected: its state is gone."""
        recorder, _ = bound.need()
        if self._session not in (None, recorder.session):
            raise Disconnected(
                f"the state of this generator was in session {self._session}, which has ended; "
                f"the current session is {recorder.session}. Seed it again with manual_seed()"
            )
        if self._session is None:
            self._introduce()
        return self._number

    def _introduce(self) -> None:
        recorder, sink = bound.need()
        sink.seed(self._seed, self._number, index_of(self.index))
        self._session = recorder.session


class _Default(RemoraGenerator):
    """The generator of what names none, on a device. Each session starts it from its seed."""

    _seeded = False  # by the program, for this device

    def manual_seed(self, seed: int) -> RemoraGenerator:
        self._seeded = True
        return super().manual_seed(seed)

    def initial_seed(self) -> int:
        return self._seed if self._seeded else int(torch.initial_seed())

    def set_state(self, new_state: torch.Tensor) -> RemoraGenerator:
        super().set_state(new_state)
        self._seeded = True
        return self

    def _settle(self) -> int:
        bound.need()
        return self._number


_defaults: list[_Default] = []


def default(index: int = 0) -> RemoraGenerator:
    """The default generator of a device."""
    while len(_defaults) <= index:
        _defaults.append(_Default(0, len(_defaults)))
    return _defaults[index]


class Defaults(Sequence[RemoraGenerator]):
    """The default generators of all devices."""

    def __len__(self) -> int:
        return bound.n_devices

    def __getitem__(self, at: Any) -> Any:
        return tuple(map(default, range(len(self))))[at]


defaults = Defaults()


def generator_of(generator: _PyTorchs) -> RemoraGenerator:
    """One of ours, as PyTorch's argument parser has given it on. Raises RuntimeError: it is of another device."""
    ours = _by_impl.get(generator._cdata)
    if ours is None:
        kind = generator.device.type
        raise RuntimeError(f"Expected a 'remora' device type for generator but found '{kind}'")
    return ours


def number_of(generator: _PyTorchs, recorder: Recorder) -> int | None:
    """The number that a recorded row binds for a generator; None: it has to be introduced to the executor first.

    Raises:
        RuntimeError: it is a generator of another device.
    """
    ours = generator_of(generator)
    return ours._number if ours._session == recorder.session or not ours._number else None


def introduce(generator: _PyTorchs) -> None:
    """Lets the session's executor know a generator that was made or seeded before."""
    _by_impl[generator._cdata]._settle()


def _generator(index: int) -> RemoraGenerator:
    global _n_numbers
    try:
        return RemoraGenerator(_free_numbers[index].popleft(), index)
    except IndexError:
        if _n_numbers >= MAX_GENERATORS:
            raise NotSupported(
                f"more than {MAX_GENERATORS - 1} generators of the remora device at a time"
            ) from None
        _n_numbers += 1
        return RemoraGenerator(_n_numbers - 1, index)


def _rebuilt(state: torch.Tensor, seed: int, index: int = 0) -> RemoraGenerator:
    generator = _generator(index_of(index)).set_state(state)
    generator._seed = seed
    return generator


def _state_nbytes() -> int:
    bound.need()
    return _STATE_NBYTES[bound.device_type]


def _checked(state: Any) -> torch.Tensor:
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8 or state.device.type != "cpu":
        raise TypeError("RNG state must be a torch.ByteTensor")
    if state.numel() != _state_nbytes():
        raise RuntimeError(
            f"RNG state is wrong size: {state.numel()} bytes, and the executor's device "
            f"({bound.need()[1].executor_device}) has states of {_state_nbytes()}"
        )
    return state.detach().contiguous()


def _uploaded(state: torch.Tensor, index: int) -> Value:
    recorder, sink = bound.need()
    segment = sink.put("uint8", (state.numel(),), state.numpy().tobytes(), index)
    return Kept(recorder, segment, 0, contiguous_meta((state.numel(),), torch.uint8))


def _seed_in(state: torch.Tensor) -> int:
    if state.numel() == _STATE_NBYTES["cuda"]:
        return int.from_bytes(state[:8].numpy().tobytes(), "little")
    return _PyTorchs().set_state(state.clone()).initial_seed()


# torch.Generator


class _Generators(type(_PyTorchs)):  # type: ignore[misc]  # newer versions have a metaclass
    """Of the class that stands for PyTorch's: it makes PyTorch's own generators for its own devices, knows all of
    them as instances, and can be derived from as PyTorch's can."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        if cls is not Generator:
            return super().__call__(*args, **kwargs)
        device = args[0] if args else kwargs.get("device", "cpu")
        meant = indices.local_device(device)
        if meant.type != "remora":
            return _PyTorchs(*args, **kwargs)
        return _generator(index_of(meant))

    def __instancecheck__(cls, item: Any) -> bool:
        return isinstance(item, _PyTorchs) if cls is Generator else super().__instancecheck__(item)

    def __subclasscheck__(cls, kind: Any) -> bool:
        return issubclass(kind, _PyTorchs) if cls is Generator else super().__subclasscheck__(kind)


class Generator(_PyTorchs, metaclass=_Generators):
    __doc__ = _PyTorchs.__doc__


def replace_generator() -> None:
    torch.Generator = Generator  # type: ignore[misc]


def probe_generator() -> str | None:
    if type(torch.Generator()) is not _PyTorchs:
        return "torch.Generator() makes something else"
    return None if torch.Generator is Generator else "torch.Generator knows nothing of remora"


# torch.remora


def manual_seed(seed: int) -> None:
    """Of the current device."""
    default(current()).manual_seed(int(seed))


def manual_seed_all(seed: int) -> None:
    for generator in defaults:
        generator.manual_seed(int(seed))


def seed() -> None:
    default(current()).seed()


def seed_all() -> None:
    """All devices from one number of the operating system."""
    manual_seed_all(_PyTorchs().seed())


def initial_seed() -> int:
    return default(current()).initial_seed()


def get_rng_state(device: Any = "remora") -> torch.Tensor:
    """The default generator's state, of a size that depends on the executor's device. Waits for nothing."""
    return default(index_of(device)).get_state()


def set_rng_state(new_state: torch.Tensor, device: Any = "remora") -> None:
    default(index_of(device)).set_state(new_state)


def get_rng_state_all() -> list[torch.Tensor]:
    return [generator.get_state() for generator in defaults]


def set_rng_state_all(new_states: Any) -> None:
    for index, state in enumerate(new_states):
        default(index_of(index)).set_state(state)
