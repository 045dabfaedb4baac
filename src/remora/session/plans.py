"""A plan: a decision of the planner in the terms of lanes, with what running it has shown so far."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from remora.capture.recorder import CapturedTemplate
from remora.capture.value import OUT_BITS
from remora.ir.annotated import Facts, Graph
from remora.ir.node import Ref, Slot
from remora.plan.duration import Duration
from remora.plan.memory import Need, need
from remora.plan.parts import Part, Parts, Transfer
from remora.plan.passes import PassChoice
from remora.plan.planner import Decision
from remora.plan.policies.policy import Wish
from remora.session.holdings import Made

REMEMBERED = 8  # timed runs
UNKNOWN = Facts("uint8", (0,), 1)  # of a value whose shape only the data tells, until it is described


@dataclass(frozen=True, slots=True)
class Timed:
    """One run of a plan's parts: predicted before it, with all that was learned until then, and measured, each by
    itself."""

    predicted: Duration
    parts_s: tuple[float, ...]

    @property
    def measured_s(self) -> float:
        """Of all executors together."""
        return sum(self.parts_s)


@dataclass
class Ran:
    """What running a plan has shown. planning_s: what making it took."""

    planning_s: float
    count: int = 0
    timed: deque[Timed] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


@dataclass(frozen=True)
class Plan:
    """How a template runs.

    captured: of each part. transfers: before each part. sends: behind each part, what sets out to which executor.
    found: where each row's outputs are made: part and row there. keeps: of each part, what it keeps, flat (row, out).
    bound: for each hole of the graph, the segment's whose number it takes; None: that of the graph.
    moves: positions of slots whose memory gets another owner first. writes: slots whose memory is written.
    made: of each value that lives on, in the order of the segment's own list, with whose memory it lies in: that of a
    slot (0 or more), of an earlier one of them (its position less their number: below 0), or, None, its own.
    straight: all of it runs as it is, on one executor. drops: after each part, (executor, row, out) of what only
    travelled and ends.
    nbytes: of the slots, when the plan was made. gets_nbytes, makes_nbytes: by executor, what has to get there first,
    and what is made there, at most at one time. draws: where random numbers are drawn, if any are.
    predicted: of each part, by the model alone. phases: what the graph does, in how many of its rows.
    homes: executors that had each slot when the plan was made.
    graph: as it runs. captured_graph: as the program wrote it, annotated. exact: whether the plan holds for the sizes
    and whole numbers of its first run alone. choices: of the passes that were tried.
    """

    template: bytes
    bucket: int
    parts: tuple[Part, ...]
    captured: tuple[CapturedTemplate, ...]
    transfers: tuple[tuple[Transfer, ...], ...]
    sends: tuple[tuple[tuple[int, tuple[Ref, ...]], ...], ...]
    found: tuple[tuple[int, int], ...]
    keeps: tuple[tuple[int, ...], ...]
    bound: tuple[int | None, ...]
    moves: tuple[tuple[int, int], ...]
    writes: tuple[int, ...]
    made: tuple[tuple[Made, int | None], ...]
    straight: bool
    facts: dict[tuple[int, int], Facts]
    drops: tuple[tuple[tuple[int, int, int], ...], ...]
    nbytes: int
    gets_nbytes: tuple[tuple[int, int], ...]
    makes_nbytes: tuple[tuple[int, int], ...]
    draws: int | None
    predicted: tuple[Duration, ...]
    whole: Duration
    phases: dict[str, int]
    wish: Wish
    homes: tuple[frozenset[int], ...]
    exact: bool
    choices: tuple[PassChoice, ...]
    graph: Graph = field(repr=False)
    captured_graph: Graph = field(repr=False)
    ran: Ran = field(repr=False)

    @property
    def is_due(self) -> bool:
        """Whether it has run so often that a pass would pay now that did not when it was made."""
        if not self.choices:
            return False
        waits = [
            choice.from_run for choice in self.choices if not choice.taken and choice.from_run is not None
        ]
        return bool(waits) and self.ran.count >= max(1, min(waits))

    @property
    def phase(self) -> str:
        """Of most of its rows, '' if that is not known."""
        return max(self.phases, key=lambda phase: self.phases[phase], default="")

    def residency(self, value: Ref | Slot) -> str:
        """Of a value of the graph, '' if nobody recognised it."""
        if isinstance(value, Slot):
            return self.graph.slots[value.index].meaning.residency or ""
        return self.graph.rows[value.row].meaning.residency or ""


class Use(msgspec.Struct, frozen=True, eq=False, gc=False):
    """One run of a plan. storages: the memories (holdings.Storage.number) of its slots, which other runs have others
    of: equal layers may share a plan."""

    plan: Plan
    storages: tuple[int, ...]


def plan_of(
    decision: Decision,
    whole: CapturedTemplate,
    keep: tuple[int, ...],
    nbytes: int,
    homes: tuple[frozenset[int], ...],
    number: Callable[[], int],
    planning_s: float,
) -> Plan:
    """The plan for a template.

    Args:
        keep: what lives on, flat (row, out). nbytes: of all slots. number: gives the captured template of a part a
            number of its own.
    """
    graph, parts, rewrite = decision.rewrite.graph, decision.parts, decision.rewrite
    found = {row: (at, here) for at, part in enumerate(parts.parts) for here, row in enumerate(part.rows)}
    slots = {slot.storage: index for index, slot in enumerate(graph.slots)}
    written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
    drops, copies = _ends(graph, parts)
    facts = {
        (number, out): known
        for number, row in enumerate(graph.rows)
        for out, known in enumerate(row.outs)
        if known is not None
    }
    needs = _needs(decision, homes)
    straight = len(parts.parts) == 1 and not rewrite.exact and parts.parts[0].template.id == whole.template.id
    kept = [rewrite.outputs[pair] for pair in zip(keep[::2], keep[1::2], strict=True)]
    return Plan(
        whole.template.id,
        nbytes.bit_length(),
        parts.parts,
        (whole,)
        if straight
        else tuple(
            CapturedTemplate(
                part.template, number(), tuple(whole.where[rewrite.rows[row]] for row in part.rows)
            )
            for part in parts.parts
        ),
        tuple(
            tuple(transfer for transfer in parts.transfers if transfer.before == at)
            for at in range(len(parts.parts))
        ),
        tuple(_sent(parts, at) for at in range(len(parts.parts))),
        tuple(found[row] for row in range(len(graph.rows))),
        tuple(_kept(part, kept) for part in parts.parts),
        rewrite.holes,
        tuple((slots[storage], executor) for storage, executor in decision.moves),
        tuple(sorted(slots[number] for kind, number, _ in written if kind == "slot")),
        _made(decision, found, keep, facts, copies),
        straight,
        facts,
        drops,
        nbytes,
        tuple((executor, of.missing_nbytes) for executor, of in needs if of.missing_nbytes),
        tuple((executor, of.peak_nbytes - of.missing_nbytes) for executor, of in needs),
        decision.draws,
        tuple(estimate.duration for estimate in decision.predicted.parts),
        decision.predicted.estimate.duration,
        _phases(graph),
        decision.wish,
        homes,
        rewrite.exact,
        decision.choices,
        graph,
        decision.graph,
        Ran(planning_s),
    )


def _needs(decision: Decision, homes: tuple[frozenset[int], ...]) -> list[tuple[int, Need]]:
    """Of each executor that runs some of it, what it needs beside what it holds."""
    found = []
    for executor in sorted({part.executor for part in decision.parts.parts}):
        graph = decision.rewrite.graph
        rows = [row for row, at in enumerate(graph.executors) if at == executor]
        found.append((executor, need(graph, rows, [executor in home for home in homes], 0)))
    return found


def _sent(parts: Parts, at: int) -> tuple[tuple[int, tuple[Ref, ...]], ...]:
    """Of Plan.sends."""
    by_target: dict[int, list[Ref]] = {}
    for transfer in parts.transfers:
        if transfer.after == at and isinstance(transfer.value, Ref):
            by_target.setdefault(transfer.target, []).append(transfer.value)
    return tuple((target, tuple(values)) for target, values in by_target.items())


def _kept(part: Part, kept: list[tuple[int, int]]) -> tuple[int, ...]:
    """Of Plan.keeps: what lives on, and what other parts read."""
    local = {row: here for here, row in enumerate(part.rows)}
    lasting = dict.fromkeys(kept)
    keep = [(local[row], out) for row, out in lasting if row in local]
    exported = sorted((local[row], out) for row, out in part.exports if (row, out) not in lasting)
    return tuple(n for pair in (*keep, *exported) for n in pair)


def _phases(graph: Graph) -> dict[str, int]:
    return Counter(row.meaning.phase.value for row in graph.rows if row.meaning.phase is not None)


def _made(
    decision: Decision,
    found: dict[int, tuple[int, int]],
    keep: tuple[int, ...],
    facts: dict[tuple[int, int], Facts],
    copies: tuple[tuple[int, int, int], ...],
) -> tuple[tuple[Made, int | None], ...]:
    """Plan.made."""
    captured, parts, graph = decision.graph, decision.parts, decision.rewrite.graph
    slots = {slot.storage: at for at, slot in enumerate(graph.slots)}
    first: dict[tuple[str, int, int], int] = {}
    made: list[tuple[Made, int | None]] = []
    kept = list(zip(keep[::2], keep[1::2], strict=True))
    for at, (captured_row, captured_out) in enumerate(kept):
        row, out = decision.rewrite.outputs[captured_row, captured_out]
        part, here = found[row]
        known = facts.get((row, out), UNKNOWN)
        storage = graph.storage(Ref(row, out))
        if storage[0] == "slot":
            shared: int | None = slots[storage[1]]
        else:
            earlier = first.setdefault(storage, at)
            shared = earlier - len(kept) if earlier != at else None
        value = Made(
            part,
            here << OUT_BITS | out,
            parts.parts[part].executor,
            known,
            known.nbytes,
            (captured.rows[captured_row].node, captured_out),
            captured.rows[captured_row].meaning,
            captured.template,
            tuple(executor for executor, *copied in copies if copied == [row, out]),
            row,
        )
        made.append((value, shared))
    return tuple(made)


def _ends(
    graph: Graph, parts: Parts
) -> tuple[tuple[tuple[tuple[int, int, int], ...], ...], tuple[tuple[int, int, int], ...]]:
    """Plan.drops, and (executor, row, out) of what lives on at an executor that did not make it."""
    drops: list[list[tuple[int, int, int]]] = [[] for _ in parts.parts]
    copies: list[tuple[int, int, int]] = []
    last_used: dict[tuple[int, int, int], int] = {}
    for transfer in parts.transfers:
        value = transfer.value
        if isinstance(value, Ref):
            at_source, at_target = (
                (transfer.source, value.row, value.out),
                (transfer.target, value.row, value.out),
            )
            assert transfer.after is not None
            last_used[at_source] = max(last_used.get(at_source, 0), transfer.after)
            if (value.row, value.out) in graph.keep:
                copies.append(at_target)
            else:
                last_used.setdefault(at_target, 0)
    exported = {pair for part in parts.parts for pair in part.exports}
    for at, part in enumerate(parts.parts):
        for value in part.inputs:
            if isinstance(value, Ref) and (value.row, value.out) in exported:
                use = part.executor, value.row, value.out
                last_used[use] = max(last_used.get(use, 0), at)
    for (executor, row, out), at in sorted(last_used.items()):
        if (row, out) not in graph.keep:
            drops[at].append((executor, row, out))
    return tuple(map(tuple, drops)), tuple(copies)
