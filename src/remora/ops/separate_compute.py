"""How a batch goes through ops that compute."""

from __future__ import annotations

from remora.ops.cost_call import every
from remora.ops.separate_call import Batched, Operand, Rule, Separation, dims_of, wrapped


def pointwise(call: Batched) -> Separation | None:
    """Inputs that do not broadcast over the batch are cut where it lies."""
    out = call.outs[0]
    lying = {operand.dim - operand.ndim for operand in call.operands if operand.dim is not None}
    if out is None or len(lying) != 1:
        return None
    at = lying.pop()  # counted from the back
    if -at > len(out.shape):
        return None
    ins = tuple(
        operand.ndim + at if operand.ndim >= -at and operand.shape[at] != 1 else None
        for operand in call.operands
    )
    return Separation(ins, (len(out.shape) + at,) * len(call.outs))


def same(call: Batched) -> Separation | None:
    """The first input's batch stays where it is; others belong to none."""
    return call.along(call.first.dim) if call.others_are_whole else None


def linear(call: Batched) -> Separation | None:
    x = call.first
    return call.along(x.dim) if call.others_are_whole and x.dim != x.ndim - 1 else None


def addmm(call: Batched) -> Separation | None:
    """Rows of the first factor; what is added is cut unless it is the same for all of them."""
    added, left, right = call.operands
    if left.dim != 0 or right.dim is not None:
        return None
    return Separation((0 if added.ndim == 2 and added.shape[0] != 1 else None, 0, None), (0,))


def mm(call: Batched) -> Separation | None:
    left, right = call.operands
    if left.dim == 0 and right.dim is None:
        return Separation((0, None), (0,))
    return Separation((None, 1), (1,)) if left.dim is None and right.dim == 1 else None


def bmm(call: Batched) -> Separation | None:
    left, right = call.operands[-2:]
    if 0 not in (left.dim, right.dim):
        return None
    added = tuple(
        0 if operand.ndim == 3 and operand.shape[0] != 1 else None for operand in call.operands[:-2]
    )
    return Separation((*added, 0, 0), (0,))


def matmul(call: Batched) -> Separation | None:
    """Over the dimensions before the last two, or over the rows of the first factor."""
    left, right = call.operands
    out = call.outs[0]
    assert out is not None
    if right.dim is None and left.dim is not None and right.ndim <= 2:
        return call.along(left.dim) if left.ndim > 1 and left.dim != left.ndim - 1 else None
    lying = {operand.dim - operand.ndim for operand in (left, right) if operand.dim is not None}
    if len(lying) != 1 or (at := lying.pop()) > -3 or -at > len(out.shape):
        return None
    ins = tuple(
        operand.ndim + at if operand.ndim >= -at and operand.shape[at] != 1 else None
        for operand in (left, right)
    )
    return Separation(ins, (len(out.shape) + at,))


def attention(call: Batched) -> Separation | None:
    """Over the first of four dimensions; queries, keys and values are cut, a mask unless it is the same for all."""
    q, k, v, *masks = call.operands
    if not all(one.ndim == 4 and one.dim in (None, 0) and one.shape[0] == q.shape[0] for one in (q, k, v)):
        return None
    ins = tuple(0 if mask.ndim == 4 and mask.shape[0] != 1 else None for mask in masks)
    return Separation((0, 0, 0, *ins), (0,))


def embedding(call: Batched) -> Separation | None:
    weight, indices = call.operands
    return Separation((None, indices.dim), (indices.dim,)) if weight.dim is None else None


def convolution(call: Batched) -> Separation | None:
    x = call.first
    spatial = call.operands[1].ndim - 2
    return call.along(0) if call.others_are_whole and x.dim == 0 and x.ndim == spatial + 2 else None


def pooling(call: Batched) -> Separation | None:
    """Over all but the last dimensions, of which there are as many as the name says."""
    x = call.first
    spatial = 3 if "3d" in call.base else 2 if "2d" in call.base else 1
    return call.along(x.dim) if x.dim is not None and x.dim < x.ndim - spatial else None


def batch_norm(call: Batched) -> Separation | None:
    """With statistics that were learned; those of the batch itself need all of it."""
    training = call.arg(5, "training")
    if training is not False or not call.others_are_whole or call.first.dim != 0:
        return None
    return call.along((0, *(None,) * (len(call.outs) - 1)), pure=True)


def layer_norm(call: Batched) -> Separation | None:
    x, shape = call.first, call.arg(1, "normalized_shape")
    if not call.others_are_whole or x.dim is None or not isinstance(shape, tuple):
        return None
    return call.along(x.dim) if x.dim < x.ndim - len(shape) else None


def group_norm(call: Batched) -> Separation | None:
    return call.along(0) if call.others_are_whole and call.first.dim == 0 and len(call.outs) == 1 else None


def softmax(call: Batched) -> Separation | None:
    x = call.first
    at = wrapped(call.arg(1, "dim"), x.ndim)
    return None if x.dim is None or at is None or at == x.dim else call.along(x.dim)


def reduction(call: Batched) -> Separation | None:
    """Over named dimensions that the batch is not."""
    x = call.first
    named = call.arg(1, "dim")
    dims = dims_of(named, x.ndim) if not isinstance(named, bool) else None
    if x.dim is None or dims is None or x.dim in dims or not call.others_are_whole:
        return None
    out = call.outs[0]
    assert out is not None
    kept = len(out.shape) == x.ndim
    return call.along(x.dim if kept else x.dim - sum(dim < x.dim for dim in dims))


def along_a_dimension(call: Batched) -> Separation | None:
    """What goes on along one dimension, the same size or another: running sums, sorting, the largest."""
    x = call.first
    place = 2 if call.base == "topk" else 1
    given = call.arg(place, "dim", -1)
    at = wrapped(given, x.ndim) if isinstance(given, int) and not isinstance(given, bool) else None
    if x.dim is None or at is None or at == x.dim or not call.others_are_whole:
        return None
    return call.along(x.dim)


def gather(call: Batched) -> Separation | None:
    """Along another dimension; both are cut."""
    x, index = call.operands
    at = wrapped(call.arg(1, "dim"), x.ndim)
    lying = {operand.dim for operand in (x, index) if operand.dim is not None}
    if at is None or at in lying or len(lying) != 1:
        return None
    dim = lying.pop()
    return Separation((dim, dim), (dim,)) if x.shape[dim] == index.shape[dim] else None


def index_select(call: Batched) -> Separation | None:
    x, index = call.operands
    at = wrapped(call.arg(1, "dim"), x.ndim)
    if at is None:
        return None
    if x.dim is not None:
        return call.along(x.dim) if index.dim is None and at != x.dim else None
    return Separation((None, 0), (at,))


def index(call: Batched) -> Separation | None:
    """One index of a tensor that is not cut."""
    x, places = call.first, call.arg(1, "indices")
    given = [place for place in places if isinstance(place, Operand)] if isinstance(places, tuple) else []
    if x.dim is not None or len(given) != 1 or given[0].dim is None:
        return None
    return Separation((None, given[0].dim), (places.index(given[0]) + given[0].dim,))


_POINTWISE = """
abs acos acosh add addcdiv addcmul alias angle asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or
bitwise_xor ceil celu clamp clamp_max clamp_min clone contiguous copysign cos cosh detach div divide elu eq erf erfc exp
exp2 expm1 fill floor floor_divide fmod frac full_like ge gelu gt hardshrink hardsigmoid hardswish hardtanh heaviside
hypot isfinite isinf isnan le leaky_relu lerp log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not
logical_or logical_xor logit lt masked_fill maximum minimum mish mul ne neg ones_like positive pow reciprocal relu relu6
remainder round rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus sqrt square sub tan tanh threshold
true_divide trunc where xlogy zeros_like _to_copy
"""

RULES: dict[str, Rule] = {
    **every(pointwise, _POINTWISE),
    "linear": linear,
    "addmm": addmm,
    "mm": mm,
    **every(bmm, "bmm baddbmm"),
    "matmul": matmul,
    "scaled_dot_product_attention": attention,
    "embedding": embedding,
    **every(convolution, "conv1d conv2d conv3d convolution"),
    **every(pooling, "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d"),
    **every(pooling, "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d"),
    **every(pooling, "max_pool2d_with_indices upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"),
    **every(batch_norm, "batch_norm native_batch_norm cudnn_batch_norm"),
    **every(layer_norm, "layer_norm native_layer_norm rms_norm"),
    "group_norm": group_norm,
    **every(softmax, "softmax log_softmax _softmax _log_softmax"),
    **every(reduction, "sum mean amax amin argmax argmin any all prod max min var std logsumexp"),
    **every(along_a_dimension, "cumsum cumprod sort argsort topk"),
    "gather": gather,
    "index_select": index_select,
    "index": index,
}
