"""Cost of what moves and maps: pointwise ops, copies, look-ups by index, fills, optimizers over lists."""

from __future__ import annotations

from collections.abc import Callable

from remora.ir.annotated import Facts
from remora.ops.cost_call import FREE, Call, Kind, Work, default, every, numel

# Operations of one element: what a CPU's vector code takes, by measurement, with an exact gelu as 10.
GELU, EXP, TRIG, POW, TANH, SPECIAL, DRAW = 10, 18, 25, 54, 58, 120, 55
BERNOULLI = 220
WHERE = 60  # a CPU chooses one by one
CHEAP_POWERS = (0.5, -0.5, 1, 2, 3, -1, -2)
UPDATE_FLOPS = 12  # of one element in Adam


def free(call: Call) -> Work:
    """Sizes and strides change, or memory is taken and not written."""
    return FREE


def _function(flops: int) -> Callable[[Call], Work]:
    """A function of each element."""

    def rule(call: Call) -> Work:
        return call.work(flops * call.n_out, Kind.MATH)

    return rule


def power(call: Call) -> Work:
    """Small whole powers are products."""
    exponent = call.args[1] if len(call.args) > 1 else None
    cheap = isinstance(exponent, int | float) and exponent in CHEAP_POWERS
    return default(call) if cheap else call.work(POW * call.n_out, Kind.MATH)


def gelu(call: Call) -> Work:
    tanh = call.kwargs.get("approximate") == "tanh"
    return call.work((3 * GELU if tanh else GELU) * call.n_out, Kind.MATH)


def fill(call: Call) -> Work:
    """Written and not read."""
    return call.work(0, Kind.MOVE, read=0)


def _random(flops: int) -> Callable[[Call], Work]:
    """Random numbers: nothing is read."""

    def rule(call: Call) -> Work:
        return call.work(flops * call.n_out, Kind.MATH, read=0)

    return rule


def copy(call: Call) -> Work:
    """Written over: of the target nothing is read."""
    source = call.covered[1] if len(call.covered) > 1 else call.read
    return call.work(0, Kind.MOVE, read=source)


def move(call: Call) -> Work:
    return call.work(0, Kind.MOVE)


def look_up(call: Call) -> Work:
    """Rows of a table by index: what is read is what comes out, and the indices; never the table."""
    indices = sum(call.covered[1:])
    return call.work(0, Kind.GATHER, read=min(call.covered[0], call.made) + indices)


def bag(call: Call) -> Work:
    """Rows of a table by index, added up by bags: as many rows as indices are read."""
    table, indices = call.tensor(0), call.tensor(1)
    width = table.shape[-1] if table.shape else 1
    read = min(call.covered[0], numel(indices) * width * table.itemsize)
    return call.work(numel(indices) * width, Kind.GATHER, read=read + sum(call.covered[1:]))


def place(call: Call) -> Work:
    """Values put where indices say: of the target only those places are written, unless the result is a copy."""
    values, others = _values_nbytes(call), sum(call.covered[1:])
    if call.written:
        return call.work(0, Kind.GATHER, read=others, written=min(values, call.written))
    return call.work(0, Kind.GATHER)


def accumulate(call: Call) -> Work:
    """As `place`, and what was there is read."""
    values, others = _values_nbytes(call), sum(call.covered[1:])
    if call.written:
        touched = min(values, call.written)
        flops = values // max(1, call.out.itemsize)
        return call.work(flops, Kind.GATHER, read=others + touched, written=touched)
    return call.work(call.n_out, Kind.GATHER)


def _values_nbytes(call: Call) -> int:
    """Bytes of the places that are touched: of the last tensor, or for a number, one for each index."""
    last = call.covered[-1] if call.covered else 0
    indices = [facts for facts in call.inputs[1:] if facts is not None]
    places = max([numel(facts) for facts in indices], default=0) * call.out.itemsize
    return max(last, places)


def each(call: Call) -> Work:
    """One kernel a tensor of the list, on devices without fused ones."""
    first = call.args[0] if call.args else ()
    count = len(first) if isinstance(first, tuple) else 1
    return call.work(call.n_out, Kind.MOVE, kernels=max(1, count))


def each_math(call: Call) -> Work:
    done = each(call)
    return Work(EXP * done.flops, done.bytes_read, done.bytes_written, Kind.MATH, done.kernels, done.dtype)


def update(call: Call) -> Work:
    """A fused optimizer: one pass over parameters, gradients and states."""
    first = call.args[0] if call.args else ()
    count = (
        sum([numel(facts) for facts in first if isinstance(facts, Facts)]) if isinstance(first, tuple) else 0
    )
    return call.work(UPDATE_FLOPS * count, Kind.MOVE)


def _window(flops: int) -> Callable[[Call], Work]:
    """Each output element from a window of inputs, or from its neighbours, at so much for each: the input is read
    once."""

    def rule(call: Call) -> Work:
        size = call.arg(1, "kernel_size")
        taps = 1
        if call.base.startswith(("max_pool", "avg_pool")) and isinstance(size, tuple):
            dims = max(1, len(call.tensor(0).shape) - 2)
            for n in size if len(size) > 1 else size * dims:
                taps *= max(1, n if isinstance(n, int) else 1)
        return call.work(flops * taps * call.n_out, Kind.REDUCE)

    return rule


def _adaptive(call: Call) -> Work:
    """A mean of all inputs of an output."""
    return call.work(18 * numel(call.tensor(0)), Kind.REDUCE)


_FREE = (
    "empty empty_like empty_strided new_empty new_empty_strided empty_permuted transpose squeeze unsqueeze t "
    "swapaxes swapdims as_strided detach resize _resize_output resize_as set set_data alias resized lift "
    "lift_fresh _unsafe_view view expand permute"
)
_GELU = "sigmoid silu silu_backward sigmoid_backward gelu_backward glu glu_backward logit rsqrt sqrt"
_EXP = (
    "exp exp2 expm1 log1p hypot log_sigmoid_backward softplus_backward elu_backward selu celu tanh_backward"
)
_TRIG = (
    "log log2 log10 sin cos erf erfc softplus log_sigmoid log_sigmoid_forward atan2 fmod remainder xlogy "
    "logaddexp logaddexp2 tan atan asin acos angle polar sinc frexp nextafter binary_cross_entropy "
    "binary_cross_entropy_with_logits _thnn_fused_lstm_cell _thnn_fused_gru_cell"
)
_TANH = "tanh sinh cosh asinh acosh atanh mish mish_backward float_power erfinv"
_SPECIAL = (
    "lgamma digamma polygamma i0 i1 igamma igammac mvlgamma special_entr special_erfcx special_ndtr "
    "special_log_ndtr"
)
_DRAW = (
    "rand rand_like randn randn_like randint randint_like randperm normal uniform exponential geometric cauchy "
    "log_normal random"
)
_FILL = (
    "zeros zeros_like ones ones_like full full_like fill zero new_zeros new_ones new_full arange linspace eye"
)
_MOVE = (
    "clone _to_copy contiguous cat stack repeat repeat_interleave flip roll tril triu constant_pad_nd pad "
    "reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d select_backward slice_backward "
    "native_channel_shuffle pixel_shuffle pixel_unshuffle _reshape_copy _local_scalar_dense diag_embed "
    "_conj_physical unfold_backward slice_scatter select_scatter as_strided_scatter diagonal_scatter"
)
_MAX_POOL = "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices"
_AVG_POOL = (
    "avg_pool1d avg_pool2d avg_pool3d avg_pool2d_backward max_pool2d_with_indices_backward im2col col2im"
)
_ADAPTIVE = (
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d "
    "adaptive_max_pool2d"
)
_NEAREST = "upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_nearest2d_backward"
_LINEAR = (
    "upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa upsample_bilinear2d_backward grid_sampler "
    "grid_sampler_2d grid_sampler_3d _adaptive_avg_pool2d_backward"
)
_PLACE = "index_copy scatter index_put _index_put_impl index_fill masked_scatter put"
_ACCUMULATE = "scatter_add scatter_reduce index_add index_reduce"
_EACH = (
    "add sub mul div neg abs maximum minimum addcdiv addcmul lerp reciprocal copy zero clamp_max clamp_min "
    "sign norm max round"
)
_EACH_MATH = "sqrt rsqrt exp log pow tanh sigmoid sin cos erf expm1 log1p"

RULES = {
    **every(free, _FREE),
    **every(_function(GELU), _GELU),
    **every(_function(EXP), _EXP),
    **every(_function(TRIG), _TRIG),
    **every(_function(TANH), _TANH),
    **every(_function(SPECIAL), _SPECIAL),
    **every(_function(WHERE), "where masked_fill"),
    **every(_random(DRAW), _DRAW),
    **every(_random(BERNOULLI), "bernoulli native_dropout"),
    "pow": power,
    "gelu": gelu,
    **every(fill, _FILL),
    **every(move, _MOVE),
    **every(_window(70), _MAX_POOL),
    **every(_window(20), _AVG_POOL),
    **every(_adaptive, _ADAPTIVE),
    **every(_window(45), _NEAREST),
    **every(_window(90), _LINEAR),
    **every(_window(230), "upsample_bicubic2d _upsample_bicubic2d_aa"),
    **every(place, _PLACE),
    **every(accumulate, _ACCUMULATE),
    **{f"_foreach_{name}": each for name in _EACH.split()},
    **{f"_foreach_{name}": each_math for name in _EACH_MATH.split()},
    **every(update, "_fused_adam _fused_adamw _fused_sgd _fused_adagrad"),
    **every(look_up, "embedding index_select gather index take take_along_dim _unsafe_index"),
    **every(bag, "embedding_bag _embedding_bag _embedding_bag_forward_only"),
    "copy": copy,
}
