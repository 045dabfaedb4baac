"""Cost of what looks at whole rows: sums, norms, softmax, losses, scans, sorts, Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable
from math import log2, prod

from remora.ops.cost_call import Call, Kind, Work, every, numel

FFT_FLOPS = 5  # n log2 n of these, as FFT benchmarks count


def _per_input(flops: int, kind: Kind = Kind.REDUCE) -> Callable[[Call], Work]:
    """So many operations for each element of the first tensor."""

    def rule(call: Call) -> Work:
        first = next((facts for facts in call.inputs if facts is not None), None)
        return call.work(flops * (numel(first) if first is not None else 0), kind)

    return rule


def sort(call: Call) -> Work:
    """n log2 n comparisons for each sorted row."""
    x = call.tensor(0)
    dim = call.arg(1, "dim", -1)
    length = _length(x.shape, dim if isinstance(dim, int) and not isinstance(dim, bool) else -1)
    return call.work(numel(x) * _bits(length), Kind.SORT)


def top(call: Call) -> Work:
    """The k largest of each row: as a selection that looks at each element about twice, then sorts k."""
    k = call.arg(1, "k", 1)
    kept = call.n_out // 2
    return call.work(2 * numel(call.tensor(0)) + kept * _bits(k if isinstance(k, int) else 1), Kind.SORT)


def fourier(call: Call) -> Work:
    """5 n log2 n for each transform of n elements, half of that where one side is real."""
    x = call.tensor(0)
    dims = call.arg(1, "dim")
    one_sided = call.base in ("_fft_r2c", "_fft_c2r")
    whole = x if call.base != "_fft_c2r" else call.out
    over = dims if isinstance(dims, tuple) else (dims,) if isinstance(dims, int) else (-1,)
    n = prod([_length(whole.shape, dim) for dim in over if isinstance(dim, int)])
    flops = FFT_FLOPS * numel(whole) * _bits(n)
    return call.work(flops // 2 if one_sided else flops, Kind.MATH)


def _length(shape: tuple[int, ...], dim: int) -> int:
    return shape[dim] if -len(shape) <= dim < len(shape) else 1


def _bits(n: int) -> int:
    """log2, rounded up, at least 1."""
    return max(1, round(log2(max(2, n)) + 0.5))


_ONCE = (
    "sum mean amax amin aminmax prod all any count_nonzero nansum nanmean norm "
    "linalg_vector_norm linalg_norm dist trace equal allclose is_nonzero bincount "
    "histc mse_loss l1_loss nll_loss nll_loss_nd nll_loss_forward nll_loss2d_forward"
)
_FOUR = "cosine_similarity smooth_l1_loss huber_loss kl_div"
_NORMS = (
    "layer_norm native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm batch_norm "
    "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "_batch_norm_with_update instance_norm"
)
_NORMS_BACKWARD = (
    "native_layer_norm_backward native_group_norm_backward native_batch_norm_backward "
    "cudnn_batch_norm_backward batch_norm_backward _fused_rms_norm_backward"
)
_EXPONENTIAL = (
    "softmax _softmax log_softmax _log_softmax logsumexp cross_entropy_loss logcumsumexp _safe_softmax "
    "_masked_softmax"
)
_SORTS = (
    "sort argsort msort unique _unique _unique2 unique_consecutive unique_dim median nanmedian mode quantile"
)

RULES = {
    **every(_per_input(1), _ONCE),
    **every(_per_input(4), _FOUR),
    **every(_per_input(18), "argmax argmin max min cumsum cumprod cummax cummin"),  # one by one on a CPU
    **every(_per_input(100), "var var_mean std std_mean"),  # Welford's, with divisions
    **every(_per_input(6), _NORMS),
    **every(_per_input(12), _NORMS_BACKWARD),
    **every(_per_input(12), _EXPONENTIAL),
    **every(_per_input(4), "_softmax_backward_data _log_softmax_backward_data"),
    **every(sort, _SORTS),
    **every(top, "topk kthvalue"),
    **every(fourier, "_fft_c2c _fft_r2c _fft_c2r"),
    "searchsorted": _per_input(1, Kind.GATHER),
    "bucketize": _per_input(1, Kind.GATHER),
    "multinomial": _per_input(12, Kind.MATH),
}
