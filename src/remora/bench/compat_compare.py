"""One op of PyTorch's OpInfo database on remora and on the CPU: values, shapes, strides, dtypes, gradients.

The CPU's inputs have the strides that the same tensors have on remora, and both sides are seeded alike, so that
equal means equal bits.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_map

import remora
from remora.errors import Disconnected, NotSupported, SessionLost, UnsupportedOp

DTYPES = (torch.float32, torch.int64, torch.bool)
SAMPLES = 3
LOOKED_AT = 48  # samples made, of which SAMPLES are taken, the first and the last among them
SEED = 1234
# What these give is whatever the memory held: only shape, strides and dtype are the program's business.
UNSET = frozenset(
    {"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"}
    | {"resize_", "resize_as_", "nn.functional.rrelu_noise"}
)

# Their index tensors are the CPU's on every device: PyTorch reads them while it makes views.
ARGUMENTS_STAY = frozenset({"tensor_split"})


@dataclass(frozen=True)
class Failure:
    """What differed. kind: values, shape, strides, dtype, gradient, local, refused, error."""

    kind: str
    case: str
    reason: str


class _Differs(Exception):
    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


@dataclass
class Verdict:
    """compared: calls that the CPU made and remora had to make alike; 0 means that the op is skipped."""

    compared: int
    failures: list[Failure]


def full_name(op: Any) -> str:
    """`name` or `name.variant`, unique in op_db."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def check(op: Any, samples: int = SAMPLES) -> Verdict:
    """Compares every case of one op.

    Raises:
        SessionLost: the executor's worker died of it.
    """
    verdict = Verdict(0, [])
    for dtype in DTYPES:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for number, sample in enumerate(_samples(op, dtype, samples)):
            for variant, run in _variants(op, sample, dtype):
                case = f"{str(dtype).removeprefix('torch.')} sample {number} {variant}"
                _compare(op, sample, run, case, verdict)
    return verdict


Run = Callable[[Any, Any], Any]
"""Takes the arm's own sample and the device, and gives everything that is to be compared."""


def _compare(op: Any, sample: Any, run: Run, case: str, verdict: Verdict) -> None:
    there = _on_remora(op, sample)
    here = _like(sample, there)
    try:
        expected = _call(run, here, "cpu")
    except Exception:  # what the CPU refuses says nothing about remora
        return
    verdict.compared += 1
    try:
        found = _call(run, there, "remora")
        _equal(expected, found, case, op.name in UNSET)
    except (SessionLost, Disconnected):
        raise
    except _Differs as wrong:
        verdict.failures.append(Failure(wrong.kind, case, str(wrong)))
    except (NotSupported, UnsupportedOp) as error:
        verdict.failures.append(Failure("refused", case, _line(error)))
    except Exception as error:
        verdict.failures.append(Failure("error", case, f"{type(error).__name__}: {_line(error)}"))


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else text[:237] + "..."


def _call(run: Run, sample: Any, device: str) -> Any:
    torch.manual_seed(SEED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return run(sample, device)


# -- samples


def _samples(op: Any, dtype: torch.dtype, wanted: int) -> list[Any]:
    torch.manual_seed(SEED)
    grad = dtype.is_floating_point and op.supports_autograd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(itertools.islice(op.sample_inputs("cpu", dtype, requires_grad=grad), LOOKED_AT))
    last = len(found) - 1
    picked = sorted({round(last * n / max(wanted - 1, 1)) for n in range(wanted)}) if found else []
    return [found[n] for n in picked]


def _on_remora(op: Any, sample: Any) -> Any:
    """The sample on remora, or why it cannot be there."""
    moved: dict[int, torch.Tensor] = {}
    stay = [id(item) for item in _tensors(sample.args)] if op.name in ARGUMENTS_STAY else []

    def move(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if id(item) in stay:
                return item
            if id(item) not in moved:
                with torch.no_grad():
                    moved[id(item)] = item.detach().to("remora").requires_grad_(item.requires_grad)
            return moved[id(item)]
        return item

    try:
        return _map(move, sample)
    except NotSupported as error:
        return error


def _like(sample: Any, there: Any) -> Any:
    """The sample on the CPU, in tensors of its own with the strides that they have on remora."""
    strides = {}
    if not isinstance(there, Exception):
        for item, moved in zip(_tensors(_content(sample)), _tensors(_content(there)), strict=True):
            if item.layout == moved.layout == torch.strided:
                strides[id(item)] = moved.stride()
    copies: dict[int, torch.Tensor] = {}

    def copy(item: Any) -> Any:
        if isinstance(item, torch.Tensor):
            if id(item) not in copies:
                copied = item.detach().clone()
                if id(item) in strides:
                    copied = torch.empty_strided(item.shape, strides[id(item)], dtype=item.dtype).copy_(
                        copied
                    )
                copies[id(item)] = copied.requires_grad_(item.requires_grad)
            return copies[id(item)]
        return item

    return _map(copy, sample)


def _content(sample: Any) -> Any:
    return (sample.input, sample.args, sample.kwargs)


def _map(change: Callable[[Any], Any], sample: Any) -> Any:
    from torch.testing._internal.opinfo.core import SampleInput

    return SampleInput(
        tree_map(change, sample.input),
        args=tree_map(change, tuple(sample.args)),
        kwargs=tree_map(change, dict(sample.kwargs)),
        output_process_fn_grad=sample.output_process_fn_grad,
        broadcasts_input=sample.broadcasts_input,
    )


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def _arguments(sample: Any, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(sample, Exception):
        raise sample

    def place(item: Any) -> Any:
        if item == "cpu" or (isinstance(item, torch.device) and item.type == "cpu"):
            return torch.device(device)
        return item

    args = tree_map(place, (sample.input, *sample.args))
    kwargs = {name: tree_map(place, item) for name, item in sample.kwargs.items()}
    if not _tensors((args, kwargs)):
        kwargs["device"] = device  # what makes a tensor from nothing makes it there
    return args, kwargs


# -- variants


def _variants(op: Any, sample: Any, dtype: torch.dtype) -> Iterator[tuple[str, Run]]:
    """What is tried on one sample: each gives the outputs, and the inputs as they are afterwards."""

    def plain(sample: Any, device: str) -> Any:
        args, kwargs = _arguments(sample, device)
        with torch.no_grad():
            out = op.op(*args, **kwargs)
        return {"output": out, "input": [] if op.name in ARGUMENTS_STAY else _tensors((args, kwargs))}

    yield "", plain
    if dtype.is_floating_point and op.supports_autograd:
        yield "gradient", lambda sample, device: _gradients(op, sample, device)
    if op.inplace_variant is not None and not sample.broadcasts_input:
        yield "in-place", lambda sample, device: _in_place(op, sample, device)
    if op.supports_out:
        yield "out=", lambda sample, device: _out(op, sample, device, resized=False)
        yield "out= resized", lambda sample, device: _out(op, sample, device, resized=True)


def _gradients(op: Any, sample: Any, device: str) -> Any:
    args, kwargs = _arguments(sample, device)
    out = op.op(*args, **kwargs)
    leaves = [leaf for leaf in _tensors((args, kwargs)) if leaf.requires_grad]
    outs = [leaf for leaf in _tensors(out) if leaf.requires_grad]
    if not outs or not leaves:
        raise NotImplementedError("nothing to differentiate")
    generator = torch.Generator().manual_seed(SEED)
    seeds = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(device) for leaf in outs]
    grads = torch.autograd.grad(outs, leaves, seeds, allow_unused=True)
    return {"output": out, "gradient": grads}


def _in_place(op: Any, sample: Any, device: str) -> Any:
    args, kwargs = _arguments(sample, device)
    with torch.no_grad():
        out = op.inplace_variant(*args, **kwargs)
    return {"output": out, "input": _tensors((args, kwargs)), "is its input": out is args[0]}


def _out(op: Any, sample: Any, device: str, resized: bool) -> Any:
    args, kwargs = _arguments(sample, device)
    with torch.no_grad():
        like = op.op(*args, **kwargs)
        if not all(isinstance(item, torch.Tensor) for item in ([like] if _single(like) else like)):
            raise NotImplementedError("out= takes tensors")

        def blank(item: torch.Tensor) -> torch.Tensor:
            if resized:
                return torch.zeros(0, dtype=item.dtype, device=item.device)
            return torch.zeros_like(item)

        out = blank(like) if _single(like) else tuple(map(blank, like))
        torch.manual_seed(SEED)
        given = op.op(*args, **kwargs, out=out)
    same = [a is b for a, b in zip(_tensors((given,)), _tensors((out,)), strict=True)]
    return {"output": out, "input": _tensors((args, kwargs)), "is out=": same}


def _single(out: Any) -> bool:
    return isinstance(out, torch.Tensor)


# -- comparison


def _equal(expected: Any, found: Any, case: str, unset: bool) -> None:
    """Raises _Differs."""
    for part, tree in expected.items():
        here, here_spec = tree_flatten(tree)
        there, there_spec = tree_flatten(found[part])
        if str(here_spec) != str(there_spec):
            raise _Differs("shape", f"{part}: {there_spec} and not {here_spec}")
        for a, b in zip(here, there, strict=True):
            _equal_leaf(a, b, "gradient" if part == "gradient" else "values", part, unset)


def _equal_leaf(a: Any, b: Any, kind: str, part: str, unset: bool) -> None:
    if not isinstance(a, torch.Tensor):
        same = a == b or (a != a and b != b)
        if not same:
            raise _Differs(kind, f"{part}: {b!r} and not {a!r}")
        return
    if type(b).__name__ != "RemoraTensor" or b.device != torch.device("remora", 0):
        raise _Differs("local", f"{part}: a {type(b).__name__} on {b.device}")
    if a.dtype != b.dtype:
        raise _Differs("dtype", f"{part}: {b.dtype} and not {a.dtype}")
    if a.layout != b.layout:
        raise _Differs("shape", f"{part}: layout {b.layout} and not {a.layout}")
    if a.shape != b.shape:
        raise _Differs("shape", f"{part}: {tuple(b.shape)} and not {tuple(a.shape)}")
    if a.layout == torch.strided and not _same_strides(a, b):
        raise _Differs("strides", f"{part}: {b.stride()} and not {a.stride()}, shape {tuple(a.shape)}")
    if a.storage_offset() != b.storage_offset():
        raise _Differs("strides", f"{part}: offset {b.storage_offset()} and not {a.storage_offset()}")
    if not unset:
        _equal_bits(a.detach(), b.detach().cpu(), kind, part)


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Strides of dimensions of one element, and of empty tensors, say nothing."""
    if not a.numel():
        return True
    return all(n == 1 or x == y for n, x, y in zip(a.shape, a.stride(), b.stride(), strict=True))


def _equal_bits(a: torch.Tensor, b: torch.Tensor, kind: str, part: str) -> None:
    a, b = (x.resolve_conj().resolve_neg().contiguous() for x in (a, b))
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.is_floating_point():
        nan = a.isnan()
        if not torch.equal(nan, b.isnan()):
            raise _Differs(kind, f"{part}: NaN elsewhere than on the CPU")
        a, b = a.masked_fill(nan, 0), b.masked_fill(nan, 0)
        different = (a != b) | (a.signbit() != b.signbit())
    else:
        different = a != b
    if different.any():
        at = different.flatten().nonzero()[0, 0]
        n = int(different.sum())
        text = f"{b.flatten()[at].item()!r} and not {a.flatten()[at].item()!r}"
        raise _Differs(kind, f"{part}: {n} of {a.numel()} differ, the first is {text}")


def recover() -> None:
    """Drops what a failed op left in the session: the failure that the next op would be told of."""
    for _ in range(3):
        try:
            torch.remora.synchronize()
        except (SessionLost, Disconnected):
            raise
        except remora.errors.RemoraError:
            continue
        return
