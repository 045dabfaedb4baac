"""Watches a session: makes of each segment the graph that a planner would see, and annotates it.

As a planner does, once for a template and a power-of-two size: later uses take what was said the first time, until a
later graph teaches better (semantics/annotate.py: stale).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from remora.capture.recorder import Recorder, Segment, Step
from remora.capture.value import OUT_BITS, Value
from remora.device.meta import TensorMeta
from remora.ir.annotated import NOTHING, Facts, Graph, Meaning, Outside, Row
from remora.ir.node import Const, Items, Node, Ref, Slot
from remora.ops.dtypes import dtype_name
from remora.ops.schema import Place, resolve, traits
from remora.semantics.annotate import annotate, stale
from remora.semantics.memory import EMPTY, Memory

Name = tuple[int, int]  # segment and code of a value


@dataclass
class Plan:
    """A template in a size, with what was said of it. number: of the graph that it was first seen in."""

    captured: Graph
    annotated: Graph
    segment: int
    names: tuple[Name, ...]
    seconds: float
    annotations: int = 1


@dataclass
class _Known:
    """A value: the memory that it lies in, who made it, what was said of it."""

    storage: int
    graph: int
    made_by: tuple[Node, int] | None
    plan: Plan | None = None
    row: int = 0
    reads: int = 0
    said: Meaning | None = None

    def meaning(self) -> Meaning:
        if self.said is not None:
            return self.said
        return self.plan.annotated.rows[self.row].meaning if self.plan is not None else NOTHING


@dataclass
class Watch:
    """Plans of a session's segments, by template and size, in the order in which they came."""

    plans: dict[tuple[bytes, int], Plan] = field(default_factory=dict)
    memory: Memory = EMPTY
    graphs: int = 0
    strip_paths: bool = False  # as a program without modules
    on_plan: Callable[[Plan], None] | None = None

    def __post_init__(self) -> None:
        self.values: dict[Name, _Known] = {}
        self._written: set[int] = set()
        self.uploads: set[int] = set()  # storages
        self._steps: list[Step] = []
        self._wanted: list[Value] = []
        self._detach: Callable[[], None] = lambda: None

    def attach(self, session: Any) -> None:
        """Sees everything that the session records from now on."""
        recorder: Recorder = session.recorder
        end_segment, fetch = recorder.end_segment, session.fetch

        def ending() -> Segment | None:
            recorder.repair()
            self._steps = _chain(recorder.step)
            return end_segment()

        def fetching(values: list[Value], describe: bool = False) -> Any:
            self._wanted = [] if describe else values
            try:
                return fetch(values, describe)
            finally:
                self._wanted = []

        recorder.end_segment, session.fetch, session.tap = ending, fetching, self._see

    def storage(self, name: Name) -> int | None:
        known = self.values.get(name)
        return known.storage if known is not None else None

    def _see(self, segment: Segment) -> None:
        graph = self._graph(segment)
        size = sum(facts.nbytes for row in graph.rows for facts in row.outs if facts is not None)
        key = segment.captured.template.id, size.bit_length()
        plan = self.plans.get(key)
        if plan is None:
            names = tuple((value.segment, value.code) for value in segment.slots)
            started = time.perf_counter()
            annotated, memory = annotate(graph, self.memory)
            plan = Plan(graph, annotated, segment.number, names, time.perf_counter() - started)
            self.plans[key] = plan
            self._learn(memory)
            if self.on_plan is not None:
                self.on_plan(plan)
        self._remember(segment, graph, plan)

    def _learn(self, memory: Memory) -> None:
        taught = memory != self.memory
        self.memory = memory
        for plan in self.plans.values() if taught else ():
            if stale(plan.annotated, self.memory):
                plan.annotated, self.memory = annotate(plan.captured, self.memory)
                plan.annotations += 1

    def _remember(self, segment: Segment, graph: Graph, plan: Plan) -> None:
        for number, value in enumerate(segment.slots):
            known = self.values[value.segment, value.code]
            known.reads += 1
            known.said = plan.annotated.slots[number].meaning
        for number, row in enumerate(graph.rows):
            for out in range(len(row.outs)):
                kind, root, root_out = graph.storage(Ref(number, out))
                storage = root if kind == "slot" else _storage(segment.number, root << OUT_BITS | root_out)
                name = segment.number, number << OUT_BITS | out
                self.values[name] = _Known(storage, self.graphs, (row.node, out), plan, number)
            for place in row.writes:
                kind, root, root_out = graph.storage(row.tensors()[place])
                self._written.add(
                    root if kind == "slot" else _storage(segment.number, root << OUT_BITS | root_out)
                )
        self.graphs += 1

    # -- from a segment to a graph

    def _graph(self, segment: Segment) -> Graph:
        slots = tuple(self._outside(value) for value in segment.slots)
        rows = []
        for number, node in enumerate(segment.captured.template.nodes):
            rows.append(self._row(node, self._steps[number], slots, rows))
        keep = frozenset(zip(segment.keep[::2], segment.keep[1::2], strict=True))
        wants = frozenset(value.name[1:] for value in self._wanted if value.segment == segment.number)
        return Graph(tuple(rows), slots, tuple(segment.holes), keep, wants)

    def _outside(self, value: Value) -> Outside:
        name = value.segment, value.code
        known = self.values.get(name)
        if known is None:  # an upload, or made before the watch began
            known = self.values[name] = _Known(_storage(*name), self.graphs, None)
        if value.uploaded:
            self.uploads.add(known.storage)
        return Outside(
            _facts(value.meta),
            known.storage,
            value.uploaded,
            known.made_by,
            self.graphs - known.graph,
            known.storage in self._written,
            known.reads,
            known.meaning(),
        )

    def _row(self, node: Node, step: Step, slots: tuple[Outside, ...], rows: list[Row]) -> Row:
        known, outcome = traits(resolve(node.op)), step.outcome
        tensors = [arg for arg in node.inputs() if isinstance(arg, Ref | Slot)]
        outs: list[Facts | None] = []
        shares: list[int | None] = []
        for number, out in enumerate(outcome.outs):
            views = [place for at, place in known.views if at in (number, 0)] if outcome.is_view else []
            places = [at for place in views for at in positions(node, place)]
            shares.append(out if isinstance(out, int) else places[0] if places else None)
            if isinstance(out, int):
                arg = tensors[out]
                outs.append(slots[arg.index].facts if isinstance(arg, Slot) else rows[arg.row].outs[arg.out])
            else:
                outs.append(_facts(out) if isinstance(out, TensorMeta) else None)
        args = [arg.value if isinstance(arg, Const) else arg for arg in node.args]
        writes = tuple(at for place in known.writes(args) for at in positions(node, place))
        where = step.where
        module = "" if where is None or self.strip_paths else where.module
        source = "" if where is None else f"{where.file}:{where.line}"
        return Row(node, tuple(outs), tuple(shares), writes, module, source)


def positions(node: Node, place: Place) -> tuple[int, ...]:
    """Positions among a node's tensor inputs of those that stand at a place of its schema."""
    before: tuple[Any, ...] = node.args[:place] if isinstance(place, int) else node.args
    at: Any = node.args[place] if isinstance(place, int) and place < len(node.args) else None
    for name, arg in node.kwargs:
        if name == place:
            at = arg
            break
        if isinstance(place, str):
            before = (*before, arg)
    first = _n_tensors(before)
    return tuple(range(first, first + _n_tensors((at,))))


def _n_tensors(args: tuple[Any, ...]) -> int:
    return sum(
        _n_tensors(arg.items) if isinstance(arg, Items) else isinstance(arg, Ref | Slot) for arg in args
    )


def _facts(meta: TensorMeta) -> Facts:
    return Facts(dtype_name(meta.dtype), tuple(meta.shape), meta.dtype.itemsize)


def _storage(segment: int, code: int) -> int:
    return segment << 32 | code


def _chain(step: Step) -> list[Step]:
    found: list[Step] = []
    at: Step | None = step
    while at is not None and at.node is not None:
        found.append(at)
        at = at.parent
    return found[::-1]
