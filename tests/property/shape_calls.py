"""Random calls of the ops that have a shape rule: any layout of inputs, mostly valid arguments."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INTS = [torch.int64, torch.int32, torch.uint8]
DTYPES = [*FLOATS, *INTS, torch.bool, torch.complex64]


class Layout(NamedTuple):
    """A tensor to make: on meta, or on CPU where every element is `fill`."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    fill: int = 1

    def tensor(self, device: str) -> torch.Tensor:
        last = sum((s - 1) * a for s, a in zip(self.shape, self.stride, strict=True))
        nelement = self.offset + (0 if 0 in self.shape else last + 1)
        base = torch.full((nelement,), self.fill, dtype=self.dtype, device=device)
        return torch.as_strided(base, self.shape, self.stride, self.offset)


Draw = Any
sizes = st.sampled_from([0, 1, 1, 2, 3, 5])
shapes = st.lists(sizes, max_size=5).map(tuple)


def layouts(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype, fill: int = 1) -> Layout:
    """Contiguous, a permutation, a slice of something larger, expanded, or odd where sizes are 1."""
    contiguous = torch.empty(shape, device="meta").stride()
    kind = draw(st.sampled_from(["contiguous"] * 4 + ["permuted", "sliced", "expanded", "odd"]))
    if kind == "contiguous":
        return Layout(shape, contiguous, draw(st.sampled_from([0, 0, 7])), dtype, fill)
    order = draw(st.permutations(range(len(shape)))) if kind != "odd" else range(len(shape))
    stride, step = [0] * len(shape), 1
    for dim in reversed(order):
        if kind == "expanded" and draw(st.booleans()):
            continue
        stride[dim] = step
        step *= max(shape[dim], 1)
        if kind == "sliced":
            step *= draw(st.sampled_from([1, 1, 2, 3]))
        if kind == "odd" and shape[dim] == 1:
            stride[dim] = draw(st.sampled_from([1, 2, 3, 60]))
    return Layout(shape, tuple(stride), draw(st.sampled_from([0, 0, 7])), dtype, fill)


def tensor(draw: Draw, shape: Any = shapes, dtypes: Any = DTYPES, fill: int = 1) -> Layout:
    shape = shape if isinstance(shape, tuple) else draw(shape)
    return layouts(draw, shape, draw(st.sampled_from(dtypes)), fill)


def partner(draw: Draw, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape that mostly broadcasts with `shape`."""
    kind = draw(st.sampled_from(["same", "same", "cut", "ones", "any"]))
    if kind == "any":
        return draw(shapes)
    if kind == "cut":
        return shape[draw(st.integers(0, len(shape))) :]
    if kind == "ones":
        return tuple(1 if draw(st.booleans()) else s for s in shape)
    return shape


def dtype_near(draw: Draw, dtype: torch.dtype) -> torch.dtype:
    return draw(st.sampled_from([dtype, dtype, dtype, draw(st.sampled_from(DTYPES))]))


def dim_of(draw: Draw, x: Layout) -> int:
    n = max(len(x.shape), 1)
    return draw(st.integers(-n, n - 1))


def dims_of(draw: Draw, x: Layout) -> list[int]:
    dims = draw(st.lists(st.integers(0, max(len(x.shape) - 1, 0)), unique=True, max_size=3))
    return [d - max(len(x.shape), 1) if draw(st.booleans()) else d for d in dims]


def numbers(draw: Draw) -> Any:
    return draw(st.sampled_from([1, 2, -1, 1.5, True]))


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


def norm(affine: int, native: bool = False) -> Any:
    def strategy(draw: Draw) -> Any:
        x = tensor(draw)
        normalized = x.shape[draw(st.integers(0, len(x.shape))) :]
        args: list[Any] = [x, list(normalized)]
        for _ in range(affine):
            dtype = dtype_near(draw, x.dtype)
            args.append(draw(st.sampled_from([None, tensor(draw, normalized, [dtype])])))
        return [*args, 1e-5] if native or affine == 1 else args, {}

    return strategy


def product(ndim: int) -> Any:
    def strategy(draw: Draw) -> Any:
        b, m, k, n = (draw(sizes) for _ in range(4))
        lead = (b,) if ndim == 3 else ()
        dtype = draw(st.sampled_from(DTYPES))
        return [tensor(draw, (*lead, m, k), [dtype]), tensor(draw, (*lead, k, n), [dtype])], {}

    return strategy


def grouped_mm(draw: Draw) -> Any:
    """bfloat16, sizes of 16 bytes: what PyTorch's own meta kernel takes."""
    g, *sizes = draw(st.integers(1, 3)), *(8 * draw(st.integers(1, 2)) for _ in range(3))
    m, k, n = sizes
    a, b = draw(st.sampled_from([((m, k), (g, k, n)), ((g, m, k), (k, n)), ((m, k), (k, n))]))
    made = [Layout(s, torch.empty(s, device="meta").stride(), 0, torch.bfloat16) for s in (a, b)]
    whole = k if len(a) == len(b) else n if len(b) == 2 else m
    return [*made, Layout((g,), (1,), 0, torch.int32, whole)], {}


def addmm(draw: Draw) -> Any:
    (a, b), _ = product(2)(draw)
    bias = tensor(draw, partner(draw, (a.shape[0], b.shape[1])), [a.dtype])
    return [bias, a, b], draw(st.sampled_from([{}, {"beta": 1, "alpha": 2}]))


def linear(draw: Draw) -> Any:
    x = tensor(draw)
    weight = tensor(draw, (draw(sizes), x.shape[-1] if x.shape else 1), [dtype_near(draw, x.dtype)])
    bias = tensor(draw, weight.shape[:1], [dtype_near(draw, x.dtype)])
    return [x, weight, *draw(st.sampled_from([[], [None], [bias]]))], {}


def matmul(draw: Draw) -> Any:
    a = tensor(draw)
    k = a.shape[-1] if a.shape else 1
    lead = partner(draw, a.shape[:-2])
    shape = draw(st.sampled_from([(k,), (k, draw(sizes)), (*lead, k, draw(sizes))]))
    return [a, tensor(draw, shape, [dtype_near(draw, a.dtype)])], {}


def attention(draw: Draw) -> Any:
    b, h, t, s, d, dv = (draw(st.integers(1, 4)) for _ in range(6))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
    q, k, v = ((b, h, t, d), (b, h, s, d), (b, h, s, dv))
    mask = tensor(draw, draw(st.sampled_from([(t, s), (b, 1, t, s), (1, 1, t, s)])), [dtype, torch.bool])
    arguments = draw(st.sampled_from([[], [mask], [None, 0.0, True]]))
    return [*(tensor(draw, shape, [dtype]) for shape in (q, k, v)), *arguments], {}


def image(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Layout:
    """Often channels-last."""
    if draw(st.booleans()):
        return tensor(draw, shape, [dtype])
    stride = torch.empty(shape, device="meta", memory_format=torch.channels_last).stride()
    return Layout(shape, stride, 0, dtype)


def convolution(kind: str) -> Any:
    """kind: "whole" for aten.convolution, "backward", or "plain" and "transposed" for the composites."""

    def strategy(draw: Draw) -> Any:
        dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]))
        groups, inner, outer = (
            draw(st.sampled_from([1, 1, 2])),
            draw(st.integers(1, 3)),
            draw(st.integers(1, 3)),
        )
        transposed = kind == "transposed" or (kind != "plain" and draw(st.booleans()))
        kernel = [draw(st.integers(1, 3)) for _ in range(2)]
        x = image(
            draw, (draw(st.integers(1, 2)), inner * groups, *(draw(st.integers(1, 6)) for _ in kernel)), dtype
        )
        into = (inner * groups, outer) if transposed else (outer * groups, inner)
        weight = image(draw, (*into, *kernel), dtype)
        bias = draw(st.sampled_from([None, tensor(draw, (outer * groups,), [dtype])]))
        stride, padding, dilation = ([draw(st.integers(a, 2)) for _ in kernel] for a in (1, 0, 1))
        more = [draw(st.integers(0, 1)) for _ in kernel] if transposed else [0, 0]
        if kind == "plain":
            return [x, weight, bias, stride, padding, dilation, groups], {}
        if kind == "transposed":
            return [x, weight, bias, stride, padding, more, groups, dilation], {}
        numbers = [stride, padding, dilation, transposed, more, groups]
        if kind == "whole":
            return [x, weight, bias, *numbers], {}
        sides = [
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            if transposed
            else (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, k, s, p, d, o in zip(x.shape[2:], kernel, stride, padding, dilation, more, strict=True)
        ]
        grad = tensor(draw, (x.shape[0], outer * groups, *(max(side, 1) for side in sides)), [dtype])
        return [grad, x, weight, [outer * groups], *numbers, [True, True, True]], {}

    return strategy


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
