"""What autocast does to each op, on a CPU and on a GPU: PyTorch's own lists (aten/src/ATen/autocast_mode.*).

The executor's device decides which list holds, so that a program under autocast gives what it gives on that
device locally. tests/unit/test_ops_autocast.py compares the names with PyTorch's dispatcher.
"""

from __future__ import annotations

from enum import Enum


class Policy(Enum):
    """LOWER: floating inputs become autocast's dtype. FP32: they become float32. FP32_DTYPE: the op's dtype
    argument does, unless it is given. FP32_OTHER: the same by another overload, see `WITH_DTYPE`.
    PROMOTE: inputs become the widest of their dtypes. BANNED: raises."""

    LOWER = "lower"
    FP32 = "fp32"
    FP32_DTYPE = "fp32 dtype"
    FP32_OTHER = "fp32 other"
    PROMOTE = "promote"
    BANNED = "banned"


# Overload that takes a dtype too, for ops that have none: that of the default overload is no argument of it.
WITH_DTYPE = {"norm.Scalar": "norm.ScalarOpt_dtype", "norm.ScalarOpt_dim": "norm.ScalarOpt_dim_dtype"}

_CPU = {
    Policy.LOWER: """
        conv1d conv1d.padding conv2d conv2d.padding conv3d conv3d.padding bmm mm linalg_vecdot baddbmm addmm
        _addmm_activation addbmm linear _convolution.deprecated matmul conv_tbc mkldnn_rnn_layer conv_transpose1d
        conv_transpose2d.input conv_transpose3d.input prelu scaled_dot_product_attention
        _native_multi_head_attention""",
    Policy.FP32: """
        avg_pool3d binary_cross_entropy grid_sampler polar prod prod.dim_int prod.dim_Dimname quantile
        quantile.scalar nanquantile nanquantile.scalar stft stft.center cdist grid_sampler_2d
        _grid_sampler_2d_cpu_fallback grid_sampler_3d trace view_as_complex cholesky cholesky_inverse cholesky_solve
        inverse lu_solve orgqr ormqr pinverse max_pool3d max_unpool2d max_unpool3d adaptive_avg_pool3d
        reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d replication_pad3d mse_loss
        cosine_embedding_loss nll_loss nll_loss2d hinge_embedding_loss poisson_nll_loss smooth_l1_loss
        cross_entropy_loss l1_loss huber_loss margin_ranking_loss soft_margin_loss triplet_margin_loss
        multi_margin_loss ctc_loss.IntList ctc_loss.Tensor kl_div multilabel_margin_loss
        binary_cross_entropy_with_logits fft_fft fft_ifft fft_fft2 fft_ifft2 fft_fftn fft_ifftn fft_rfft fft_irfft
        fft_rfft2 fft_irfft2 fft_rfftn fft_irfftn fft_hfft fft_ihfft linalg_cond linalg_cond.p_str
        linalg_matrix_rank linalg_matrix_rank.tol_tensor linalg_matrix_rank.atol_rtol_tensor
        linalg_matrix_rank.atol_rtol_float linalg_solve linalg_cholesky linalg_svdvals linalg_eigvals
        linalg_eigvalsh linalg_inv linalg_householder_product linalg_tensorinv linalg_tensorsolve
        fake_quantize_per_tensor_affine geqrf _lu_with_info qr svd triangular_solve fractional_max_pool2d
        fractional_max_pool3d adaptive_max_pool3d multilabel_margin_loss_forward linalg_qr linalg_cholesky_ex
        linalg_svd linalg_eig linalg_eigh linalg_lstsq linalg_inv_ex""",
    Policy.PROMOTE: "stack cat index_copy index_copy.dimname",
}
_CUDA = {
    Policy.LOWER: """
        _convolution.deprecated _convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d.input
        conv_transpose3d.input convolution cudnn_convolution cudnn_convolution_transpose prelu addmm addmv addr
        matmul einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul linalg_multi_dot
        _thnn_fused_lstm_cell _thnn_fused_gru_cell lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
        _scaled_dot_product_flash_attention scaled_dot_product_attention""",
    Policy.FP32: """
        acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow.Tensor_Scalar
        pow.Tensor_Tensor pow.Scalar softplus layer_norm native_layer_norm rms_norm group_norm frobenius_norm.dim
        nuclear_norm nuclear_norm.dim cosine_similarity poisson_nll_loss cosine_embedding_loss nll_loss nll_loss2d
        hinge_embedding_loss kl_div l1_loss smooth_l1_loss huber_loss mse_loss margin_ranking_loss
        multilabel_margin_loss soft_margin_loss triplet_margin_loss multi_margin_loss
        binary_cross_entropy_with_logits dist pdist cdist renorm logsumexp upsample_nearest1d
        _upsample_nearest_exact1d upsample_nearest2d _upsample_nearest_exact2d upsample_nearest3d
        _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d _upsample_bilinear2d_aa upsample_trilinear3d
        upsample_bicubic2d _upsample_bicubic2d_aa""",
    Policy.FP32_DTYPE: """
        prod prod.dim_int softmax.int log_softmax.int cumprod cumsum linalg_vector_norm linalg_matrix_norm
        linalg_matrix_norm.str_ord sum sum.dim_IntList""",
    Policy.FP32_OTHER: "norm.Scalar norm.ScalarOpt_dim",
    Policy.PROMOTE: "addcdiv addcmul atan2 bilinear cross dot vdot grid_sampler index_put tensordot scatter_add",
    Policy.BANNED: "binary_cross_entropy",
}


def _by_name(lists: dict[Policy, str]) -> dict[str, Policy]:
    return {name: policy for policy, names in lists.items() for name in names.split()}


LISTED: dict[str, dict[str, Policy]] = {"cpu": _by_name(_CPU), "cuda": _by_name(_CUDA)}

# PyTorch casts in the kernels that these come to on the device (mkldnn_rnn_layer, _cudnn_rnn), or in their parts.
_RECURRENT = {
    "cpu": dict.fromkeys(("lstm.input", "rnn_tanh.input", "rnn_relu.input"), Policy.LOWER),
    "cuda": dict.fromkeys(("lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input"), Policy.LOWER),
}
POLICIES = {kind: LISTED[kind] | _RECURRENT[kind] for kind in LISTED}
"""By the type of the executor's device, and by the op's name as `mm` or `conv1d.padding`."""
