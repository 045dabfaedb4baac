"""What rules of separating a batch are given and what they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

from remora.ir.annotated import Facts

Value = Any
"""An argument of a call: an Operand, else a number, bool, word, tuple of these, or None."""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor argument. at: its place among the row's tensors. dim: along which the batch lies, its entries one after
    the other, each with an equal share of the dimension; None: it has no batch, or has not been cut yet."""

    at: int
    shape: tuple[int, ...]
    dim: int | None

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def numel(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Batched:
    """One call of which some inputs lie in a batch. count: entries of the batch."""

    base: str
    overload: str
    args: tuple[Value, ...]
    kwargs: dict[str, Value]
    operands: tuple[Operand, ...]
    outs: tuple[Facts | None, ...]
    count: int

    def arg(self, at: int, name: str, default: Value = None) -> Value:
        """An argument by position, or by name if it is not given by position."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    @property
    def first(self) -> Operand:
        """The first tensor argument."""
        return self.operands[0]

    @property
    def others_are_whole(self) -> bool:
        """Whether the first tensor alone lies in a batch."""
        return self.first.dim is not None and all(operand.dim is None for operand in self.operands[1:])

    def along(self, outs: int | tuple[int | None, ...] | None, **more: Any) -> Separation:
        """Each input as it lies; one `outs` for all outputs, or one for each."""
        dims = tuple(operand.dim for operand in self.operands)
        found = outs if isinstance(outs, tuple) else (outs,) * len(self.outs)
        return Separation(dims, found, **more)

    def whole(self, *operands: Value) -> bool:
        """Whether none of these lies in a batch."""
        return all(not isinstance(one, Operand) or one.dim is None for one in operands)


@dataclass(frozen=True, slots=True)
class Separation:
    """How a batch goes through a row: made on slices of it and concatenated, the outputs are those of the whole.

    ins: for each tensor input the dimension along which it is to be cut; None: every slice reads all of it. outs: for
    each output the dimension along which slices are concatenated; None: it is the same for every slice. sizes: numbers
    among the arguments, by position and place in a list (None: no list), that are sizes of the batch. pure: the call
    writes nothing, whatever its schema says.
    """

    ins: tuple[int | None, ...]
    outs: tuple[int | None, ...]
    sizes: tuple[tuple[int, int | None], ...] = ()
    pure: bool = False


Rule = Callable[[Batched], Separation | None]
"""None: the batch does not separate here."""


def wrapped(dim: int, ndim: int) -> int | None:
    """A dimension counted from the front; None: there is none."""
    return dim % ndim if ndim and -ndim <= dim < ndim else None


def dims_of(value: Value, ndim: int) -> tuple[int, ...] | None:
    """Dimensions that an argument names, counted from the front; None: all of them, or something else."""
    given = (value,) if isinstance(value, int) else value
    if not isinstance(given, tuple) or not given:
        return None
    found = [wrapped(dim, ndim) for dim in given]
    return tuple(dim for dim in found if dim is not None) if None not in found else None
