"""`torch.autocast("remora")`: casts before ops, as PyTorch does on the device that the executor has.

PyTorch has these casts in C++ for each of its own devices; for another one they are kernels that are registered
here, when a program first makes an autocast context. Outside of such a context they cost nothing.
"""

from __future__ import annotations

from typing import Any

import torch

from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.ops.autocast import COME_APART, IN_PARTS, LISTED, POLICIES, WITH_DTYPE, Policy
from remora.ops.composites import COMPOSITES
from remora.ops.schema import op_name, traits

_KEY = torch._C.DispatchKey.AutocastPrivateUse1
_BELOW = torch._C._dispatch_keyset_full_after(_KEY)
_ONLY = torch._C.DispatchKeySet(_KEY)
_BANNED = (
    "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.\n"
    "Many models use a sigmoid layer right before the binary cross entropy layer.\n"
    "In this case, combine the two layers using torch.nn.functional.binary_cross_entropy_with_logits\n"
    "or torch.nn.BCEWithLogitsLoss.  binary_cross_entropy_with_logits and BCEWithLogits are\n"
    "safe to autocast."
)

_libraries: list[Any] = []
# Casts of weights, until the outermost context ends: the weight (which keeps its id its own) and the cast.
_casts: dict[tuple[int, torch.dtype, bool], tuple[torch.Tensor, torch.Tensor]] = {}


def supported_dtypes() -> list[torch.dtype]:
    """What every `torch.autocast("remora")` asks for first, so the kernels are there before it is entered."""
    if not _libraries:
        _register()
    return [torch.float16, torch.bfloat16]


def _register() -> None:
    through = torch.library.Library("_", "IMPL")
    through.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")
    _libraries.extend([through, library])
    for name in (*(POLICIES["cpu"] | POLICIES["cuda"]), *IN_PARTS):
        base, _, overload = name.partition(".")
        op = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
        if op is not None:
            library.impl(name, _kernel(op, name), "AutocastPrivateUse1", with_keyset=True)


def _kernel(op: Any, name: str) -> Any:
    policies = {kind: known[name] for kind, known in POLICIES.items() if name in known and _holds(kind, name)}
    in_parts = traits(op).composite and op_name(op) not in COMPOSITES
    dtype_place = next((at for at, a in enumerate(op._schema.arguments) if a.name == "dtype"), None)

    def kernel(keys: Any, *args: Any, **kwargs: Any) -> Any:
        bound.need()
        policy = policies.get(bound.device_type)
        if policy is None and (name in COME_APART or (in_parts and torch.is_inference_mode_enabled())):
            return op.decompose(*args, **kwargs)  # under inference_mode it would come apart below autocast
        if policy is None:
            return op.redispatch(keys & _BELOW, *args, **kwargs)
        with torch._C._ExcludeDispatchKeyGuard(_ONLY):
            if policy is Policy.LOWER or policy is Policy.FP32 or policy is Policy.PROMOTE:
                dtype = _dtype_for(policy, (*args, *kwargs.values()))
                return op(
                    *[_cast(item, dtype) for item in args],
                    **{key: _cast(item, dtype) for key, item in kwargs.items()},
                )
            if policy is Policy.BANNED:
                raise RuntimeError(_BANNED)
            if policy is Policy.FP32_OTHER:
                return _other(op, name, args, kwargs)
            if _eligible(args[0]) and kwargs.get("dtype") is None:
                if dtype_place is None or dtype_place >= len(args):
                    kwargs["dtype"] = torch.float32
                elif args[dtype_place] is None:
                    args = (*args[:dtype_place], torch.float32, *args[dtype_place + 1 :])
            return op(*args, **kwargs)

    return kernel


def _holds(kind: str, name: str) -> bool:
    """Whether the entry is one of this PyTorch version; what is not in PyTorch's lists at all always is."""
    listed = name in LISTED[kind]
    return not listed or torch._C._dispatch_has_kernel_for_dispatch_key(
        f"aten::{name}", f"Autocast{kind.upper()}"
    )


def _other(op: Any, name: str, args: Any, kwargs: Any) -> Any:
    """By the overload that takes a dtype, all of whose other arguments must be there."""
    arguments = op._schema.arguments
    given = [
        args[at] if at < len(args) else kwargs.get(a.name, a.default_value) for at, a in enumerate(arguments)
    ]
    other = getattr(torch.ops.aten.norm, WITH_DTYPE[name].partition(".")[2])
    return other(*given, dtype=torch.float32 if _eligible(args[0]) else args[0].dtype)


def _dtype_for(policy: Policy, items: Any) -> torch.dtype:
    if policy is Policy.FP32:
        return torch.float32
    lower = torch.get_autocast_dtype("remora")
    if policy is Policy.LOWER:
        return lower
    widest = lower
    for item in items:
        for tensor in item if isinstance(item, (list, tuple)) else (item,):
            if not _eligible(tensor):
                continue
            if tensor.dtype == torch.float32 or widest == torch.float32:
                widest = torch.float32
            elif tensor.dtype != lower:
                raise RuntimeError("Unexpected floating ScalarType in at::autocast::prioritize")
    return widest


def _eligible(item: Any) -> bool:
    return type(item) is RemoraTensor and item.is_floating_point() and item.dtype != torch.float64


def _cast(item: Any, dtype: torch.dtype) -> Any:
    if isinstance(item, (list, tuple)):
        return [_cast(each, dtype) for each in item]
    if not _eligible(item) or item.dtype == dtype:
        return item
    lasting = (
        dtype != torch.float32
        and item.dtype == torch.float32
        and item.requires_grad
        and item.is_leaf
        and not item._is_view()
        and torch.is_autocast_cache_enabled()
    )
    if not lasting:
        return item.to(dtype)
    key = (id(item), dtype, torch.is_grad_enabled())  # a cast that was made without history gives no gradient
    found = _casts.get(key)
    if found is None:
        found = _casts[key] = (item, item.to(dtype))
    return found[1]


def clear_with_pytorchs_cache() -> None:
    """The outermost context clears PyTorch's cache of casts at its end, and so this one."""
    clear = torch.clear_autocast_cache
    if hasattr(clear, "_remora"):
        return

    def clear_autocast_cache() -> None:
        _casts.clear()
        clear()

    clear_autocast_cache._remora = True  # type: ignore[attr-defined]
    torch.clear_autocast_cache = clear_autocast_cache


def probe_cache() -> str | None:
    key = (0, torch.float16, True)
    _casts[key] = (torch.empty(0), torch.empty(0))
    with torch.autocast("cpu", enabled=False):
        pass
    return None if key not in _casts else "casts of weights outlive their autocast context"
