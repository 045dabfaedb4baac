"""How a remora tensor prints: as PyTorch prints any tensor of a device that is not the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import _tensor_str as printing


def text_of(tensor: torch.Tensor) -> str:
    """`repr`. Of a tensor that is printed in part, only the printed part is downloaded."""
    modes = torch.utils._python_dispatch._disable_current_modes()
    with torch.no_grad(), modes, torch._C.DisableTorchFunctionSubclass():
        guard = torch._C._DisableFuncTorch()  # noqa: F841  # as torch._tensor_str._str
        text = _whole(tensor)
    if tensor.__dict__.get("_is_param"):
        return f"Parameter containing:\n{text}"
    return text


def _whole(tensor: torch.Tensor) -> str:
    primal, tangent = torch.autograd.forward_ad.unpack_dual(tensor)
    name = type(tensor).__name__
    start = "tensor(" if name == "RemoraTensor" else f"{name}("
    contents = "[]" if not primal.numel() else _contents(primal, len(start))
    suffixes = [f"device='{tensor.device}'", *_shape_and_dtype(primal), *_history(tensor)]
    if tangent is not None:
        suffixes.append(f"tangent={tangent}")
    return printing._add_suffixes(start + contents, suffixes, len(start), force_newline=False)


def _contents(tensor: torch.Tensor, indent: int) -> str:
    options = printing.PRINT_OPTS
    if tensor.numel() <= options.threshold:
        return printing._tensor_str(tensor.detach().cpu(), indent)
    edges = _edges(tensor.detach(), options.edgeitems).cpu()
    # the edges are few, and are printed as the summary that they are
    with printing.printoptions(threshold=0):
        return printing._tensor_str(edges, indent)


def _edges(tensor: torch.Tensor, n: int) -> torch.Tensor:
    """Each long dimension cut to its first `n`, one to be left out, and its last `n` elements."""
    for dim, size in enumerate(tensor.shape):
        if size > 2 * n + 1:
            ends = (tensor.narrow(dim, 0, n + 1), tensor.narrow(dim, size - n, n))
            tensor = torch.cat(ends, dim) if n else ends[0]
    return tensor


def _shape_and_dtype(tensor: torch.Tensor) -> list[str]:
    empty = not tensor.numel()
    default = torch.get_default_dtype()
    plain: tuple[Any, ...] = (default,)
    if not empty:
        plain = (default, torch.cdouble if default is torch.double else torch.cfloat, torch.int64, torch.bool)
    found = []
    if tensor.dim() != 1 if empty else not printing.PRINT_OPTS.edgeitems:
        found.append(f"size={tuple(tensor.shape)}")
    if tensor.dtype not in plain:
        found.append(f"dtype={tensor.dtype}")
    return found


def _history(tensor: torch.Tensor) -> list[str]:
    try:
        node = tensor.grad_fn
    except RuntimeError:  # a view made under no_grad whose base was written to
        return ["grad_fn=<Invalid>"]
    if node is not None:
        name = type(node).__name__
        return [f"grad_fn=<{node.name().rsplit('::', 1)[-1] if name == 'CppFunction' else name}>"]
    return ["requires_grad=True"] if tensor.requires_grad else []
