"""Random PyTorch programs as lines of source, the same for every device.

A program is made while it runs on the CPU: a line that PyTorch refuses there is left out, unless it is the last
one, a backward pass, which both devices must refuse then. What a failing test prints runs as it is:

    torch.manual_seed(1); device = "remora"; <the lines>
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import torch

FLOATS = (torch.float32, torch.float64)
DTYPES = ("float32", "float32", "float32", "float64", "int64", "int32", "bool", "complex64")
MAX_NUMEL = 4096


class Refused(Exception):
    """No line of this kind fits what there is."""


class Program:
    """The lines so far, and on the CPU what they made."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.lines: list[str] = []
        self.env: dict[str, Any] = self.environment("cpu")
        self.gradients = self.rng.random() < 0.7
        self.raises: type[Exception] | None = None
        torch.manual_seed(seed % 2**31)
        for _ in range(2):
            self.add(factory)
        for _ in range(self.rng.randint(6, 18)):
            self.add(self.rng.choice(KINDS))
        self._backward()
        self._run_again()

    def environment(self, device: str) -> dict[str, Any]:
        """What the lines find when they run on a device."""
        return {"torch": torch, "device": device}

    def add(self, kind: Callable[[Program], str]) -> None:
        """Adds a line of a kind, if one is found that the CPU takes."""
        for _ in range(4):
            drawn = torch.get_rng_state()
            try:
                line = kind(self)
                run_line(line, self.env)
            except Refused:
                return
            except Exception:  # PyTorch's refusals are of every type
                torch.set_rng_state(drawn)
                continue
            if any(t.numel() > MAX_NUMEL for t in self.tensors().values()):
                raise AssertionError(f"{line} makes too much")
            self.lines.append(line)
            return

    def _backward(self) -> None:
        """A gradient of everything that has one; a failing backward is part of the program."""
        names = [name for name, t in self.tensors().items() if t.requires_grad and t.dtype in FLOATS]
        if not names:
            return
        total = " + ".join(
            f"({name} * {name}).sum().double()" for name in self.rng.sample(names, min(3, len(names)))
        )
        line = f"loss = {total}; loss.backward()"
        self.lines.append(line)

    def _run_again(self) -> None:
        """The program alone: what was asked of tensors while it was made, autograd remembers. It ends with the line
        that raises, if there is one."""
        self.env = self.environment("cpu")
        torch.manual_seed(self.seed % 2**31)
        for number, line in enumerate(self.lines):
            try:
                run_line(line, self.env)
            except Exception as error:  # PyTorch's refusals are of every type
                self.raises = type(error)
                del self.lines[number + 1 :]

    # -- choices

    def tensors(self) -> dict[str, torch.Tensor]:
        return {name: t for name, t in self.env.items() if isinstance(t, torch.Tensor)}

    def tensor(self, fits: Callable[[torch.Tensor], bool] = lambda t: True) -> tuple[str, torch.Tensor]:
        found = [(name, t) for name, t in self.tensors().items() if fits(t)]
        if not found:
            raise Refused
        return self.rng.choice(found)

    def shares_memory(self, t: torch.Tensor) -> bool:
        """Whether there is a view of what `t` views, or of `t`."""
        base = t._base if t._base is not None else t
        return any(x is not t and (x is base or x._base is base) for x in self.tensors().values())

    def refuse_views_with_gradients(self, t: torch.Tensor) -> None:
        """For what changes a shape: PyTorch replays a view for a subclass, where it keeps the strides of its own."""
        if self.gradients and (t._base is not None or self.shares_memory(t)):
            raise Refused

    def new(self) -> str:
        return f"t{sum(isinstance(v, torch.Tensor) for v in self.env.values())}"

    def shape(self) -> list[int]:
        return [self.rng.choice((0, 1, 2, 2, 3, 3, 4)) for _ in range(self.rng.randint(0, 3))]

    def dim(self, t: torch.Tensor) -> int:
        return self.rng.randrange(-t.dim(), t.dim()) if t.dim() else 0

    def number(self) -> float | int:
        return self.rng.choice((0, 1, 2, -3, 0.5, -1.25, 1e-3))


def run_line(line: str, env: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(line, env)


# -- kinds of lines


def factory(p: Program) -> str:
    shape, dtype = p.shape(), p.rng.choice(DTYPES)
    rest = f"dtype=torch.{dtype}, device=device"
    makes = [f"torch.zeros({shape}, {rest})", f"torch.full({shape}, {int(p.number())}, {rest})"]
    makes += [f"torch.arange({p.rng.randint(0, 24)}, device=device)"]
    makes += [
        f"torch.randint(-4, 5, {shape}, device=device)",
        f"torch.eye({p.rng.randint(0, 4)}, device=device)",
    ]
    normal = rest if dtype in ("float64", "complex64") else "device=device"  # integers only if there are none
    makes += [f"torch.rand({shape}, device=device)", f"torch.randn({shape}, {normal})"] * 3
    makes += [f"torch.linspace(-1, 1, {p.rng.randint(0, 6)}, device=device)"]
    makes += [f"torch.tensor({[p.number() for _ in range(p.rng.randint(0, 5))]}, device=device)"]
    if p.gradients:
        makes += [f"torch.randn({shape}, device=device).requires_grad_()"] * 4
    return f"{p.new()} = {p.rng.choice(makes)}"


def view(p: Program) -> str:
    name, t = p.tensor()
    d, e = p.dim(t), p.dim(t)
    size = t.shape[d] if t.dim() else 1
    start = p.rng.randint(0, size)
    calls = [f".transpose({d}, {e})", f".unsqueeze({p.dim(t)})", ".squeeze()", f".squeeze({d})", ".detach()"]
    calls += [f".narrow({d}, {start}, {p.rng.randint(0, size - start)})", f".select({d}, {start - 1})"]
    calls += [".reshape(-1)", ".flatten()", ".diagonal()", f".movedim({d}, {e})", ".mT", ".view(-1)"]
    calls += [
        f".unfold({d}, {p.rng.randint(1, 3)}, {p.rng.randint(1, 2)})",
        f".expand({p.rng.randint(1, 3)}, *{list(t.shape)})",
    ]
    calls += [
        f"[..., {p.rng.randint(-2, 2)}]",
        f"[::{p.rng.randint(1, 3)}]",
        "[None]",
        f"[{start}:]",
        "[..., 1:]",
    ]
    calls += [
        f".chunk({p.rng.randint(1, 3)}, {d})[-1]",
        f".split({p.rng.randint(1, 2)}, {d})[0]",
        ".real",
        ".conj()",
    ]
    calls += [
        f".as_strided([2, 2], [{p.rng.randint(2, 3)}, 1], {p.rng.randint(0, 2)})",
        ".view_as(t0)",
        ".unbind(0)[-1]",
    ]
    if t.is_complex():
        calls += [".imag", ".conj()"] * 3
    return f"{p.new()} = {name}{p.rng.choice(calls)}"


def in_place(p: Program) -> str:
    # what overlaps itself, PyTorch writes or refuses to write by rules of each kernel
    name, t = p.tensor(lambda t: 0 not in [s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1])
    # what reads the memory that it writes, PyTorch takes or refuses by rules of each kernel too
    other, x = p.tensor(lambda x: x.untyped_storage().data_ptr() != t.untyped_storage().data_ptr())
    if x.requires_grad and not t.is_floating_point():
        other += ".detach()"  # integers with a gradient are half allowed
    n, d, e = p.number(), p.dim(t), p.dim(t)
    calls = [
        f".add_({other})",
        f".mul_({n})",
        f".sub_({other}, alpha=2)",
        ".zero_()",
        f".fill_({int(n)})",
        ".neg_()",
    ]
    calls += [
        f".copy_({other})",
        ".clamp_(-1, 2)",
        f".masked_fill_({name} > 0, {int(n)})",
        ".abs_()",
        ".sigmoid_()",
    ]
    calls += [
        f".index_fill_({d}, torch.tensor([0], device=device), {int(n)})",
        f".transpose_({d}, {e})",
        ".t_()",
    ]
    calls += [".unsqueeze_(0)", ".squeeze_()", ".uniform_()", ".bernoulli_(0.5)", f".div_({other})"]
    calls += [f".index_add_({d}, torch.tensor([0, 0], device=device), {other})", ".cumsum_(0)", ".tril_()"]
    calls += [
        f"[0] = {other}",
        f"[..., :1] = {n}",
        f"[{name} > 0] = {int(n)}",
        f"[torch.tensor([0, -1])] = {int(n)}",
    ]
    calls += [
        f".random_(0, 9); {name} += 1",
        f".scatter_({d}, torch.zeros_like({name}, dtype=torch.int64), {int(n)})",
    ]
    if t.dtype in FLOATS:
        calls += [".normal_()", ".exponential_()"]
    line = f"{name}{p.rng.choice(calls)}"
    if any(word in line for word in ("transpose_", "squeeze_", ".t_()")):
        p.refuse_views_with_gradients(t)
    if t.requires_grad and p.shares_memory(t):
        return line
    if (t.requires_grad and t.is_leaf) or p.rng.random() < 0.2:
        return f"with torch.no_grad(): {line}"
    return line


def combine(p: Program) -> str:
    (a, t), (b, _), (c, _) = p.tensor(), p.tensor(), p.tensor()
    d = p.dim(t)
    same = [name for name, x in p.tensors().items() if x.shape == t.shape]
    calls = [
        f"{a} + {b}",
        f"{a} * {b}",
        f"{a} - {p.number()}",
        f"{a} / 3",
        f"{p.number()} * {a}",
        f"{a} @ {b}.to({a}.dtype)",
    ]
    calls += [f"torch.where({a} > 0, {b}, {c})", f"torch.maximum({a}, {b})", f"torch.matmul({a}, {a}.mT)"]
    calls += [
        f"torch.cat([{a}, {p.rng.choice(same)}], {d})",
        f"torch.stack([{a}, {p.rng.choice(same)}], {d})",
    ]
    calls += [
        f"{a}.exp()",
        f"{a}.tanh()",
        f"torch.relu({a})",
        f"{a}.to(torch.{p.rng.choice(DTYPES)})",
        f"{a}.clone()",
    ]
    calls += [
        f"{a} == {b}",
        f"~({a} > 0)",
        f"{a}.softmax({d})",
        f"torch.nn.functional.silu({a})",
        f"{a}.contiguous()",
    ]
    calls += [f"torch.add({a}, {b}, out=torch.empty(0, device=device))", f"{a}.roll(1, {d})", f"{a}.flip(0)"]
    calls += [f"torch.nn.functional.dropout({a}, 0.5)", f"torch.outer({a}.flatten(), {a}.flatten())[:3, :3]"]
    calls += [
        f"torch.einsum('...i,...i->...', {a}, {b}.to({a}.dtype))",
        f"torch.nn.functional.layer_norm({a}, {a}.shape[-1:])",
    ]
    return f"{p.new()} = {p.rng.choice(calls)}"


def index(p: Program) -> str:
    (a, t), (b, _) = p.tensor(), p.tensor()
    d = p.dim(t)
    calls = [f"{a}[{a} > 0]", f"{a}[torch.tensor([0, -1, 0], device=device)]", f"{a}[{b}]", f"{a}.nonzero()"]
    calls += [
        f"{a}[..., torch.tensor([0])]",
        f"{a}.masked_select({b} > 0)",
        f"{a}.sort({d})[0]",
        f"{a}.argsort({d}, stable=True)",
    ]
    calls += [
        f"{a}.index_select({d}, torch.tensor([0, 0], device=device))",
        f"{a}.unique()",
        f"{a}.topk(1, {d})[0]",
    ]
    calls += [
        f"{a}.gather({d}, torch.zeros_like({a}, dtype=torch.int64))",
        f"{a}.take(torch.tensor([0], device=device))",
    ]
    calls += [
        f"list({a})[-1]",
        f"torch.tensor(len({a}), device=device)",
        f"torch.tensor({a}.tolist(), device=device)",
    ]
    calls += [
        f"{a} if {b}.sum() > 0 else {b}",
        f"{a}[int(({b} > 0).sum()) % 2]",
        f"torch.bincount({a})",
        f"{a}.argwhere()",
    ]
    return f"{p.new()} = {p.rng.choice(calls)}"


def reduce(p: Program) -> str:
    a, t = p.tensor()
    if t.requires_grad and p.rng.random() < 0.5:
        a += ".detach()"
    d, keep = p.dim(t), p.rng.random() < 0.4
    rest = f"{d}, keepdim={keep}"
    calls = [f"{a}.sum()", f"{a}.sum({rest})", f"{a}.mean({rest})", f"{a}.amax({rest})"]
    calls += [
        f"{a}.max({rest})[{p.rng.randint(0, 1)}]",
        f"{a}.any({rest})",
        f"{a}.all()",
        f"{a}.argmin()",
        f"{a}.cumsum({d})",
    ]
    calls += [
        f"{a}.std()",
        f"{a}.var({rest})",
        f"{a}.norm()",
        f"{a}.logsumexp({rest})",
    ]
    calls += [
        f"{a}.count_nonzero()",
        f"{a}.diff(dim={d})",
        f"{a}.trace()",
    ]
    if "detach" in a or not t.requires_grad:  # these gradients have another formula for a subclass
        calls += [f"{a}.median()", f"{a}.min()", f"torch.aminmax({a})[0]"]
        calls += [f"{a}.prod({rest})", f"{a}.cumprod({d})"]
    return f"{p.new()} = {p.rng.choice(calls)}"


def resize(p: Program) -> str:
    name, t = p.tensor()
    smaller = [
        size
        for size in ([], [0], [1], [1, 1], [2], [1, 2], [2, 2])
        if torch.Size(size).numel() <= (t.numel() if t.is_contiguous() else 0)
    ]
    other, _ = p.tensor(lambda x: not x.requires_grad and x.dtype == t.dtype)
    p.refuse_views_with_gradients(t)
    if p.gradients or p.rng.random() < 0.5:
        return f"{name}.resize_({p.rng.choice(smaller)})"
    return f"{name}.set_({other})"


KINDS = [factory, view, view, view, in_place, in_place, in_place, combine, combine, index, reduce, resize]
