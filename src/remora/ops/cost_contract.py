"""Cost of products, convolutions, attention, recurrent networks and linear algebra: a multiply-add is two operations.

The counts are those of torch.utils.flop_counter where it counts an op at all, except that groups of a convolution
and causal masks count for the less that they leave to compute.
"""

# B batch, H heads, T query tokens, S key tokens, D head dim

from __future__ import annotations

from collections.abc import Callable
from math import isqrt, prod

from remora.ir.annotated import Facts
from remora.ops.cost_call import Call, Kind, Work, every, numel

GATE_KERNELS = 4  # of one step of a recurrent cell, where no fused kernel runs the whole sequence
ENCODER_KERNELS = 12  # products, attention, norms and sums of a layer that is one row
BACKWARD_PRODUCTS = 2.5  # of attention: the scores again, then two products for each of the two forward


def _product(left: int) -> Callable[[Call], Work]:
    """Output elements times the last dimension of the left factor, which is argument `left`."""

    def rule(call: Call) -> Work:
        a = call.tensor(left)
        return call.work(2 * call.n_out * (a.shape[-1] if a.shape else 1), Kind.PRODUCT)

    return rule


def reduced_product(call: Call) -> Work:
    """addbmm: a sum over the batch of products."""
    a, b = call.tensor(1), call.tensor(2)
    return call.work(2 * numel(a) * (b.shape[-1] if b.shape else 1), Kind.PRODUCT)


def tensordot(call: Call) -> Work:
    """Each element of a product of the two meets those of the other that share its contracted index:
    sqrt(a · b · out) multiply-adds."""
    a, b = call.tensor(0), call.tensor(1)
    return call.work(2 * isqrt(numel(a) * numel(b) * call.n_out), Kind.PRODUCT)


def bilinear(call: Call) -> Work:
    """x1 [.., I], x2 [.., J], weight [O, I, J]."""
    x, weight = call.tensor(0), call.tensor(2)
    rows = numel(x) // max(1, x.shape[-1])
    return call.work(2 * rows * numel(weight) + 2 * call.n_out * weight.shape[-1], Kind.PRODUCT)


def grouped(call: Call) -> Work:
    """Products of groups: by the jagged dimension, which is in one, the other, or both factors."""
    a, b = call.tensor(0), call.tensor(1)
    k, groups = a.shape[-1], 1
    if len(a.shape) == len(b.shape) == 2:
        groups = max(1, call.out.shape[0] if call.out.shape else 1)
    return call.work(2 * call.n_out * k // groups, Kind.PRODUCT)


def distances(call: Call) -> Work:
    a = call.tensor(0)
    return call.work(3 * call.n_out * (a.shape[-1] if a.shape else 1), Kind.PRODUCT)


# -- convolutions


def convolution(call: Call) -> Work:
    transposed = call.base.startswith("conv_transpose") or call.arg(6, "transposed") is True
    return call.work(
        _convolution_flops(call.tensor(0), call.tensor(1), call.out, transposed), Kind.CONVOLUTION
    )


def convolution_backward(call: Call) -> Work:
    """As much as forward for each of the two gradients that is asked for."""
    grad, x, weight = call.tensor(0), call.tensor(1), call.tensor(2)
    mask = call.arg(10, "output_mask", (True, True, True))
    asked = sum([wanted is True for wanted in mask[:2]]) if isinstance(mask, tuple) else 2
    flops = asked * _convolution_flops(x, weight, grad, call.arg(7, "transposed") is True)
    return call.work(flops, Kind.CONVOLUTION)


def _convolution_flops(x: Facts, weight: Facts, out: Facts, transposed: bool) -> int:
    """weight [O, I / groups, kernel…]; transposed [I, O / groups, kernel…]: each element of the side with all
    channels meets one filter."""
    side = x if transposed else out
    return 2 * numel(side) * (numel(weight) // max(1, weight.shape[0] if weight.shape else 1))


# -- attention


def _attention(causal_at: int) -> Callable[[Call], Work]:
    def rule(call: Call) -> Work:
        q, k, v = call.tensor(0), call.tensor(1), call.tensor(2)
        flops = _attention_flops(q, k, v, call.arg(causal_at, "is_causal") is True)
        return call.work(flops, Kind.ATTENTION)

    return rule


def _attention_backward(causal_at: int) -> Callable[[Call], Work]:
    def rule(call: Call) -> Work:
        q, k, v = call.tensor(1), call.tensor(2), call.tensor(3)
        flops = _attention_flops(q, k, v, call.arg(causal_at, "is_causal") is True)
        return call.work(int(BACKWARD_PRODUCTS * flops), Kind.ATTENTION)

    return rule


def _attention_flops(q: Facts, k: Facts, v: Facts, causal: bool) -> int:
    """q [B, H, T, D], k and v [B, H, S, D]: two products over the pairs of tokens that see each other. A mask that
    is a tensor hides nothing from the kernel."""
    if len(q.shape) < 2 or len(k.shape) < 2 or len(v.shape) < 1:
        return 0
    t, d = q.shape[-2:]
    s = k.shape[-2]
    pairs = t * s
    if causal:
        seen = min(t, s)
        pairs = seen * (seen + 1) // 2 + (t - seen) * s
    return 2 * prod(q.shape[:-2]) * pairs * (d + v.shape[-1])


def encoder(call: Call) -> Work:
    """A transformer's layer, or its attention, in one row: each matrix of weights meets each token of x [B, T, E] once,
    and each token every other one."""
    x = call.tensor(0)
    if len(x.shape) != 3:
        return call.work(call.n_out, Kind.PRODUCT)
    b, t, e = x.shape
    weights = [
        facts
        for facts in call.inputs
        if facts is not None and len(facts.shape) == 2 and facts.dtype != "bool"
    ]
    flops = 2 * b * t * sum(map(numel, weights)) + 4 * b * t * t * e
    return call.work(flops, Kind.PRODUCT, kernels=ENCODER_KERNELS)


# -- recurrent networks, whole


def recurrent(call: Call) -> Work:
    """Each weight matrix meets each token once; those of the hidden state, half of them, are read at every step."""
    x = call.tensor(0)
    lists = [
        arg
        for arg in reversed(call.args)
        if isinstance(arg, tuple) and any(isinstance(w, Facts) for w in arg)
    ]
    params = max(lists, key=len) if call.base != "mkldnn_rnn_layer" and lists else call.args[1:3]
    weights = [facts for facts in params if isinstance(facts, Facts) and len(facts.shape) == 2]
    tokens = numel(x) // max(1, x.shape[-1] if x.shape else 1)
    steps = _steps(call, x)
    again = sum([facts.nbytes for facts in weights]) // 2 * max(0, steps - 1)
    kernels = max(1, GATE_KERNELS * steps * (len(weights) // 2))
    flops = 2 * tokens * sum([numel(facts) for facts in weights])
    return call.work(flops, Kind.PRODUCT, read=call.read + again, kernels=kernels)


def _steps(call: Call, x: Facts) -> int:
    """x [T, B, I], or [B, T, I] if the last argument says so, or [T, I], or packed, with the batch sizes [T]."""
    sizes = call.tensor(1)
    if len(sizes.shape) == 1 and sizes.dtype == "int64":
        return sizes.shape[0]
    batch_first = len(x.shape) == 3 and call.args[-1] is True
    return x.shape[1 if batch_first else 0] if x.shape else 0


def recurrent_cell(call: Call) -> Work:
    """One step: input and hidden state by one weight each."""
    x = call.tensor(0)
    rows = x.shape[0] if len(x.shape) > 1 else 1
    weights = [facts for facts in call.args[2:4] if isinstance(facts, Facts)]
    return call.work(2 * rows * sum([numel(w) for w in weights]), Kind.PRODUCT, kernels=GATE_KERNELS)


# -- linear algebra


def _cubic(thirds: int) -> Callable[[Call], Work]:
    """thirds · n · m · min(n, m) / 3 for each matrix [n, m]."""

    def rule(call: Call) -> Work:
        a = call.tensor(0)
        if len(a.shape) < 2:
            return call.work(call.n_out, Kind.FACTOR)
        n, m = a.shape[-2:]
        return call.work(prod(a.shape[:-2]) * thirds * n * m * min(n, m) // 3, Kind.FACTOR)

    return rule


_ATTENTION = {
    "scaled_dot_product_attention": 5,
    "_scaled_dot_product_attention_math": 5,
    "_scaled_dot_product_flash_attention": 4,
    "_scaled_dot_product_flash_attention_for_cpu": 4,
    "_scaled_dot_product_efficient_attention": 6,
    "_scaled_dot_product_cudnn_attention": 6,
    "_scaled_dot_product_fused_attention_overrideable": 5,
}
_ATTENTION_BACKWARD = {
    "_scaled_dot_product_flash_attention_backward": 11,
    "_scaled_dot_product_flash_attention_for_cpu_backward": 7,
    "_scaled_dot_product_efficient_attention_backward": 11,
    "_scaled_dot_product_cudnn_attention_backward": 14,
}
_CONVOLUTIONS = (
    "convolution _convolution conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d "
    "cudnn_convolution mkldnn_convolution"
)

RULES = {
    **every(_product(0), "mm bmm mv dot vdot inner matmul linear mkldnn_linear _int_mm _scaled_mm"),
    **every(_product(1), "addmm baddbmm addmv _addmm_activation sspaddmm"),
    **every(convolution, _CONVOLUTIONS),
    **{name: _attention(at) for name, at in _ATTENTION.items()},
    **{name: _attention_backward(at) for name, at in _ATTENTION_BACKWARD.items()},
    **every(encoder, "_transformer_encoder_layer_fwd _native_multi_head_attention"),
    **every(recurrent, "lstm gru rnn_tanh rnn_relu mkldnn_rnn_layer _cudnn_rnn"),
    **every(recurrent_cell, "lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
    **every(distances, "_cdist_forward cdist _euclidean_dist"),
    **every(_cubic(1), "cholesky linalg_cholesky linalg_cholesky_ex"),
    **every(_cubic(2), "linalg_lu_factor_ex linalg_lu linalg_det _linalg_det _linalg_slogdet"),
    **every(_cubic(3), "_linalg_solve_ex linalg_solve_triangular triangular_solve cholesky_solve"),
    **every(_cubic(6), "linalg_inv_ex linalg_inv linalg_qr geqrf linalg_matrix_exp"),
    **every(_cubic(27), "_linalg_eigh linalg_eigh linalg_eigvalsh linalg_lstsq"),
    **every(_cubic(60), "_linalg_svd linalg_svd linalg_svdvals linalg_eig linalg_eigvals _linalg_eigvals"),
    "addbmm": reduced_product,
    "tensordot": tensordot,
    "bilinear": bilinear,
    "_grouped_mm": grouped,
    "convolution_backward": convolution_backward,
}
