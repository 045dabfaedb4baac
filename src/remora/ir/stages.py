"""Stage rules: what must hold of a graph that enters a stage. A bug shows where it was made."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from remora.errors import PlanError
from remora.ir.annotated import Graph, Outside, Row, Stage
from remora.ir.node import Ref, Slot

Rule = Callable[[Graph], Iterator[str]]
RULES: dict[Stage, list[Rule]] = {stage: [] for stage in Stage}


def rule(stage: Stage) -> Callable[[Rule], Rule]:
    """Declares a rule of a stage: a generator of sentences that say what is wrong."""

    def declare(function: Rule) -> Rule:
        RULES[stage].append(function)
        return function

    return declare


def enter(graph: Graph, stage: Stage) -> Graph:
    """The graph in its next stage.

    Raises:
        PlanError: it breaks a rule of that stage or of one before it; names rule and row.
    """
    for earlier in Stage:
        if earlier <= stage:
            for check in RULES[earlier]:
                for wrong in check(graph):
                    raise PlanError(f"{stage.name}: {check.__name__}: {wrong}")
    return replace(graph, stage=stage)


@rule(Stage.CAPTURED)
def rows_read_what_is_before_them(graph: Graph) -> Iterator[str]:
    for number, row in enumerate(graph.rows):
        for arg in row.tensors():
            if isinstance(arg, Ref) and not (arg.row < number and arg.out < len(graph.rows[arg.row].outs)):
                yield f"row {number} ({row.node.op}) reads output {arg.out} of row {arg.row}"
            if isinstance(arg, Slot) and arg.index >= len(graph.slots):
                yield f"row {number} ({row.node.op}) reads slot {arg.index} of {len(graph.slots)}"


@rule(Stage.CAPTURED)
def sharing_names_an_input(graph: Graph) -> Iterator[str]:
    for number, row in enumerate(graph.rows):
        n = len(row.tensors())
        if len(row.shares) != len(row.outs):
            yield f"row {number} ({row.node.op}) has {len(row.outs)} outputs and says of {len(row.shares)}"
        for position in (*row.writes, *(at for at in row.shares if at is not None)):
            if not 0 <= position < n:
                yield f"row {number} ({row.node.op}) has no tensor input {position}"


@rule(Stage.ANNOTATED)
def what_is_said_has_evidence(graph: Graph) -> Iterator[str]:
    kinds: tuple[tuple[str, tuple[Row | Outside, ...]], ...] = (("row", graph.rows), ("slot", graph.slots))
    for kind, items in kinds:
        for number, item in enumerate(items):
            meaning = item.meaning
            said = (meaning.residency, meaning.phase, meaning.modality, meaning.layer)
            if any(fact is not None for fact in said) and not meaning.evidence:
                yield f"{kind} {number} means something without evidence"


@rule(Stage.PLACED)
def every_row_has_an_executor(graph: Graph) -> Iterator[str]:
    if len(graph.executors) != len(graph.rows):
        yield f"{len(graph.rows)} rows, {len(graph.executors)} executors"
    for number, executor in enumerate(graph.executors):
        if executor < 0:
            yield f"row {number} is nowhere"


@rule(Stage.PLACED)
def what_shares_written_memory_stays_together(graph: Graph) -> Iterator[str]:
    """All rows that touch memory which some row writes, or that view memory, run where that memory is."""
    written = {graph.storage(row.tensors()[at]) for row in graph.rows for at in row.writes}
    homes: dict[tuple[str, int, int], tuple[int, int]] = {}
    for number, row in enumerate(graph.rows):
        tensors = row.tensors()
        touched = {graph.storage(arg) for arg in tensors} & written
        if number < len(graph.executors):
            for storage in touched:
                first, home = homes.setdefault(storage, (number, graph.executors[number]))
                if home != graph.executors[number]:
                    yield (
                        f"rows {first} and {number} share memory that is written, "
                        f"on executors {home} and {graph.executors[number]}"
                    )
