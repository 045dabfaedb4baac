"""A call of a module that is appended to the op stream as a whole, for every size that its guards let pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch.autograd.graph import increment_version

from remora.capture.calls import Call, Differs, GraphRows, Start, matched, start_of
from remora.capture.growth import Grown, Number, Sizes, fitted
from remora.capture.recorder import Recorder
from remora.capture.value import Value
from remora.device.dispatch import tell_default_dtype
from remora.device.guards import Traced, Tree
from remora.device.meta import TensorMeta, intern
from remora.device.scratch import Output, Run, Unfit, ghost_of, run
from remora.device.sink import bound
from remora.device.tensor import RemoraTensor
from remora.ops.layout import Meta

_make = torch.Tensor._make_wrapper_subclass  # type: ignore[attr-defined]
_value_of, _meta_of, _requires_grad_of = attrgetter("_value"), attrgetter("meta"), attrgetter("requires_grad")
# Places where calls of one graph are known to start, for each of which the rows' steps are kept. A loop over a small
# module that is waited for once has as many as turns: with fewer, each place is forgotten before it comes again.
MIN_PLACES = 16
MAX_PLACED_ROWS = 1 << 15  # in all
MAX_DIFFERENT = 3  # places where the rows were not the graph's, before it is left alone
_SMALL = 6  # sizes up to so much above the traced one are tried one by one


class Missed(Exception):
    """The call is not one that the graph was made for."""


class Unknown(Exception):
    """The call has not been recorded op by op at this place of the program yet."""

    def __init__(self, start: Start, names: list[Any], sizes: Sizes) -> None:
        super().__init__()
        self.start, self.names, self.sizes = start, names, sizes


@dataclass(frozen=True)
class GrownMeta:
    """Metadata that follows the sizes of a call."""

    shape: tuple[Number, ...]
    stride: tuple[Number, ...]
    offset: Number
    dtype: torch.dtype
    lazy: int

    def at(self, sizes: Sizes) -> TensorMeta:
        shape, stride = (tuple(_at(n, sizes) for n in numbers) for numbers in (self.shape, self.stride))
        return intern(Meta(shape, stride, _at(self.offset, sizes), self.dtype), self.lazy)


def _at(number: Number, sizes: Sizes) -> int:
    return number.at(sizes) if type(number) is Grown else number  # type: ignore[return-value]


AnyMeta = TensorMeta | GrownMeta


class Metas:
    """Metadata of several tensors; equal ones are computed once."""

    def __init__(self, metas: Sequence[AnyMeta]) -> None:
        self._list: list[Any] = list(metas)
        places: dict[AnyMeta, list[int]] = {}
        for place, meta in enumerate(metas):
            if type(meta) is GrownMeta:
                places.setdefault(meta, []).append(place)
        self._grown = list(places.items())
        self._sizes: Sizes | None = None

    def at(self, sizes: Sizes) -> list[TensorMeta]:
        """Not to be changed, and right until the next sizes."""
        if self._grown and sizes != self._sizes:
            for meta, places in self._grown:
                now = meta.at(sizes)  # type: ignore[union-attr]
                for place in places:
                    self._list[place] = now
            self._sizes = sizes
        return self._list


class Whole:
    """A traced call. Made in the thread that traces, used in those that record.

    Args:
        tree: the module's.
        inputs: the graph's inputs in the call that was traced.

    Raises:
        Unfit: its rows do not follow the sizes in a way that is known.
    """

    def __init__(self, traced: Traced, tree: Tree, inputs: Sequence[Any]) -> None:
        if not tree.unchanged():
            raise Unfit("modules below it have hooks")
        self._tree, self._code, self._check = tree, traced.code, traced.check
        self.call = traced.bind(self._enter)
        self.inference = torch.is_inference_mode_enabled()
        self.scope = bound.memo_scope
        self._tensor_at = [i for i, item in enumerate(inputs) if isinstance(item, RemoraTensor)]
        self._tensors_of = _picks(self._tensor_at)
        self._branches = traced.branches
        self._requires_grad = [inputs[at].requires_grad for at in self._tensor_at]
        points, runs, given = _samples(traced, inputs)
        self._size_at = _sizes_at(traced)
        self._fit(points, runs, given)
        self._calls: dict[tuple[Any, ...], tuple[Call, Metas]] = {}
        self._of: Recorder | None = None
        self.used = False
        self.entered = False  # whether the last call has come to its graph
        self.different = 0
        self.reason = ""

    def holds(self, locals_: dict[str, Any]) -> bool:
        """Whether a call (module, args, kwargs) is the one that was traced, as far as its guards tell."""
        return self._code.unchanged() and self._tree.unchanged() and self._check(locals_)

    def _fit(self, points: list[Sizes], runs: list[Run], given: list[list[TensorMeta]]) -> None:
        first = runs[0]
        for other in runs[1:]:
            if other.nodes != first.nodes or (other.outputs != first.outputs and not _numbers(first, other)):
                raise Unfit("its rows are others at other sizes")
        holes = tuple(_number(points, [r.holes[i] for r in runs]) for i in range(len(first.holes)))
        made = tuple(
            need
            for out in first.outputs
            if isinstance(out, Output)
            for need in (out.made, out.root)
            if need is not None
        )
        self.rows = GraphRows(tuple(first.nodes), holes, tuple(first.ends), made)
        self._points, self._runs = points, runs
        self._metas: dict[Any, AnyMeta] = {}
        self._given = Metas([_meta(points, [metas[i] for metas in given]) for i in range(len(given[0]))])
        self._outputs = [
            _number(points, [r.outputs[i] for r in runs]) if type(out) is int else out
            for i, out in enumerate(first.outputs)
        ]
        self._writes = first.writes
        index = {need: number for number, need in enumerate(dict.fromkeys(made))}
        self._wrapped = [
            (index[o.made], None if o.root is None else index[o.root]) if isinstance(o, Output) else None
            for o in self._outputs
        ]

    def _meta_of(self, made: tuple[int, int]) -> AnyMeta:
        found = self._metas.get(made)
        if found is None:
            row, out = made
            found = self._metas[made] = _meta(self._points, [r.metas[row][out] for r in self._runs])
        return found

    def _meta_at(self, sizes: Sizes, row: int, out: int) -> TensorMeta:
        meta = self._meta_of((row, out))
        return meta.at(sizes) if type(meta) is GrownMeta else meta  # type: ignore[return-value]

    def _all_known(self) -> None:
        """Raises Unfit if an output that only its row knows does not follow the sizes."""
        for row, metas in enumerate(self._runs[0].metas):
            for out, meta in enumerate(metas):
                if meta is not None:
                    self._meta_of((row, out))

    def learn(self, unknown: Unknown, pieces: Sequence[Any], frame: Any) -> None:
        """What a call at an unknown place has recorded op by op."""
        try:
            call = matched(self.rows, unknown.start, pieces, unknown.sizes, unknown.names, frame.f_code)
            metas = Metas([self._meta_of(made) for made in call.values])
            if self._of is not None and self._of.appended is not None:
                self._all_known()
        except (Differs, Unfit) as error:
            self.different += 1
            self.reason = str(error)
            return
        if len(self._calls) >= max(MIN_PLACES, MAX_PLACED_ROWS // max(1, len(self.rows.nodes))):
            del self._calls[next(iter(self._calls))]
        self._calls[unknown.start.place, unknown.start.wiring] = call, metas

    # -- the hot path

    def _enter(self, *inputs: Any) -> list[Any]:
        self.entered = True
        recorder, _ = bound.need()
        if torch.get_default_dtype() is not recorder.context:
            tell_default_dtype(recorder)
        tensors = self._tensors_of(inputs)
        sizes = tuple([inputs[at] for at in self._size_at])
        if {*map(type, tensors)} - _OURS or [*map(_requires_grad_of, tensors)] != self._requires_grad:
            raise Missed
        values = [*map(_value_of, tensors)]
        if [*map(_meta_of, values)] != self._given.at(sizes) or bound.memo_scope != self.scope:
            raise Missed
        if not self._branches.hold(inputs):
            raise Missed
        frame = sys._getframe(1)
        with recorder.lock:
            if recorder.closed is not None:
                raise recorder.closed
            if self._of is not recorder:
                self._calls.clear()  # steps and templates belong to a session
                self._of = recorder
            recorder.cut_before_call()
            start = start_of(recorder, values, frame)
            known = self._calls.get((start.place, start.wiring))
            if known is None:
                raise Unknown(start, [value.name for value in values], sizes)
            call, metas = known
            made = call.append(recorder, values, sizes, metas.at(sizes), self._meta_at)
            for at in self._writes:
                _written(tensors[at])
            return self._results(made, tensors, sizes)

    def _results(self, made: list[Value], tensors: Sequence[RemoraTensor], sizes: Sizes) -> list[Any]:
        results: list[Any] = []
        makers: dict[TensorMeta, Callable[[], Any]] = {}
        for output, wrapped in zip(self._outputs, self._wrapped, strict=True):
            if wrapped is None:
                results.append(tensors[output[1]] if type(output) is tuple else _plain(output, sizes))
                continue
            value, root = made[wrapped[0]], wrapped[1]
            meta = value.meta
            make = makers.get(meta)
            if make is None:
                make = makers[meta] = _maker(meta)
            tensor = make()
            tensor._value = value
            if root is not None:
                tensor._root = made[root]
            results.append(tensor)
        return results


_OURS = {RemoraTensor}


def _picks(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """A function that picks these places from a tuple, without Python code for each."""
    if len(places) < 2:  # one would come by itself
        return lambda items: tuple([items[place] for place in places])
    return itemgetter(*places)


def _maker(meta: TensorMeta) -> Callable[[], Any]:
    return partial(
        _make,
        RemoraTensor,
        meta.shape,
        meta.stride,
        meta.offset,
        None,
        meta.dtype,
        torch.strided,
        meta.device,
    )


def _plain(output: Any, sizes: Sizes) -> Any:
    return None if output is None else _at(output, sizes)


def _written(tensor: RemoraTensor) -> None:
    shadow = tensor._value.shadow
    if shadow is not None:
        shadow.valid[0] = False
    if not tensor.is_inference():
        increment_version(tensor)


# -- from samples to what is known at any size


def _numbers(one: Run, other: Run) -> bool:
    """Whether outputs differ in plain numbers only."""
    pairs = zip(one.outputs, other.outputs, strict=True)
    return all(a == b or (type(a) is int and type(b) is int) for a, b in pairs)


def _number(points: list[Sizes], values: list[Any]) -> Number:
    found = fitted(points, values)
    if found is None:
        raise Unfit(f"numbers {values} do not follow the sizes {points}")
    return found


def _meta(points: list[Sizes], metas: list[Any]) -> AnyMeta:
    first = metas[0]
    if all(meta is first for meta in metas):
        return first  # type: ignore[no-any-return]
    if any(len(meta.shape) != len(first.shape) or meta.dtype is not first.dtype for meta in metas):
        raise Unfit("tensors of another kind at other sizes")
    shape, stride = (
        tuple(
            _number(points, list(numbers)) for numbers in zip(*[getattr(m, what) for m in metas], strict=True)
        )
        for what in ("shape", "stride")
    )
    return GrownMeta(shape, stride, _number(points, [m.offset for m in metas]), first.dtype, first.lazy)


def _sizes_at(traced: Traced) -> list[int]:
    """Where among the inputs each symbol of the trace stands by itself."""
    symbols = _symbols(traced)
    found = {}
    for at, item in enumerate(traced.inputs):
        if isinstance(item, torch.SymInt):
            found.setdefault(item.node.expr, at)
    missing = [symbol for symbol in symbols if symbol not in found]
    if missing:
        raise Unfit(f"sizes {missing} are not told by an input")
    return [found[symbol] for symbol in symbols]


def _symbols(traced: Traced) -> list[Any]:
    found: dict[Any, None] = {}
    for number in _all_numbers(traced):
        if isinstance(number, torch.SymInt):
            found.update(dict.fromkeys(sorted(number.node.expr.free_symbols, key=str)))
    return list(found)


def _all_numbers(traced: Traced) -> Iterator[Any]:
    for item in traced.inputs:
        if isinstance(item, torch.Tensor):
            yield from (*item.shape, *item.stride(), item.storage_offset())
        else:
            yield item


def _samples(traced: Traced, inputs: Sequence[Any]) -> tuple[list[Sizes], list[Run], list[list[TensorMeta]]]:
    """Runs the graph at the traced sizes and at others: the sizes, what it recorded, its inputs' metadata."""
    symbols = _symbols(traced)
    value_of = _values_at(symbols)
    origin = tuple(int(symbol_value(traced, symbol)) for symbol in symbols)
    points: list[Sizes] = []
    runs: list[Run] = []
    given: list[list[TensorMeta]] = []
    for point in _points(origin):
        if not _allowed(traced, symbols, point):
            continue
        at = [
            _input_at(fake, real, value_of, point) for fake, real in zip(traced.inputs, inputs, strict=True)
        ]
        metas = [item._value.meta for item in at if isinstance(item, RemoraTensor)]
        if not points and metas != [t._value.meta for t in inputs if isinstance(t, RemoraTensor)]:
            raise Unfit("the trace saw other tensors")
        points.append(point)
        runs.append(run(traced.graph, at))
        given.append(metas)
    for axis in range(len(symbols)):
        if len({point[axis] for point in points}) < 3:
            raise Unfit(f"too few sizes are allowed for {symbols[axis]}")
    return points, runs, given


def symbol_value(traced: Traced, symbol: Any) -> int:
    """What a symbol was in the call that was traced."""
    shapes = traced.shapes
    known = getattr(shapes, "backed_var_to_val", None) or shapes.var_to_val
    return int(known[symbol])


def _points(origin: Sizes) -> list[Sizes]:
    """The traced sizes first; then each size by itself, near and far; then all together."""
    points = [origin]
    for axis, size in enumerate(origin):
        others = [n for n in (2, 3, size // 2, size - 1) if 2 <= n < size]
        others += [size + 1, size + 2, size + _SMALL, 2 * size, 2 * size + 1, 4 * size + 3, 16 * size + 1]
        others += [4096, 32769]
        points += [(*origin[:axis], other, *origin[axis + 1 :]) for other in dict.fromkeys(others)]
    if len(origin) > 1:  # some may only change together
        steps = (-1, 1, 2, _SMALL, 17, 100, 1021, 4096, 32769)
        points += [tuple(size + step for size in origin) for step in steps if min(origin) + step > 1]
    return points


def _values_at(symbols: list[Any]) -> Callable[[Any, Sizes], int]:
    known: dict[tuple[Any, Sizes], int] = {}

    def value(number: Any, point: Sizes) -> int:
        if not isinstance(number, torch.SymInt):
            return int(number)
        expression = number.node.expr
        key = expression, point
        if key not in known:
            known[key] = int(expression.subs(dict(zip(symbols, point, strict=True))))
        return known[key]

    return value


def _allowed(traced: Traced, symbols: list[Any], point: Sizes) -> bool:
    """Whether the guards of the trace allow these sizes."""
    sizes = dict(zip(symbols, point, strict=True))
    for guard in traced.shapes.guards:
        if guard.expr.free_symbols <= set(symbols) and guard.expr.subs(sizes) == False:  # noqa: E712
            return False
    ranges = traced.shapes.var_to_range
    return all(symbol not in ranges or sizes[symbol] in ranges[symbol] for symbol in symbols)


def _input_at(fake: Any, real: Any, value_of: Callable[[Any, Sizes], int], point: Sizes) -> Any:
    if not isinstance(fake, torch.Tensor):
        if not isinstance(fake, (int, torch.SymInt)) or isinstance(fake, bool):
            raise Unfit(f"an input of type {type(fake).__name__}")
        return value_of(fake, point)
    if not isinstance(real, RemoraTensor):
        raise Unfit(f"a tensor on {real.device}")
    shape, stride = (tuple(value_of(n, point) for n in numbers) for numbers in (fake.shape, fake.stride()))
    offset = value_of(fake.storage_offset(), point)
    meta = real._value.meta
    return ghost_of(real, intern(Meta(shape, stride, offset, meta.dtype), meta.lazy, meta.index))
