"""A template compiled for this device: a list of instructions over registers.

Registers hold, in this order: slots, holes, constants, and one for each result. An instruction calls a
function on some registers and stores what it returns; lists are packed and multiple outputs are picked by
instructions of their own, so that the loop has one form.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import Any

import torch

from remora.errors import ProtocolError, UnsupportedOp
from remora.executor.worker.append import growing_kernel
from remora.executor.worker.bounds import Bounds
from remora.executor.worker.kernels import grows, kernel_of
from remora.executor.worker.readers import readers
from remora.executor.worker.writes import GENERATOR, Write, undoable, write_of
from remora.ir.graph import Template
from remora.ir.node import FREE, Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.dtypes import BY_NAME
from remora.ops.permission import CUSTOM_OPERATORS, argument_refusal, refusal
from remora.ops.schema import resolve, traits

CONTIGUOUS = ()
MAX_SHAPES_CHARS = 2000
Registers = list[Any]


@dataclass(frozen=True, slots=True)
class Instruction:
    """call: on the registers that `read` picks, which are `reads`. layout: None, or the layout to enforce on the
    result. drops: registers that nothing reads afterwards. writes: what it overwrites, which `run` does not look at."""

    call: Callable[..., Any]
    read: Callable[[Registers], tuple[Any, ...]]
    result: int
    layout: tuple[int, ...] | None
    row: int
    drops: tuple[int, ...] = ()
    writes: Write | None = None
    reads: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Program:
    """Runs with `run`; `keep` gives the registers of the outputs that live on. A program is equal to itself only.

    growing: those of them that may be views into a larger buffer (append.py). strict: slots that must not be.
    """

    instructions: tuple[Instruction, ...]
    constants: tuple[Any, ...]
    n_registers: int
    keep: tuple[tuple[int, int, int], ...]  # (row, out, register)
    random: bool
    grows: bool  # a storage may weigh more afterwards
    writes: bool  # an instruction has `writes`
    undoable: bool  # `undo.py` can undo all that it does
    growing: frozenset[int] = frozenset()
    strict: tuple[int, ...] = ()


class Failure(Exception):
    """A row raised. registers: what the rows before it have made; shapes: of its inputs."""

    def __init__(self, row: int, cause: Exception, registers: Registers, shapes: str = "") -> None:
        super().__init__(str(cause))
        self.row, self.cause, self.registers, self.shapes = row, cause, registers, shapes


def run(
    program: Program, slots: list[Any], holes: list[int | float], progress: Any, restrided: list[int]
) -> Registers:
    """Executes a program. Raises Failure. `restrided[0]` counts results that had to be laid out anew."""
    registers = fill(program, slots, holes)
    walk(program.instructions, registers, progress, restrided)
    return registers


def fill(program: Program, slots: list[Any], holes: list[int | float]) -> Registers:
    """The registers as a program finds them."""
    registers: Registers = [*slots, *holes, *program.constants]
    registers += [None] * (program.n_registers - len(registers))
    return registers


def walk(
    instructions: Sequence[Instruction], registers: Registers, progress: Any, restrided: list[int]
) -> None:
    """Executes instructions, in this order. Raises Failure."""
    instruction = None
    try:
        for instruction in instructions:
            progress[0] = instruction.row
            result = instruction.call(*instruction.read(registers))
            layout = instruction.layout
            if layout is not None and not (
                result.is_contiguous() if not layout else result.permute(layout).is_contiguous()
            ):
                result = restride(result, layout)
                restrided[0] += 1
            registers[instruction.result] = result
            for register in instruction.drops:
                registers[register] = None
    except Exception as error:
        assert instruction is not None
        shapes = _shapes(instruction.read(registers))[:MAX_SHAPES_CHARS]
        raise Failure(instruction.row, error, registers, shapes) from error


def before(program: Program, row: int) -> Program:
    """The rows of a program before `row`."""
    return replace(program, instructions=tuple(step for step in program.instructions if step.row < row))


def restride(tensor: torch.Tensor, layout: tuple[int, ...]) -> torch.Tensor:
    """A copy with the dimensions in the given order from the slowest to the fastest; () is C order."""
    if not layout:
        return tensor.contiguous()
    inverse = [layout.index(dim) for dim in range(len(layout))]
    return tensor.permute(layout).contiguous().permute(inverse)


def _shapes(items: tuple[Any, ...]) -> str:
    def text(item: Any) -> str | None:
        if isinstance(item, torch.Tensor):
            return f"{str(item.dtype).removeprefix('torch.')}{list(item.shape)}"
        if isinstance(item, (list, tuple)):
            inside = [found for found in map(text, item) if found]
            return f"[{', '.join(inside)}]" if inside else None
        return None

    return ", ".join(found for found in map(text, items) if found)


def compile_program(
    template: Template,
    keep: tuple[tuple[int, int], ...],
    device: torch.device,
    generator: Callable[[int], torch.Generator] | None = None,
    room_nbytes: Callable[[], int] | None = None,
    exact: bool = True,
    bounds: Bounds | None = None,
) -> Program:
    """A row that cannot be compiled raises when it is reached, so that the rows before it run.

    generator: gives the session's generator of an index, which is what rows bind for one.
    room_nbytes: what values may still take; without it, no tensor grows in place.
    exact: with the kernels that PyTorch itself would choose.
    bounds: brings indices into range, on a device that would not outlive one that is not.

    Raises:
        ProtocolError: `keep` names an output that the template does not have.
    """
    return _Compiler(template, keep, device, generator, room_nbytes, exact, bounds).compile()


class _Compiler:
    def __init__(
        self,
        template: Template,
        keep: tuple[tuple[int, int], ...],
        device: torch.device,
        generator: Callable[[int], torch.Generator] | None,
        room_nbytes: Callable[[], int] | None,
        exact: bool,
        bounds: Bounds | None,
    ) -> None:
        self.template, self.keep, self.device, self.generator = template, keep, device, generator
        self.room_nbytes, self.readers, self.exact = room_nbytes, readers(template, keep), exact
        self.bounds = bounds
        self.n_slots = template.n_slots
        self.hole = self.n_slots
        self.constants: list[Any] = []
        self.first_constant = self.n_slots + len(template.holes)
        self.steps: list[tuple[Callable[..., Any], list[int], int, tuple[int, ...] | None, int]] = []
        self.results: dict[tuple[int, int], int] = {}
        self.picked = self._used_outputs()
        self.next_virtual = -1  # results get negative numbers until the constants are counted
        self.random = False
        self.grows = False
        self.undoable = True
        self.writes: dict[int, Write] = {}  # by the number of the step
        self.row = 0

    def _used_outputs(self) -> dict[int, set[int]]:
        used: dict[int, set[int]] = {}
        for row, out in self.keep:
            if not (0 <= row < len(self.template.nodes) and out >= 0):
                raise ProtocolError(f"output {out} of row {row} is to be kept; there is none")
        for node in self.template.nodes:
            for arg in node.inputs():
                if isinstance(arg, Ref):
                    used.setdefault(arg.row, set()).add(arg.out)
        for row, out in self.keep:
            used.setdefault(row, set()).add(out)
        return used

    def compile(self) -> Program:
        for row, node in enumerate(self.template.nodes):
            try:
                self._row(row, node)
            except Exception as error:
                self.steps.append((_raiser(error), [], self._virtual(), None, row))
                break
        base = self.first_constant + len(self.constants)

        def register(number: int) -> int:
            return base - 1 - number if number < 0 else number

        keep = tuple(
            (row, out, register(self.results[row, out]))
            for row, out in self.keep
            if (row, out) in self.results
        )
        steps = [
            (call, [register(n) for n in reads], register(result), layout, row)
            for call, reads, result, layout, row in self.steps
        ]
        instructions = _with_drops(steps, {at for _, _, at in keep}, self.first_constant, base)
        growing = frozenset(at for row, _, at in keep if row in self.readers.growing)
        return Program(
            tuple(
                replace(step, writes=self.writes[at]) if at in self.writes else step
                for at, step in enumerate(instructions)
            ),
            tuple(self.constants),
            base - self.next_virtual,
            keep,
            self.random,
            self.grows,
            bool(self.writes),
            self.undoable,
            growing,
            self.readers.strict,
        )

    def _row(self, row: int, node: Node) -> None:
        self.row = row
        op = resolve_allowed(node.op)
        refused = argument_refusal(op, node)
        if refused is not None:
            raise UnsupportedOp(f"{node.op} is not allowed on this executor {refused}")
        known = traits(op)
        call = kernel_of(op, node, self.exact)
        if self.bounds is not None:
            call = self.bounds.checked(op, node, call)
        self.random = self.random or known.random
        self.grows = self.grows or grows(op)
        self.undoable = self.undoable and undoable(op)
        generators = _generator_places(op)
        reads = [
            self._generator(arg) if argument in generators else self._arg(arg)
            for argument, arg in [*enumerate(node.args), *node.kwargs]
        ]
        fresh = not known.mutates and not known.views
        single = known.n_returns == 1 and not _returns_list(op)
        used = self.picked.get(row, set())
        result = self._virtual()
        layout = _enforced(node, 0) if single and fresh else None
        if (writes := write_of(op, node)) is not None:
            self.writes[len(self.steps)] = writes
        if self.room_nbytes is not None and row in self.readers.growing:
            call, layout = growing_kernel(node, call, self.room_nbytes), None
        self.steps.append((call, reads, result, layout, row))
        if single:
            self.results[row, 0] = result
            return
        for out in sorted(used):
            picked = self._virtual()
            layout = _enforced(node, out) if fresh else None
            self.steps.append((itemgetter(out), [result], picked, layout, row))
            self.results[row, out] = picked

    def _virtual(self) -> int:
        number = self.next_virtual
        self.next_virtual -= 1
        return number

    def _arg(self, arg: Arg) -> int:
        match arg:
            case Ref(row, out):
                found = self.results.get((row, out))
                if found is None:
                    raise UnsupportedOp(f"row {row} has no output {out}")
                return found
            case Slot(index):
                return index
            case Hole():
                self.hole += 1
                return self.hole - 1
            case Items(items):
                reads = [self._arg(item) for item in items]
                result = self._virtual()
                self.steps.append((_pack, reads, result, None, self.row))
                return result
            case Const(value):
                return self._constant(value)
            case Symbol():
                return self._constant(self._symbol(arg))

    def _generator(self, arg: Arg) -> int:
        """A number that stands for a generator: it is looked up at each run."""
        if arg == Const(None):
            return self._arg(arg)
        if arg != Hole("int") or self.generator is None:
            raise UnsupportedOp(f"a generator is bound by its number, not by {arg}")
        reads, result = [self._arg(arg)], self._virtual()
        self.writes[len(self.steps)] = GENERATOR
        self.steps.append((self.generator, reads, result, None, self.row))
        return result

    def _constant(self, value: Any) -> int:
        self.constants.append(value)
        return self.first_constant + len(self.constants) - 1

    def _symbol(self, symbol: Symbol) -> Any:
        if symbol.kind == "device":
            return self.device
        if symbol.kind == "complex":
            return complex(symbol.name)
        if symbol.kind == "dtype":
            return BY_NAME[symbol.name]
        return getattr(torch, symbol.name)


def resolve_allowed(name: str) -> Any:
    """The op, if this PyTorch has it and clients may run it. Raises UnsupportedOp."""
    try:
        op = resolve(name)
    except LookupError as error:
        foreign = not name.startswith(("aten.", "prims."))
        raise UnsupportedOp(f"{error}. {CUSTOM_OPERATORS}" if foreign else str(error)) from None
    reason = refusal(op)
    if reason is not None:
        raise UnsupportedOp(f"{name} is not allowed on this executor: {reason}")
    return op


def _generator_places(op: Any) -> set[int | str]:
    """Positions and names of the arguments that are generators."""
    arguments = enumerate(op._schema.arguments)
    found = [(at, argument.name) for at, argument in arguments if "Generator" in str(argument.real_type)]
    return {place for pair in found for place in pair}


def _raiser(error: Exception) -> Callable[..., Any]:
    kind = UnsupportedOp if isinstance(error, UnsupportedOp) else ProtocolError
    text = str(error) or type(error).__name__

    def fail() -> Any:
        raise kind(text)  # a new one each time: an error holds the frames that it went through

    return fail


def _enforced(node: Node, out: int) -> tuple[int, ...] | None:
    """The layout that a fresh output gets; None leaves it as the kernel made it."""
    layout = node.layouts[out] if out < len(node.layouts) else CONTIGUOUS
    return None if layout == FREE else layout


def _pack(*items: Any) -> list[Any]:
    return list(items)


def _returns_list(op: Any) -> bool:
    returns = op._schema.returns
    return len(returns) == 1 and "List" in str(returns[0].type)


def _reader(registers: list[int]) -> Callable[[Registers], tuple[Any, ...]]:
    if len(registers) > 1:
        return itemgetter(*registers)
    if not registers:
        return lambda _: ()
    (only,) = registers
    return lambda items: (items[only],)


def _with_drops(
    steps: list[tuple[Callable[..., Any], list[int], int, tuple[int, ...] | None, int]],
    kept: set[int],
    first_constant: int,
    first_result: int,
) -> tuple[Instruction, ...]:
    """Adds to each instruction the registers that it reads, or writes, last."""
    seen: set[int] = set()
    drops: list[tuple[int, ...]] = []
    for _, reads, result, _, _ in reversed(steps):
        ends = {n for n in (*reads, result) if n >= first_result and n not in kept and n not in seen}
        seen |= ends
        drops.append(tuple(ends))
    drops.reverse()
    return tuple(
        Instruction(call, _reader(reads), result, layout, row, drop, reads=tuple(reads))
        for (call, reads, result, layout, row), drop in zip(steps, drops, strict=True)
    )
