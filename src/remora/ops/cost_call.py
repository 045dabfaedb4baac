"""What rules of cost are given and what they give."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import prod
from typing import Any, TypeVar

from remora.ir.annotated import Facts

T = TypeVar("T")
Value = Any
"""An argument of a call: Facts for a tensor, else a number, bool, word, tuple of these, or None."""


class Kind(StrEnum):
    """What a device does with a row; each kind has rates of its own."""

    FREE = "free"  # nothing runs but the call itself
    PRODUCT = "product"
    CONVOLUTION = "convolution"
    ATTENTION = "attention"
    MOVE = "move"  # copies and cheap arithmetic: as fast as memory
    MATH = "math"  # exp, tanh, pow, random numbers: bound by arithmetic on a CPU
    REDUCE = "reduce"  # sums, norms, softmax
    GATHER = "gather"  # rows by index
    SORT = "sort"
    FACTOR = "factor"  # decompositions and solvers


@dataclass(frozen=True, slots=True)
class Work:
    """flops: a multiply-add counts as two. kernels: calls of the device's own functions, if more than one.

    dtype: what is computed in, as in ops/dtypes.py; '' if nothing is computed.
    """

    flops: int
    bytes_read: int
    bytes_written: int
    kind: Kind = Kind.MOVE
    kernels: int = 1
    dtype: str = ""

    @property
    def nbytes(self) -> int:
        return self.bytes_read + self.bytes_written


FREE = Work(0, 0, 0, Kind.FREE)


@dataclass(frozen=True, slots=True)
class Call:
    """One call, with its arguments as what they look like.

    read: bytes of all inputs, each memory once. covered: bytes of each input. outs: of each output; None if only the
    data tells. fresh: those outputs that lie in no input. written: bytes of the inputs that it writes.
    """

    base: str
    args: tuple[Value, ...]
    kwargs: dict[str, Value]
    inputs: tuple[Facts | None, ...]
    read: int
    covered: tuple[int, ...]
    outs: tuple[Facts | None, ...]
    fresh: tuple[Facts | None, ...]
    written: int

    def arg(self, at: int, name: str, default: Value = None) -> Value:
        """An argument by position, or by name if it is not given by position."""
        return self.args[at] if at < len(self.args) else self.kwargs.get(name, default)

    def tensor(self, at: int) -> Facts:
        """A tensor argument by position; an empty one where there is none, or only the data tells its shape."""
        found = self.args[at] if at < len(self.args) else None
        return found if isinstance(found, Facts) else NO_TENSOR

    @property
    def made(self) -> int:
        """Bytes of the fresh outputs; where only the data tells, at most those of the largest input."""
        most = max(self.covered, default=0)
        return sum([most if facts is None else facts.nbytes for facts in self.fresh])

    @property
    def out(self) -> Facts:
        """The first output, or the first input where the row has no outputs of its own."""
        for facts in (*self.outs, *self.inputs):
            if facts is not None:
                return facts
        return NO_TENSOR

    @property
    def n_out(self) -> int:
        """Elements that the row makes: of fresh outputs and of what it writes, or of the largest of both."""
        made = sum([prod(facts.shape) for facts in self.fresh if facts is not None])
        return max(made, self.written // max(1, self.out.itemsize), 0)

    def work(
        self,
        flops: int,
        kind: Kind,
        read: int | None = None,
        written: int | None = None,
        kernels: int = 1,
    ) -> Work:
        """Work with the default's bytes where none are given."""
        return Work(
            flops,
            self.read if read is None else read,
            self.made + self.written if written is None else written,
            kind,
            kernels,
            self.out.dtype,
        )


NO_TENSOR = Facts("", (0,), 0)


def every(rule: T, names: str) -> dict[str, T]:
    """One rule for all of these ops."""
    return dict.fromkeys(names.split(), rule)


def numel(facts: Facts) -> int:
    return prod(facts.shape)


def default(call: Call) -> Work:
    """Elementwise: inputs are read, outputs written, one operation an output element."""
    return call.work(call.n_out, Kind.MOVE)
