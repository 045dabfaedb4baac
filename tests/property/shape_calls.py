"""Random calls of the ops that have a shape rule: any layout of inputs, mostly valid arguments."""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st
from shape_kernels import (
    addmm,
    attention,
    convolution,
    group_norm,
    grouped_mm,
    linear,
    matmul,
    norm,
    product,
)
from shape_layouts import (
    Draw,
    dim_of,
    dims_of,
    dtype_near,
    numbers,
    partner,
    shapes,
    sizes,
    tensor,
)

# One strategy a family: it draws the arguments of one call.


def unary(draw: Draw) -> Any:
    return [tensor(draw)], {}


def gelu(draw: Draw) -> Any:
    return [tensor(draw)], draw(st.sampled_from([{}, {"approximate": "tanh"}]))


def binary(draw: Draw) -> Any:
    x = tensor(draw)
    if draw(st.integers(0, 3)) == 0:
        return [x, numbers(draw)], {}
    return [x, tensor(draw, partner(draw, x.shape), [dtype_near(draw, x.dtype)])], {}


def binary_tensors(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, tensor(draw, partner(draw, x.shape), [dtype_near(draw, x.dtype)])], {}


def with_number(draw: Draw) -> Any:
    return [tensor(draw), numbers(draw)], {}


def with_alpha(draw: Draw) -> Any:
    args, _ = binary(draw)
    return args, draw(st.sampled_from([{}, {"alpha": 2}, {"alpha": 0.5}]))


def number_and_alpha(draw: Draw) -> Any:
    args, _ = with_number(draw)
    return [*args, *draw(st.sampled_from([[], [2], [0.5]]))], {}


def rounding(draw: Draw) -> Any:
    args, _ = binary(draw)
    return args, {"rounding_mode": draw(st.sampled_from([None, "floor", "trunc"]))}


def rounding_number(draw: Draw) -> Any:
    args, _ = with_number(draw)
    return args, {"rounding_mode": draw(st.sampled_from([None, "floor", "trunc"]))}


def clamp(draw: Draw) -> Any:
    bounds = st.sampled_from([None, 0, 1, 0.5])
    return [tensor(draw), draw(bounds), draw(bounds)], {}


def where(draw: Draw) -> Any:
    condition = tensor(draw, dtypes=[torch.bool, torch.bool, torch.bool, torch.uint8])
    x = tensor(draw, partner(draw, condition.shape))
    return [condition, x, tensor(draw, partner(draw, x.shape), [dtype_near(draw, x.dtype)])], {}


def masked_fill(draw: Draw) -> Any:
    x = tensor(draw)
    mask = tensor(draw, partner(draw, x.shape), [torch.bool])
    value = numbers(draw)
    return [x, mask, value], {}


def masked_fill_tensor(draw: Draw) -> Any:
    args, _ = masked_fill(draw)
    return [*args[:2], tensor(draw, (), [dtype_near(draw, args[0].dtype)])], {}


def copies(draw: Draw) -> Any:
    formats = [None, None, torch.preserve_format, torch.contiguous_format]
    chosen = draw(st.sampled_from(formats))
    return [tensor(draw)], {} if chosen is None else {"memory_format": chosen}


def like(draw: Draw) -> Any:
    args, kwargs = copies(draw)
    return args, {**kwargs, **options(draw, required=False)}


def full_like(draw: Draw) -> Any:
    args, kwargs = like(draw)
    return [*args, 3], kwargs


def triangle(draw: Draw) -> Any:
    return [tensor(draw), *draw(st.sampled_from([[], [1], [-1]]))], {}


def options(draw: Draw, required: bool = True) -> Any:
    kwargs: dict[str, Any] = {}
    if required or draw(st.booleans()):
        kwargs["dtype"] = draw(st.sampled_from([torch.float32, torch.int64, torch.bool, torch.bfloat16]))
    if draw(st.booleans()):
        kwargs["layout"] = torch.strided
    if draw(st.booleans()):
        kwargs["pin_memory"] = False
    return kwargs


def factory(draw: Draw) -> Any:
    return [list(draw(shapes))], {**options(draw, required=draw(st.booleans())), "device": "?"}


def full(draw: Draw) -> Any:
    args, kwargs = factory(draw)
    return [*args, 3], kwargs


def new(draw: Draw) -> Any:
    return [tensor(draw), list(draw(shapes))], options(draw, required=False)


def new_full(draw: Draw) -> Any:
    args, kwargs = new(draw)
    return [*args, 1], kwargs


def arange(count: int) -> Any:
    def strategy(draw: Draw) -> Any:
        kwargs = {**options(draw, required=draw(st.booleans())), "device": "?"}
        bounds = [draw(st.sampled_from([0, 1, 2, 5, 9, -3, 2.5])) for _ in range(count)]
        if kwargs.get("dtype") == torch.bool:
            kwargs.pop("dtype")
        return bounds, kwargs

    return strategy


def view(draw: Draw) -> Any:
    x = tensor(draw)
    numel = math.prod(x.shape)
    size = list(x.shape)
    for _ in range(draw(st.integers(0, 3))):
        kind = draw(st.sampled_from(["one", "merge", "divide"]))
        at = draw(st.integers(0, len(size)))
        if kind == "one":
            size.insert(at, 1)
        elif kind == "merge" and at + 1 < len(size):
            size[at : at + 2] = [size[at] * size[at + 1]]
        elif kind == "divide" and at < len(size) and size[at] % 2 == 0:
            size[at : at + 1] = [2, size[at] // 2]
    if size and numel and draw(st.booleans()):
        size[draw(st.integers(0, len(size) - 1))] = -1
    return [x, size], {}


def two_dims(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x), dim_of(draw, x)], {}


def permute(draw: Draw) -> Any:
    x = tensor(draw)
    order = draw(st.permutations(range(len(x.shape))))
    return [x, [d - len(x.shape) if draw(st.booleans()) else d for d in order]], {}


def slices(draw: Draw) -> Any:
    x = tensor(draw)
    bound = st.sampled_from([None, 0, 1, 2, 9, -1, -2, -9, 2**63 - 1])
    args = [x, dim_of(draw, x), draw(bound), draw(bound), draw(st.sampled_from([1, 1, 2, 3]))]
    return args[: draw(st.integers(1, 5))], {}


def one_dim(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x)], {}


def dim_index(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x), draw(st.integers(-3, 3))], {}


def new_dim(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, draw(st.integers(-len(x.shape) - 1, len(x.shape)))], {}


def many_dims(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dims_of(draw, x)], {}


def expand(draw: Draw) -> Any:
    x = tensor(draw)
    size = [draw(sizes) if s == 1 and draw(st.booleans()) else s for s in x.shape]
    size = [-1 if draw(st.integers(0, 4)) == 0 else s for s in size]
    return [x, [*draw(st.lists(sizes, max_size=2)), *size]], {}


def split(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, draw(st.integers(0, 6)), dim_of(draw, x)], {}


def split_with_sizes(draw: Draw) -> Any:
    x = tensor(draw)
    dim = dim_of(draw, x)
    left = x.shape[dim] if x.shape else 1
    pieces = []
    for _ in range(draw(st.integers(0, 3))):
        pieces.append(draw(st.integers(0, left)))
        left -= pieces[-1]
    return [x, [*pieces, left], dim], {}


def reduce_dims(draw: Draw) -> Any:
    x = tensor(draw)
    kwargs = draw(st.sampled_from([{}, {}, {"dtype": torch.float32}]))
    return [x, draw(st.sampled_from([None, dims_of(draw, x)])), draw(st.booleans())], kwargs


def reduce_all(draw: Draw) -> Any:
    return [tensor(draw)], draw(st.sampled_from([{}, {}, {"dtype": torch.float32}]))


def reduce_dim(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x), draw(st.booleans())], {}


def reduce_maybe_dim(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, draw(st.sampled_from([None, dim_of(draw, x)])), draw(st.booleans())], {}


def scan(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x)], draw(st.sampled_from([{}, {}, {"dtype": torch.float32}]))


def softmax(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x), *draw(st.sampled_from([[], [None], [torch.float32]]))], {}


def softmax_kernel(draw: Draw) -> Any:
    x = tensor(draw)
    return [x, dim_of(draw, x), False], {}


def cat(draw: Draw) -> Any:
    x = tensor(draw)
    dim = dim_of(draw, x)
    tensors = [x]
    for _ in range(draw(st.integers(0, 2))):
        shape = list(x.shape)
        if shape:
            shape[dim] = draw(sizes)
        tensors.append(tensor(draw, tuple(shape), [dtype_near(draw, x.dtype)]))
    return [tensors, dim], {}


def embedding(draw: Draw) -> Any:
    weight = tensor(draw, (draw(st.integers(1, 4)), draw(sizes)))
    return [weight, tensor(draw, dtypes=[torch.int64, torch.int64, torch.int32], fill=0)], {}


def index_select(draw: Draw) -> Any:
    x = tensor(draw, st.lists(sizes.filter(bool), max_size=4).map(tuple))
    index = tensor(draw, (draw(sizes),), [torch.int64, torch.int32], fill=0)
    return [x, dim_of(draw, x), index], {}


def gather(draw: Draw) -> Any:
    x = tensor(draw)
    dim = dim_of(draw, x)
    shape = [draw(st.integers(0, s)) for s in x.shape]
    if shape and x.shape[dim]:
        shape[dim] = draw(sizes)
    return [x, dim, tensor(draw, tuple(shape), [torch.int64], fill=0)], {}


def index(draw: Draw) -> Any:
    x = tensor(draw)
    chosen = draw(shapes)[:2]
    indices = [
        draw(st.sampled_from([None, tensor(draw, partner(draw, chosen), [torch.int64], fill=0)]))
        for _ in range(draw(st.integers(1, max(len(x.shape), 1))))
    ]
    return [x, indices], {}


FAMILIES: dict[Any, str] = {
    unary: """abs alias bitwise_not cos detach erf exp expm1 log log1p log2 logical_not max min neg any
        all reciprocal relu rsqrt sigmoid sign silu sin sqrt squeeze t tanh""",
    gelu: "gelu",
    binary: "mul.Tensor div.Tensor",
    binary_tensors: """maximum minimum logical_and logical_or logical_xor eq.Tensor ne.Tensor lt.Tensor le.Tensor
        gt.Tensor ge.Tensor bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor""",
    with_number: """mul.Scalar div.Scalar eq.Scalar ne.Scalar lt.Scalar le.Scalar gt.Scalar ge.Scalar
        bitwise_and.Scalar bitwise_or.Scalar bitwise_xor.Scalar pow.Tensor_Scalar""",
    with_alpha: "add.Tensor sub.Tensor",
    number_and_alpha: "add.Scalar sub.Scalar rsub.Scalar",
    rounding: "div.Tensor_mode",
    rounding_number: "div.Scalar_mode",
    clamp: "clamp",
    where: "where.self",
    masked_fill: "masked_fill.Scalar",
    masked_fill_tensor: "masked_fill.Tensor",
    copies: "clone _to_copy",
    like: "empty_like ones_like zeros_like",
    full_like: "full_like",
    triangle: "tril triu",
    factory: "ones zeros empty.memory_format",
    full: "full",
    new: "new_empty new_ones new_zeros",
    new_full: "new_full",
    arange(1): "arange",
    arange(2): "arange.start",
    arange(3): "arange.start_step",
    view: "view _unsafe_view",
    two_dims: "transpose.int",
    permute: "permute",
    slices: "slice.Tensor",
    one_dim: "squeeze.dim unbind.int",
    dim_index: "select.int",
    new_dim: "unsqueeze",
    many_dims: "squeeze.dims",
    expand: "expand",
    split: "split.Tensor",
    split_with_sizes: "split_with_sizes",
    reduce_dims: "sum.dim_IntList mean.dim",
    reduce_all: "sum mean",
    reduce_dim: "max.dim min.dim any.dim all.dim",
    reduce_maybe_dim: "argmax argmin",
    scan: "cumsum",
    softmax: "softmax.int log_softmax.int",
    softmax_kernel: "_softmax _log_softmax",
    norm(2): "layer_norm",
    norm(2, native=True): "native_layer_norm",
    norm(1): "rms_norm",
    product(2): "mm",
    product(3): "bmm",
    addmm: "addmm",
    grouped_mm: "_grouped_mm",
    linear: "linear",
    matmul: "matmul",
    attention: "scaled_dot_product_attention",
    convolution("whole"): "convolution",
    convolution("backward"): "convolution_backward",
    convolution("plain"): "conv2d",
    convolution("transposed"): "conv_transpose2d.input",
    group_norm("plain"): "group_norm",
    group_norm("native"): "native_group_norm",
    group_norm("backward"): "native_group_norm_backward",
    cat: "cat",
    embedding: "embedding",
    index_select: "index_select",
    gather: "gather",
    index: "index.Tensor",
}
STRATEGIES = {
    f"aten.{name}" if "." in name else f"aten.{name}.default": strategy
    for strategy, names in FAMILIES.items()
    for name in names.split()
}
