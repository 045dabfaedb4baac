"""Short programs that tell how fast a device is, as templates that any executor runs.

One template makes the inputs (`PREPARE`); each probe repeats one op on them, so that its time divided by its rows
is the op's. A probe says which rate it sets; those that set none are held out, to tell how well the others predict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import prod

from remora.ir.annotated import Facts, Graph, Outside, Row
from remora.ir.graph import Template
from remora.ir.node import Arg, Const, Hole, Items, Node, Ref, Slot, Symbol
from remora.ops.cost import Kind

Number = int | float
Operand = int | float | bool | str | None | Ref | Slot | Symbol | list["Operand"]
ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2, "int64": 8}


class Sets(Enum):
    """What a probe's time is taken for."""

    CALL = "call"  # a row that computes nothing
    FIXED = "fixed"  # a kernel on next to nothing
    HOT = "hot"  # bytes per second, from cache
    COLD = "cold"  # bytes per second, from memory
    FLOPS = "flops"  # operations per second
    NOTHING = "nothing"  # held out


@dataclass(frozen=True)
class Probe:
    """A program over tensors that `prepare` made. inputs: which of them fill its slots.

    kind: of the op that it repeats. The graph's last use of each row is the row itself, so nothing is kept.
    """

    name: str
    sets: Sets
    kind: Kind
    graph: Graph
    inputs: tuple[int, ...] = ()

    @property
    def template(self) -> Template:
        return Template(tuple(row.node for row in self.graph.rows))


@dataclass
class Bench:
    """All that is run on one device: what makes the inputs, then the probes."""

    made: list[Row] = field(default_factory=list)
    holes: list[Number] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)

    @property
    def prepare(self) -> Template:
        """Makes the inputs: output 0 of row r is what probes call input r."""
        return Template(tuple(row.node for row in self.made))

    def tensor(self, *shape: int, dtype: str = "float32", value: float = 0.5) -> int:
        """An input filled with one value; returns its number."""
        node = _node("aten.full.default", [list(shape), value], self.holes, _made_as(dtype))
        self.made.append(Row(node, (Facts(dtype, shape, ITEMSIZE[dtype]),), (None,)))
        return len(self.made) - 1

    def indices(self, count: int, step: int) -> int:
        """An input of row numbers 0, step, 2 step, …"""
        node = _node("aten.arange.start_step", [0, count * step, step], self.holes, _made_as("int64"))
        self.made.append(Row(node, (Facts("int64", (count,), 8),), (None,)))
        return len(self.made) - 1

    def probe(
        self,
        name: str,
        sets: Sets,
        kind: Kind,
        calls: list[tuple[str, list[Operand], tuple[int, ...]]],
        shares: bool = False,
        dtype: str = "float32",
    ) -> None:
        """Adds a probe of some calls (op, operands, shape of the result). A Slot among the operands is an input."""
        inputs: dict[int, int] = {}
        holes: list[Number] = []
        rows = []
        for op, operands, shape in calls:
            node = _node(op, [_slotted(operand, inputs) for operand in operands], holes)
            rows.append(Row(node, (Facts(dtype, shape, ITEMSIZE[dtype]),), (0 if shares else None,)))
        slots = tuple(Outside(_facts(self.made[made]), slot) for made, slot in inputs.items())
        graph = Graph(tuple(rows), slots, tuple(holes))
        self.probes.append(Probe(name, sets, kind, graph, tuple(inputs)))


def _facts(row: Row) -> Facts:
    facts = row.outs[0]
    assert facts is not None
    return facts


def _made_as(dtype: str) -> dict[str, Operand]:
    return {"dtype": Symbol("dtype", dtype), "device": Symbol("device", "executor")}


def _slotted(operand: Operand, inputs: dict[int, int]) -> Operand:
    """Inputs numbered as the probe's slots, in the order in which they are used."""
    if isinstance(operand, Slot):
        return Slot(inputs.setdefault(operand.index, len(inputs)))
    if isinstance(operand, list):
        return [_slotted(item, inputs) for item in operand]
    return operand


def _node(
    op: str, operands: list[Operand], holes: list[Number], keywords: dict[str, Operand] | None = None
) -> Node:
    args = tuple(_arg(operand, holes) for operand in operands)
    return Node(op, args, tuple((name, _arg(value, holes)) for name, value in (keywords or {}).items()))


def _arg(operand: Operand, holes: list[Number]) -> Arg:
    if operand is None or isinstance(operand, bool | str):
        return Const(operand)
    if isinstance(operand, int | float):
        holes.append(operand)
        return Hole("int" if isinstance(operand, int) else "float")
    if isinstance(operand, list):
        return Items(tuple(_arg(item, holes) for item in operand))
    return operand


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
)


def probes(sizes: Sizes) -> Bench:
    """What is to be run on a device of this kind."""
    bench = Bench()
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
    """The time of calls as such: on a few elements."""
    x, square, ids = bench.tensor(16), bench.tensor(16, 16), bench.indices(4, 1)
    image, filters, q = bench.tensor(1, 8, 8, 8), bench.tensor(8, 8, 3, 3), bench.tensor(1, 2, 4, 16)
    vector, table = Slot(x), Slot(square)
    bench.probe("views", Sets.CALL, Kind.FREE, [("aten.view.default", [vector, [4, 4]], (4, 4))] * 200, True)
    cases: list[tuple[str, Kind, tuple[str, list[Operand], tuple[int, ...]], int]] = [
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


def _attend(q: int, kv: int, shape: tuple[int, ...]) -> tuple[str, list[Operand], tuple[int, ...]]:
    return ("aten.scaled_dot_product_attention.default", [Slot(q), Slot(kv), Slot(kv)], shape)


def _conv(
    x: int, weight: int, stride: int, padding: int, shape: tuple[int, ...]
) -> tuple[str, list[Operand], tuple[int, ...]]:
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
    weights = [bench.tensor(k, n, dtype=dtype) for _ in range(sizes.weights)]
    square, bias = bench.tensor(k, k, dtype=dtype), bench.tensor(k, dtype=dtype)
    one = bench.tensor(1, k, dtype=dtype)

    def mm(x: int, weight: int, rows: int, columns: int) -> tuple[str, list[Operand], tuple[int, ...]]:
        return ("aten.mm.default", [Slot(x), Slot(weight)], (rows, columns))

    first = dtype == sizes.dtypes[0]
    cold = [mm(one, weight, 1, n) for weight in weights] * 2
    bench.probe(
        f"1 row, {sizes.weights} weights {dtype}",
        Sets.COLD if first else Sets.NOTHING,
        Kind.PRODUCT,
        cold,
        dtype=dtype,
    )
    hot = [mm(one, square, 1, k)] * 8
    bench.probe(
        f"1 row, 1 weight {dtype}", Sets.HOT if first else Sets.NOTHING, Kind.PRODUCT, hot, dtype=dtype
    )
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


def _rows(bench: Bench, sizes: Sizes, dtype: str) -> None:
    """Reductions of little, of more and of most arithmetic a byte; functions; look-ups; sorting."""
    rows, width = sizes.tokens, sizes.width
    x, weight = bench.tensor(rows, width, dtype=dtype), bench.tensor(width, dtype=dtype)
    table, ids = bench.tensor(4 * rows, width, dtype=dtype), bench.indices(rows, 3)
    shape = (rows, width)
    some = Slot(x)
    for name, sets, kind, call in (
        ("sum", Sets.FLOPS, Kind.REDUCE, ("aten.sum.dim_IntList", [some, [-1]], (rows,))),
        (
            "layer_norm",
            Sets.FLOPS,
            Kind.REDUCE,
            ("aten.layer_norm.default", [some, [width], Slot(weight), Slot(weight)], shape),
        ),
        ("softmax", Sets.FLOPS, Kind.REDUCE, ("aten.softmax.int", [some, -1], shape)),
        ("gelu", Sets.FLOPS, Kind.MATH, ("aten.gelu.default", [some], shape)),
        ("tanh", Sets.NOTHING, Kind.MATH, ("aten.tanh.default", [some], shape)),
        ("look-up", Sets.HOT, Kind.GATHER, ("aten.embedding.default", [Slot(table), Slot(ids)], shape)),
        ("sort", Sets.FLOPS, Kind.SORT, ("aten.msort.default", [Slot(weight)], (width,))),
        ("mul", Sets.NOTHING, Kind.MOVE, ("aten.mul.Tensor", [some, some], shape)),
    ):
        bench.probe(name, sets, kind, [call] * 4, dtype=dtype)


def nbytes(bench: Bench) -> int:
    """Memory that the inputs take."""
    return sum(prod(_facts(row).shape) * _facts(row).itemsize for row in bench.made)
