"""Registers the device `remora` with PyTorch: once, when `import remora` asks for it."""

from __future__ import annotations

import atexit
import functools
from typing import Any

import torch
from torch.autograd import forward_ad

from remora.device.attention import attend
from remora.device.coexist import note_own_accelerator
from remora.device.ctc import register_ctc
from remora.device.dispatch import record
from remora.device.dropout import register_dropout
from remora.device.engine import StreamGuard
from remora.device.index import resolved
from remora.device.layouts import refuse_by_name
from remora.device.memo_store import store
from remora.device.module import DeviceModule
from remora.device.parts import in_parts, views_tracked
from remora.device.patches import PATCHES
from remora.device.recurrent import WITH_GRADIENT, register_recurrent, transposed_batch_wants_gradients
from remora.device.resize import through_copy
from remora.device.routes import install as install_routes
from remora.device.special import SPECIAL
from remora.device.storage import register_storages
from remora.device.tensor import RemoraTensor
from remora.device.zero_tensor import efficient_zeros
from remora.ops.composites import COMPOSITES, DIFFERENTIABLE
from remora.ops.schema import resolve

_libraries: list[Any] = []  # registrations end when their library dies
# Ops that make a tensor from nothing, by base name. Looking through all ops for them takes 0.1 s at every
# import; tests/unit/test_device_register.py looks, and fails when a PyTorch has more.
FACTORIES = frozenset(
    {"_efficientzerotensor", "arange", "bartlett_window", "blackman_window", "empty", "empty_permuted"}
    | {"empty_strided", "eye", "fft_fftfreq", "fft_rfftfreq", "full", "hamming_window", "hann_window"}
    | {"kaiser_window", "linspace", "logspace", "normal", "ones", "rand", "randint", "randn", "randperm"}
    | {"range", "scalar_tensor", "tril_indices", "triu_indices", "zeros"}
)


# how a composite is taken apart for autograd, where not in PyTorch's own way
_APART = {torch.ops.aten.scaled_dot_product_attention.default: attend, **WITH_GRADIENT}


# Composites that write no `out=` of a tensor subclass, or a part of it in a shape that no meta kernel takes.
_THROUGH_COPY = (
    "aten.matmul.out",
    "aten.linalg_matrix_rank.out",
    "aten.linalg_matrix_rank.out_tol_tensor",
    "aten.linalg_matrix_rank.atol_rtol_float_out",
    "aten.linalg_matrix_rank.atol_rtol_tensor_out",
)


def register() -> None:
    """Makes `torch.device("remora")` known. Idempotent."""
    if _libraries:
        return
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    note_own_accelerator()
    _setup_privateuseone_for_python_backend(
        "remora", backend_module=DeviceModule("torch.remora"), device_guard=StreamGuard()
    )
    RemoraTensor.__torch_dispatch__ = staticmethod(record)  # type: ignore[assignment,method-assign]
    library = torch.library.Library("aten", "IMPL")
    _libraries.append(library)
    _register_factories(library)
    _register_composites(library)
    for name in _THROUGH_COPY:
        op = resolve(name)
        library.impl(op.name(), through_copy(op), "AutogradPrivateUse1")
    register_dropout(library)
    register_recurrent(library)
    register_ctc(library)
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    library.impl("_local_scalar_dense", _number, "PrivateUse1")
    _libraries.extend(refuse_by_name())
    register_storages()
    install_routes()
    for patch in PATCHES:
        patch.apply()
    atexit.register(store.save)


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Any:
    return record(torch.ops.aten.copy_.default, (), (target, source), {}, 2)


def _number(tensor: Any) -> Any:
    """`torch.tensor([t, u])` asks for the numbers of tensors past `__torch_dispatch__`."""
    return SPECIAL[torch.ops.aten._local_scalar_dense.default](None, (tensor,), {})


def _register_factories(library: Any) -> None:
    """Ops that make a tensor from nothing have no tensor to dispatch on, so each gets a kernel."""
    for full_name in torch._C._dispatch_get_all_op_names():
        name, _, overload = full_name.removeprefix("aten::").partition(".")
        if name in FACTORIES and full_name.startswith("aten::"):
            op = getattr(getattr(torch.ops.aten, name), overload or "default", None)
            if op is not None and makes_from_nothing(op):
                kernel = efficient_zeros if name == "_efficientzerotensor" else _factory(op)
                library.impl(full_name.removeprefix("aten::"), kernel, "PrivateUse1")


def makes_from_nothing(op: Any) -> bool:
    """Whether the op takes a device and no tensor, and gives one tensor."""
    arguments = op._schema.arguments
    makes_tensor = len(op._schema.returns) == 1 and "Tensor" in str(op._schema.returns[0].type)
    takes_tensor = any("Tensor" in str(argument.type) for argument in arguments)
    return makes_tensor and not takes_tensor and any(argument.name == "device" for argument in arguments)


def _factory(op: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> Any:
        if kwargs.pop("pin_memory", None):
            raise RuntimeError("Only dense CPU tensors can be pinned")
        device = resolved(kwargs.get("device"))
        if kwargs.get("layout") not in (None, torch.strided):
            raise NotImplementedError(f"{op} with layout {kwargs['layout']} on the remora device")
        kwargs["device"] = device
        return record(op, (), args, kwargs, 2)

    return make


def _register_composites(library: Any) -> None:
    """Keeps a composite op whole where nothing needs a gradient; else PyTorch's own decomposition runs."""
    for name in COMPOSITES:
        op = resolve(name)
        kernel = _composite(op)
        if name not in DIFFERENTIABLE:
            library.impl(op.name(), kernel, "AutogradPrivateUse1")
        library.impl(op.name(), kernel, "PrivateUse1")


def _composite(op: Any) -> Any:
    grad_enabled = torch.is_grad_enabled
    apart = _APART.get(op, functools.partial(in_parts, op))
    # its kernel is chosen by what its inputs need, whether or not gradients are recorded
    asks = op is torch.ops.aten.scaled_dot_product_attention.default
    folds = _FOLDS.get(op)
    if folds is not None:
        SPECIAL[op] = _apart_if(folds, apart)
    n_modes = torch._C._len_torch_dispatch_stack

    def kernel(*args: Any, **kwargs: Any) -> Any:
        # inside a dual level any tensor may carry a tangent, which a whole row would lose
        if forward_ad._current_level >= 0 or not _stays_whole(args, kwargs, asks or grad_enabled()):
            return apart(*args, **kwargs)
        if n_modes():
            with torch._C._AutoDispatchBelowAutograd():  # a dispatch mode has to see the op
                return op(*args, **kwargs)
        return record(op, (), args, kwargs, 2)

    def product(*args: Any, **kwargs: Any) -> Any:
        if folds(*args):
            return apart(*args, **kwargs)
        return kernel(*args, **kwargs)

    return kernel if folds is None else product


def _apart_if(folds: Any, apart: Any) -> Any:
    """Under inference_mode a composite comes to the tensors' own dispatch, past its kernel."""

    def special(func: Any, args: Any, kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled() and folds(*args):
            with views_tracked():
                return apart(*args, **kwargs)
        return NotImplemented

    return special


def _linear_folds(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> bool:
    return weight.requires_grad and x.dim() > 2 and not _is_rows(x)


def _matmul_folds(x: torch.Tensor, y: torch.Tensor) -> bool:
    if x.requires_grad and x.dim() <= 2:
        return y.dim() > 2
    return y.requires_grad and y.dim() <= 2 < x.dim() and not _is_rows(x)


def _is_rows(x: torch.Tensor) -> bool:
    """Whether PyTorch folds it in any case. It reads the strides of dimensions of size 1 too."""
    shape, stride = x.shape, x.stride()
    return all(stride[i] == stride[i + 1] * shape[i + 1] for i in range(len(shape) - 2))


# Where PyTorch folds a batch into one product because a weight wants gradients, even if none are recorded now:
# other bits than a batched product, and the executor's weights want none.
_FOLDS = {
    torch.ops.aten.linear.default: _linear_folds,
    torch.ops.aten.matmul.default: _matmul_folds,
    torch.ops.aten.gru.input: transposed_batch_wants_gradients,
    torch.ops.aten.rnn_tanh.input: transposed_batch_wants_gradients,
    torch.ops.aten.rnn_relu.input: transposed_batch_wants_gradients,
}


def _stays_whole(args: Any, kwargs: Any, grad: bool) -> bool:
    """Whether no tensor among the arguments needs a gradient, nor is of a kind that only its parts can take."""
    for item in (*args, *kwargs.values()) if kwargs else args:
        kind = type(item)
        if kind is RemoraTensor:
            if grad and item.requires_grad:
                return False
        elif isinstance(item, torch.Tensor) or (
            (kind is list or kind is tuple) and not _stays_whole(item, {}, grad)
        ):
            return False
    return True


__all__ = ["RemoraTensor", "register"]
