"""Process-wide flags of PyTorch that change what ops compute: their setters, which a client's calls pass on.

A setting is a key and the values that the setter gets. Older interfaces for one thing come before newer ones, so
that setting all of them in this order ends where PyTorch starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Values = tuple[bool | int | str | None, ...]
Key = tuple[str, ...]

_FP32 = [("generic", "all")] + [
    (b, op) for b in ("cuda", "mkldnn") for op in ("all", "conv", "rnn", "matmul")
]


@dataclass(frozen=True)
class Flag:
    """setter: its name in `owner`. read: what it is set to now, as `write` takes it; None: PyTorch does not say."""

    setter: str
    read: Callable[[], Values] | None
    write: Callable[..., Any]
    owner: Any = torch._C

    @property
    def exists(self) -> bool:
        return hasattr(self.owner, self.setter)


def _plain(setter: str, getter: str) -> Flag:
    original = getattr(torch._C, setter, None)
    return Flag(setter, lambda: (getattr(torch._C, getter)(),), lambda *values: original(*values))  # type: ignore[misc]


def _enumeration(setter: str, getter: str, kind: str) -> Flag:
    original, members = (
        getattr(torch._C, setter, None),
        getattr(getattr(torch._C, kind, None), "__members__", {}),
    )

    def write(value: int) -> None:
        (found,) = [
            member for member in members.values() if int(member) == value
        ]  # C++ would take any number
        original(found)  # type: ignore[misc]

    return Flag(setter, lambda: (int(getattr(torch._C, getter)()),), write)


def _write_priority(*order: int) -> None:
    if sorted(order) != sorted(torch._C._get_sdp_priority_order()):
        raise ValueError(f"{order} is no order of the attention kernels")
    _priority(list(order))  # type: ignore[misc]


_deterministic = torch._C._set_deterministic_algorithms
_priority = getattr(torch._C, "_set_sdp_priority_order", None)
_fp32 = getattr(torch._C, "_set_fp32_precision_setter", None)
_flush = torch.set_flush_denormal
FP32_SETTER = "_set_fp32_precision_setter"
# These set each other too: the last call of all counts.
ENTANGLED = frozenset(
    {FP32_SETTER, "_set_float32_matmul_precision", "_set_cublas_allow_tf32", "_set_cudnn_allow_tf32"}
    | {"_set_onednn_allow_tf32"}
)
# What only the owner of a GPU can choose; a client that has none still says what its program chose.
PREFERENCES = frozenset({"_set_linalg_preferred_backend", "_set_blas_preferred_backend"})

FLAGS: dict[str, Flag] = {
    flag.setter: flag
    for flag in (
        Flag(
            "_set_deterministic_algorithms",
            lambda: (
                torch._C._get_deterministic_algorithms(),
                torch._C._get_deterministic_algorithms_warn_only(),
            ),
            lambda mode, warn_only=False: _deterministic(mode, warn_only=warn_only),
        ),
        _plain(
            "_set_deterministic_fill_uninitialized_memory", "_get_deterministic_fill_uninitialized_memory"
        ),
        _plain("_set_cudnn_enabled", "_get_cudnn_enabled"),
        _plain("_set_cudnn_benchmark", "_get_cudnn_benchmark"),
        _plain("_set_cudnn_deterministic", "_get_cudnn_deterministic"),
        _plain("_set_cudnn_depthwise_kernel", "_get_cudnn_depthwise_kernel"),
        _plain("_set_mkldnn_enabled", "_get_mkldnn_enabled"),
        _plain("_set_mkldnn_deterministic", "_get_mkldnn_deterministic"),
        _plain("_set_nnpack_enabled", "_get_nnpack_enabled"),
        _plain("_set_sdp_use_flash", "_get_flash_sdp_enabled"),
        _plain("_set_sdp_use_mem_efficient", "_get_mem_efficient_sdp_enabled"),
        _plain("_set_sdp_use_math", "_get_math_sdp_enabled"),
        _plain("_set_sdp_use_cudnn", "_get_cudnn_sdp_enabled"),
        _plain("_set_math_sdp_allow_fp16_bf16_reduction", "_get_math_sdp_allow_fp16_bf16_reduction"),
        Flag(
            "_set_sdp_priority_order",
            lambda: tuple(torch._C._get_sdp_priority_order()),
            _write_priority,
        ),
        _enumeration("_set_linalg_preferred_backend", "_get_linalg_preferred_backend", "_LinalgBackend"),
        _enumeration("_set_blas_preferred_backend", "_get_blas_preferred_backend", "_BlasBackend"),
        _plain(
            "_set_cublas_allow_fp16_reduced_precision_reduction",
            "_get_cublas_allow_fp16_reduced_precision_reduction",
        ),
        _plain(
            "_set_cublas_allow_bf16_reduced_precision_reduction",
            "_get_cublas_allow_bf16_reduced_precision_reduction",
        ),
        _plain("_set_cublas_allow_fp16_accumulation", "_get_cublas_allow_fp16_accumulation"),
        _plain("_set_float32_matmul_precision", "_get_float32_matmul_precision"),
        _plain("_set_cublas_allow_tf32", "_get_cublas_allow_tf32"),
        _plain("_set_cudnn_allow_tf32", "_get_cudnn_allow_tf32"),
        _plain("_set_onednn_allow_tf32", "_get_onednn_allow_tf32"),
        Flag(FP32_SETTER, None, lambda backend, op, precision: _fp32(backend, op, precision)),  # type: ignore[misc]
        Flag("set_flush_denormal", None, lambda value: _flush(value), torch),
    )
}


def key_of(setter: str, values: Values) -> Key:
    """What a call sets: calls with one key override each other."""
    return (setter, *map(str, values[:2])) if setter == FP32_SETTER else (setter,)


def values_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Values:
    """A setter's arguments as they travel."""
    flat: list[bool | int | str | None] = []
    for item in (*args, *kwargs.values()):
        if isinstance(item, (list, tuple)):
            flat += [each if isinstance(each, bool) else int(each) for each in item]
        else:
            flat.append(item if item is None or isinstance(item, (bool, int, str)) else int(item))
    return tuple(flat)


def write(setter: str, values: Values) -> None:
    """Sets a flag of this process. Raises LookupError: this PyTorch has none of that name; else what PyTorch does."""
    flag = FLAGS.get(setter)
    if flag is None or not flag.exists:
        raise LookupError(f"torch {torch.__version__} has no setting {setter!r}")
    if None not in values:  # what was read so had never been set
        flag.write(*values)


def current() -> list[tuple[str, Values]]:
    """What all flags are set to, in an order that gives the same state again. What PyTorch cannot tell, because
    its older and newer interfaces were mixed, is left out."""
    found: list[tuple[str, Values]] = []
    for setter, flag in FLAGS.items():
        if flag.read is not None and flag.exists:
            try:
                found.append((setter, values_of(flag.read(), {})))
            except (RuntimeError, AttributeError):
                continue
    if hasattr(torch._C, FP32_SETTER):
        found += [(FP32_SETTER, (b, op, torch._C._get_fp32_precision_getter(b, op))) for b, op in _FP32]
    found.append(("set_flush_denormal", (False,)))
    return [(setter, values) for setter, values in found if None not in values]


PRISTINE = {
    key_of(setter, values): values
    for setter, values in (
        ("_set_deterministic_algorithms", (False, False)),
        ("_set_deterministic_fill_uninitialized_memory", (True,)),
        ("_set_cudnn_enabled", (True,)),
        ("_set_cudnn_benchmark", (False,)),
        ("_set_cudnn_deterministic", (False,)),
        ("_set_cudnn_depthwise_kernel", ("auto",)),
        ("_set_mkldnn_enabled", (True,)),
        ("_set_mkldnn_deterministic", (False,)),
        ("_set_nnpack_enabled", (True,)),
        ("_set_sdp_use_flash", (True,)),
        ("_set_sdp_use_mem_efficient", (True,)),
        ("_set_sdp_use_math", (True,)),
        ("_set_sdp_use_cudnn", (True,)),
        ("_set_math_sdp_allow_fp16_bf16_reduction", (False,)),
        ("_set_sdp_priority_order", (1, 2, 0, 3, 4)),
        ("_set_cublas_allow_fp16_reduced_precision_reduction", (True, True)),
        ("_set_cublas_allow_bf16_reduced_precision_reduction", (True, True)),
        ("_set_cublas_allow_fp16_accumulation", (False,)),
        ("_set_float32_matmul_precision", ("highest",)),
        ("_set_cublas_allow_tf32", (False,)),
        ("_set_cudnn_allow_tf32", (True,)),
        *(
            (FP32_SETTER, (b, op, "tf32" if (b, op) in (("cuda", "conv"), ("cuda", "rnn")) else "none"))
            for b, op in _FP32
        ),
        ("set_flush_denormal", (False,)),
    )
}
"""What PyTorch starts with."""
