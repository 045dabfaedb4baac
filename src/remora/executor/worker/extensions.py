"""Operators beside PyTorch's own: from modules that whoever runs the executor named, never from a client."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import torch

from remora.ops.permission import allow_namespaces

# Namespaces that importing parts of PyTorch brings: a module that uses them does not thereby offer them.
_PYTORCHS = frozenset(
    {"_c10d_functional", "_c10d_functional_autograd", "_dtensor", "_inductor_test", "_native", "_quantized"}
    | {
        "_test",
        "aten",
        "c10d",
        "c10d_functional",
        "debug_mode_ops",
        "debugprims",
        "export",
        "flex_lib",
        "fsdp",
    }
    | {"higher_order", "inductor", "inductor_prims", "mkl", "mkldnn", "mkldnn_prepacked", "onednn", "onnx"}
    | {"onnx_symbolic", "prim", "prims", "profiler", "quantization", "quantized", "quantized_decomposed"}
    | {"rngprims", "sparse", "static_runtime", "streams", "symm_mem"}
)


class ExtensionError(Exception):
    """A module that the executor was to be started with cannot be used; says which and why."""


def load(modules: Iterable[str]) -> frozenset[str]:
    """Imports the modules and allows the namespaces of the operators that they define; returns those.

    Raises:
        ExtensionError: a module cannot be imported, or defines no operator.
    """
    allowed: set[str] = set()
    for module in modules:
        before = _namespaces()
        try:
            importlib.import_module(module)
        except Exception as error:
            raise ExtensionError(
                f"--ops {module}: it cannot be imported: {type(error).__name__}: {error}"
            ) from error
        defined = _namespaces() - before - _PYTORCHS
        if not defined:
            raise ExtensionError(
                f"--ops {module}: importing it defines no operator of a namespace of its own"
            )
        allowed |= defined
    allow_namespaces(allowed)
    return frozenset(allowed)


def _namespaces() -> set[str]:
    return {name.partition("::")[0] for name in torch._C._dispatch_get_all_op_names()}
