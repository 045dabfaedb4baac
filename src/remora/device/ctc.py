"""CTC loss: its lengths are numbers that the client has, and they tell the shapes of what it gives."""

# T steps, N sequences, C classes

from __future__ import annotations

from typing import Any

import torch

from remora.device.across import index_of_call
from remora.device.infer import Outcome
from remora.device.meta import contiguous_meta
from remora.device.special import SPECIAL

aten = torch.ops.aten
_DEPTH = 5  # frames from the record made here to the program: _loss, special, learn, record


def _loss(log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, rest: Any) -> Any:
    """log_probs [T, N, C] to the losses [N] and what backward needs, [N, T, 2 * longest target + 1]."""
    from remora.device.dispatch import record

    (steps, n, _), dtype = log_probs.shape, log_probs.dtype
    inside = contiguous_meta((n, steps, 2 * max(target_lengths, default=0) + 1), dtype)
    args = (log_probs, targets, input_lengths, target_lengths, *rest)
    index = index_of_call(aten._ctc_loss.default, args, {})
    outcome = Outcome((contiguous_meta((n,), dtype), inside), False, container=tuple).at(index)
    return record(aten._ctc_loss.default, (), args, {}, _DEPTH, outcome)


def _backward(args: Any, input_lengths: Any, target_lengths: Any) -> Any:
    from remora.device.dispatch import record

    log_probs = args[1]
    args = (*args[:3], input_lengths, target_lengths, *args[5:])
    index = index_of_call(aten._ctc_loss_backward.default, args, {})
    outcome = Outcome((contiguous_meta(tuple(log_probs.shape), log_probs.dtype),), True).at(index)
    return record(aten._ctc_loss_backward.default, (), args, {}, _DEPTH, outcome)


SPECIAL[aten._ctc_loss.default] = lambda func, args, kwargs: _loss(*args[:4], args[4:])
SPECIAL[aten._ctc_loss_backward.default] = lambda func, args, kwargs: _backward(args, args[3], args[4])


def _ctc_loss(log_probs: Any, targets: Any, input_lengths: Any, target_lengths: Any, *rest: Any) -> Any:
    """Lengths that came as tensors are read, as other devices do; what came from the client costs no wait."""
    return aten.ctc_loss.IntList(log_probs, targets, input_lengths.tolist(), target_lengths.tolist(), *rest)


def register_ctc(library: Any) -> None:
    for key in ("AutogradPrivateUse1", "PrivateUse1"):
        library.impl("ctc_loss.Tensor", _ctc_loss, key)
    SPECIAL[aten.ctc_loss.Tensor] = lambda func, args, kwargs: _ctc_loss(*args)
