"""Composite ops that the client keeps whole when nothing needs grad, with what each gains.

Each has a CompositeImplicitAutograd kernel, so the dispatcher would take it apart on the client. Kept whole
it is one row, and the executor's PyTorch picks the parts that its own device is best at, as eager does there.
Each gives fresh outputs for any input, writes nothing, and needs no input's contents for its output shapes.
Left out for that: einsum (a pure transposition is a view), one_hot (reads the largest class), dropout (gives
its input back when not training), batch_norm and instance_norm (write the running statistics).
A call that draws random numbers (`OpTraits.draws`) is not kept whole.
"""

from __future__ import annotations

_ATTENTION = "the executor picks its attention kernel; a template that does not depend on the sequence length"
_PRODUCT = "one row instead of views, a product and a view; exact: the fold depends on the strides"
_NORM = "one row, and one fused kernel where the device has it"
_CONVOLUTION = "the executor picks its convolution backend"
_RECURRENT = "one row instead of several per time step, and the device's recurrent kernel"
_LOSS = "one row instead of three or four"
_POOL = "the inference kernel, without the indices that only backward needs"
_DERIVED = "the device's own kernel, whose bits differ from those of its parts"
_RESIZE = "the output size is computed in one place, from sizes alone"

COMPOSITES: dict[str, str] = {
    "aten.scaled_dot_product_attention.default": _ATTENTION,
    "aten.linear.default": _PRODUCT,
    "aten.matmul.default": _PRODUCT,
    "aten.bilinear.default": _PRODUCT,
    "aten.tensordot.default": _PRODUCT,
    "aten.layer_norm.default": _NORM,
    "aten.rms_norm.default": _NORM,
    "aten.group_norm.default": _NORM,
    "aten.softmax.int": "one row when it also converts the dtype, without a copy on a GPU",
    "aten.log_softmax.int": "one row when it also converts the dtype, without a copy on a GPU",
    "aten.repeat_interleave.self_int": "one row instead of five; the heads of grouped attention",
    "aten.conv1d.default": _CONVOLUTION,
    "aten.conv2d.default": _CONVOLUTION,
    "aten.conv3d.default": _CONVOLUTION,
    "aten.conv1d.padding": _CONVOLUTION,
    "aten.conv2d.padding": _CONVOLUTION,
    "aten.conv3d.padding": _CONVOLUTION,
    "aten.conv_transpose1d.default": _CONVOLUTION,
    "aten.conv_transpose2d.input": _CONVOLUTION,
    "aten.conv_transpose3d.input": _CONVOLUTION,
    "aten.max_pool1d.default": _POOL,
    "aten.max_pool2d.default": _POOL,
    "aten.max_pool3d.default": _POOL,
    "aten.adaptive_avg_pool2d.default": "the executor picks between a mean and the pooling kernel",
    "aten.upsample_nearest2d.vec": _RESIZE,
    "aten.upsample_bilinear2d.vec": _RESIZE,
    "aten.upsample_bicubic2d.vec": _RESIZE,
    "aten.lstm.input": _RECURRENT,
    "aten.gru.input": _RECURRENT,
    "aten.rnn_tanh.input": _RECURRENT,
    "aten.rnn_relu.input": _RECURRENT,
    "aten.cross_entropy_loss.default": _LOSS,
    "aten.nll_loss_nd.default": _LOSS,
    "aten.cosine_similarity.default": "one row instead of about ten",
    "aten.silu_backward.default": _DERIVED,
    "aten.mish_backward.default": _DERIVED,
    "aten.native_channel_shuffle.default": _DERIVED,
}

# Whole under grad too: PyTorch has a derivative for them where the device has a kernel, as a CPU has.
DIFFERENTIABLE = frozenset(name for name, reason in COMPOSITES.items() if reason is _DERIVED)
