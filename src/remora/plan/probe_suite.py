"""The probes that calibration runs, for CPUs and for GPUs: some milliseconds each, part of a second together."""

from __future__ import annotations

from dataclasses import dataclass, replace

from remora.ir.node import Ref, Slot
from remora.ops.cost import Kind
from remora.plan.probes import Bench, Call, Operand, Sets


@dataclass(frozen=True)
class Sizes:
    """How large probes are on a kind of device. Each of its programs is to take some milliseconds.

    stream: elements of what is copied, ascending; those above `cache` bytes are from memory. width: of weights.
    weights: how many there are, so that all together do not fit a cache. rows: of the left factor of products.
    """

    dtypes: tuple[str, ...]
    stream: tuple[int, ...]
    width: int
    inner: int
    weights: int
    rows: tuple[int, ...]
    tokens: int
    context: int
    heads: int
    head_dim: int
    channels: int
    image: int
    batch: int
    passes: int  # more where other processes disturb


CPU = Sizes(
    ("float32",),
    (4096, 65536, 1 << 20, 1 << 22),
    768,
    3072,
    6,
    (2, 4, 16, 64, 192),
    192,
    1024,
    12,
    64,
    64,
    56,
    1,
    7,
)
GPU = Sizes(
    ("bfloat16", "float32"),
    (1 << 16, 1 << 20, 1 << 24, 1 << 27),
    4096,
    16384,
    4,
    (2, 16, 128, 512, 2048),
    2048,
    8192,
    32,
    128,
    256,
    56,
    32,
    3,
)
# For executors with little memory, or little left: some megabytes. Rates at larger sizes are taken to be those of the
# largest here.
TIGHT_CPU = Sizes(
    ("float32",),
    (4096, 16384, 1 << 16, 1 << 18),
    128,
    512,
    4,
    (2, 4, 16, 64, 128),
    64,
    128,
    4,
    32,
    16,
    28,
    1,
    7,
)
TIGHT_GPU = replace(TIGHT_CPU, dtypes=GPU.dtypes, passes=GPU.passes)


def suite(sizes: Sizes) -> Bench:
    """What is to be run on a device of this kind."""
    bench = Bench(sizes.passes)
    _small(bench)
    _stream(bench, sizes)
    for dtype in sizes.dtypes:
        _products(bench, sizes, dtype)
    dtype = sizes.dtypes[0]
    _attention(bench, sizes, dtype)
    _convolutions(bench, sizes, dtype)
    _rows(bench, sizes, dtype)
    return bench


def _small(bench: Bench) -> None:
    """The time of calls as such, and of the least that a kernel takes: on a few elements."""
    x, square, ids = bench.tensor(16), bench.tensor(16, 16), bench.indices(4, 1)
    image, filters, q = bench.tensor(1, 8, 8, 8), bench.tensor(8, 8, 3, 3), bench.tensor(1, 2, 4, 16)
    vector, table = Slot(x), Slot(square)
    bench.probe("mixed", Sets.CALL, Kind.MOVE, _mixed(table) * 12)
    bench.probe("views", Sets.VIEW, Kind.FREE, _views(table) * 25, views=True)
    cases: list[tuple[str, Kind, Call, int]] = [
        ("add", Kind.MOVE, ("aten.add.Tensor", [vector, vector], (16,)), 200),
        ("tanh", Kind.MATH, ("aten.tanh.default", [vector], (16,)), 100),
        ("softmax", Kind.REDUCE, ("aten.softmax.int", [table, -1], (16, 16)), 100),
        ("embedding", Kind.GATHER, ("aten.embedding.default", [table, Slot(ids)], (4, 16)), 100),
        ("mm", Kind.PRODUCT, ("aten.mm.default", [table, table], (16, 16)), 100),
        ("conv2d", Kind.CONVOLUTION, _conv(image, filters, 1, 1, (1, 8, 8, 8)), 20),
        ("attention", Kind.ATTENTION, _attend(q, q, (1, 2, 4, 16)), 40),
    ]
    for name, kind, call, repeats in cases:
        bench.probe(f"small {name}", Sets.FIXED, kind, [call] * repeats)


def _views(x: Slot) -> list[Call]:
    return [
        ("aten.view.default", [x, [4, 64]], (4, 64)),
        ("aten.transpose.int", [x, 0, 1], (16, 16)),
        ("aten.unsqueeze.default", [x, 0], (1, 16, 16)),
        ("aten.slice.Tensor", [x, 1, 0, 8], (16, 8)),
        ("aten.t.default", [x], (16, 16)),
        ("aten.select.int", [x, 0, 3], (16,)),
    ]


_TWO = "add.Tensor mul.Tensor sub.Tensor div.Tensor maximum.default"
_ONE = "relu neg abs tanh exp sigmoid clone"


def _mixed(x: Slot) -> list[Call]:
    """Different ops in turn, as programs have them: one that is repeated finds its code in the processor's cache,
    and takes half as long."""
    shape = (16, 16)
    pairs: list[Operand] = [x, x]
    two = [(f"aten.{name}", pairs, shape) for name in _TWO.split()]
    one: list[Call] = [(f"aten.{name}.default", [x], shape) for name in _ONE.split()]
    return [
        *two,
        *one,
        ("aten.cat.default", [[x, x], 0], (32, 16)),
        ("aten.mm.default", [x, x], shape),
        ("aten.softmax.int", [x, -1], shape),
        ("aten.sum.dim_IntList", [x, [-1]], (16,)),
        ("aten.addcmul.default", [x, x, x], shape),
        ("aten.native_layer_norm.default", [x, [16], None, None, 1e-5], shape),
    ]


def _attend(q: int, kv: int, shape: tuple[int, ...]) -> Call:
    return ("aten.scaled_dot_product_attention.default", [Slot(q), Slot(kv), Slot(kv)], shape)


def _conv(x: int, weight: int, stride: int, padding: int, shape: tuple[int, ...]) -> Call:
    operands: list[Operand] = [Slot(x), Slot(weight), None, [stride, stride], [padding, padding]]
    return ("aten.conv2d.default", operands, shape)


def _stream(bench: Bench, sizes: Sizes) -> None:
    """Copies of growing size: cache, memory, and what taking fresh memory costs."""
    for count in sizes.stream:
        x = bench.tensor(count)
        repeats = max(1, min(40, sizes.stream[-1] // count // 2))
        bench.probe(
            f"neg {count}", Sets.HOT, Kind.MOVE, [("aten.neg.default", [Slot(x)], (count,))] * repeats
        )


def _products(bench: Bench, sizes: Sizes, dtype: str) -> None:
    """One row by many weights reads memory; by one weight, cache; many rows compute."""
    k, n = sizes.width, sizes.inner
    square, bias = bench.tensor(k, k, dtype=dtype), bench.tensor(k, dtype=dtype)

    def mm(x: int, weight: int, rows: int, columns: int) -> Call:
        return ("aten.mm.default", [Slot(x), Slot(weight)], (rows, columns))

    if dtype == sizes.dtypes[0]:
        one = bench.tensor(1, k, dtype=dtype)
        weights = [bench.tensor(n, k, dtype=dtype) for _ in range(sizes.weights)]
        cold: list[Call] = [  # as layers have them, which are read more slowly than a matrix by columns
            ("aten.linear.default", [Slot(one), Slot(weight)], (1, n)) for weight in weights
        ]
        bench.probe(f"1 row, {sizes.weights} weights", Sets.COLD, Kind.PRODUCT, cold, dtype=dtype)
        hot = [mm(one, square, 1, k)] * 8
        bench.probe("1 row, 1 weight", Sets.HOT, Kind.PRODUCT, hot, dtype=dtype)
    for rows in sizes.rows:
        x = bench.tensor(rows, k, dtype=dtype)
        repeats = 2 if rows < sizes.rows[-1] else 1
        bench.probe(
            f"{rows} rows {dtype}", Sets.FLOPS, Kind.PRODUCT, [mm(x, square, rows, k)] * repeats, dtype=dtype
        )
    x = bench.tensor(sizes.rows[-2], k, dtype=dtype)
    shape = (sizes.rows[-2], k)
    bench.probe(
        f"layer {dtype}",
        Sets.NOTHING,
        Kind.PRODUCT,
        [
            ("aten.addmm.default", [Slot(bias), Slot(x), Slot(square)], shape),
            ("aten.relu.default", [Ref(0)], shape),
            ("aten.mm.default", [Ref(1), Slot(square)], shape),
            ("aten.add.Tensor", [Ref(2), Slot(x)], shape),
            ("aten.layer_norm.default", [Ref(3), [k], Slot(bias), Slot(bias)], shape),
        ],
        dtype=dtype,
    )


def _attention(bench: Bench, sizes: Sizes, dtype: str) -> None:
    heads, d = sizes.heads, sizes.head_dim
    for tokens, keys, repeats in (
        (1, sizes.context, 4),
        (16, sizes.tokens, 4),
        (sizes.tokens, sizes.tokens, 1),
    ):
        q = bench.tensor(1, heads, tokens, d, dtype=dtype)
        kv = bench.tensor(1, heads, keys, d, dtype=dtype)
        calls = [_attend(q, kv, (1, heads, tokens, d))] * repeats
        bench.probe(f"attention {tokens} x {keys}", Sets.FLOPS, Kind.ATTENTION, calls, dtype=dtype)


def _convolutions(bench: Bench, sizes: Sizes, dtype: str) -> None:
    b, c, side = sizes.batch, sizes.channels, sizes.image
    x = bench.tensor(b, c, side, side, dtype=dtype)
    three, one = bench.tensor(c, c, 3, 3, dtype=dtype), bench.tensor(2 * c, c, 1, 1, dtype=dtype)
    deep, deepest = (
        bench.tensor(b, 8 * c, side // 8, side // 8, dtype=dtype),
        bench.tensor(8 * c, 8 * c, 3, 3, dtype=dtype),
    )
    half = side // 2
    for name, call in (
        ("3 x 3", _conv(x, three, 1, 1, (b, c, side, side))),
        ("1 x 1", _conv(x, one, 2, 0, (b, 2 * c, half, half))),
        ("deep", _conv(deep, deepest, 1, 1, (b, 8 * c, side // 8, side // 8))),
    ):
        bench.probe(f"convolution {name}", Sets.FLOPS, Kind.CONVOLUTION, [call], dtype=dtype)
    pool: list[Operand] = [Slot(bench.noise(b, c, side, side)), [3, 3], [2, 2], [1, 1]]
    call = ("aten.max_pool2d.default", pool, (b, c, half, half))
    bench.probe("pool", Sets.FLOPS, Kind.REDUCE, [call])


def _rows(bench: Bench, sizes: Sizes, dtype: str) -> None:
    """Reductions of little, of more and of most arithmetic a byte; functions; look-ups; sorting."""
    rows, width = sizes.tokens, sizes.width
    x, weight = bench.tensor(rows, width, dtype=dtype), bench.tensor(width, dtype=dtype)
    table, ids = bench.tensor(4 * rows, width, dtype=dtype), bench.indices(rows, 3)
    shape = (rows, width)
    some = Slot(x)
    cases: list[tuple[str, Sets, Kind, Call]] = [
        ("sum", Sets.FLOPS, Kind.REDUCE, ("aten.sum.dim_IntList", [some, [-1]], (rows,))),
        (
            "layer_norm",
            Sets.FLOPS,
            Kind.REDUCE,
            ("aten.layer_norm.default", [some, [width], Slot(weight), Slot(weight)], shape),
        ),
        ("softmax", Sets.FLOPS, Kind.REDUCE, ("aten.softmax.int", [some, -1], shape)),
        ("gelu", Sets.FLOPS, Kind.MATH, ("aten.gelu.default", [some], shape)),
        ("tanh", Sets.FLOPS, Kind.MATH, ("aten.tanh.default", [some], shape)),
        ("look-up", Sets.HOT, Kind.GATHER, ("aten.embedding.default", [Slot(table), Slot(ids)], shape)),
        ("exp", Sets.NOTHING, Kind.MATH, ("aten.exp.default", [some], shape)),
        ("sort", Sets.FLOPS, Kind.SORT, ("aten.msort.default", [Slot(bench.noise(width))], (width,))),
        ("mul", Sets.NOTHING, Kind.MOVE, ("aten.mul.Tensor", [some, some], shape)),
    ]
    for name, sets, kind, call in cases:
        bench.probe(name, sets, kind, [call] * 4, dtype="float32" if kind is Kind.SORT else dtype)
