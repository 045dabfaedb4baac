"""What a plan did, and why: the tree behind `remora.explain()`, like a database's EXPLAIN ANALYZE.

The tree holds plain numbers and names. It prints as text (`str`), goes to JSON and back without loss, and makes one
HTML file that needs no network. Seconds are None where nothing was predicted, or nothing measured yet.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import isfinite

import msgspec

CLIENT = -1  # as the source or target of a transfer: the program itself


@dataclass(frozen=True, slots=True)
class Held:
    """Values of one residency that live on an executor.

    residency: `weight`, `kv_cache`, … (ir/annotated.py: Residency). names: module paths that they belong to, in program
    order. count: values, of which nbytes is the sum.
    """

    residency: str
    nbytes: int
    count: int
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Executor:
    """One executor of the pool. memory_nbytes: its cap; None if it named none."""

    address: str
    device: str
    memory_nbytes: int | None = None
    held: tuple[Held, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in self.held)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What moves from one executor to another in a phase.

    source, target: positions in Explanation.executors, or CLIENT. count: how many times. nbytes, predicted_s,
    measured_s: of all of them together.
    """

    source: int
    target: int
    residency: str
    nbytes: int
    count: int
    predicted_s: float | None = None
    measured_s: float | None = None


@dataclass(frozen=True, slots=True)
class Phase:
    """What the program did in one phase.

    steps: programs (sync to sync) in it; seconds are of all of them. predicted_s: of executors and links alone.
    measured_s: at the client, with the program's own Python. computed_s: of that, the executors' own work.
    held: by executor, what lived there after step `held_at`; () if nobody looked.
    """

    name: str
    steps: int
    predicted_s: float | None = None
    measured_s: float | None = None
    transfers: tuple[Transfer, ...] = ()
    held: tuple[tuple[Held, ...], ...] = ()
    held_at: int = 0
    computed_s: float | None = None

    @property
    def nbytes(self) -> int:
        return sum(transfer.nbytes for transfer in self.transfers)


@dataclass(frozen=True, slots=True)
class Choice:
    """One decision. subject: what was placed. alternative: the best that was not taken, '' if there was none."""

    subject: str
    chosen: str
    reason: str
    predicted_s: float | None = None
    alternative: str = ""
    alternative_s: float | None = None


@dataclass(frozen=True, slots=True)
class PassApplied:
    """What a pass did to a plan, or would have done. subject: the plan. what: the change. without_s, predicted_s: of
    one run without and with it, once what it needs has been copied.

    measured_s: of a run with it, from its executors' own seconds. without_measured_s: of one without it, where the same
    template ran so.
    """

    name: str
    subject: str
    what: str
    taken: bool
    reason: str
    without_s: float
    predicted_s: float
    measured_s: float | None = None
    without_measured_s: float | None = None

    @property
    def predicted_gain(self) -> float:
        """How many times as fast."""
        return self.without_s / self.predicted_s

    @property
    def measured_gain(self) -> float | None:
        """As above: measured with it, against what was measured without it, or predicted where it never ran so."""
        if not self.measured_s:
            return None
        return (self.without_measured_s or self.without_s) / self.measured_s

    def __str__(self) -> str:
        gain = f"{self.predicted_gain:.2f}x predicted"
        if self.measured_gain is not None:
            against = "measured" if self.without_measured_s else "predicted"
            gain += f", {self.measured_gain:.2f}x measured (without it: {against})"
        return f"{self.name} {'taken' if self.taken else 'left out'}: {self.what}; {gain}; {self.reason}"


@dataclass(frozen=True, slots=True)
class Template:
    """One plan of a template: it has several where sizes or whereabouts of its inputs differ.

    executors: of its rows. runs: times it ran; seconds are of one run, error_s (one sigma) of the prediction.
    planning_s: what making the plan took.
    """

    id: str
    phase: str
    rows: int
    executors: tuple[int, ...]
    runs: int
    predicted_s: float | None = None
    error_s: float | None = None
    measured_s: float | None = None
    planning_s: float | None = None

    @property
    def error(self) -> float | None:
        """Predicted over measured, less 1."""
        if self.predicted_s is None or not self.measured_s:
            return None
        return self.predicted_s / self.measured_s - 1


@dataclass(frozen=True, slots=True)
class Block:
    """A box of the picture: rows of one layer on one executor that are about one residency.

    column: position in Picture.columns. nbytes: of the values that live there.
    """

    column: int
    executor: int
    residency: str
    nbytes: int
    rows: int
    module: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """An arrow of the picture: bytes that move between two of its cells in one step; an executor may be CLIENT."""

    source: int
    source_column: int
    target: int
    target_column: int
    residency: str
    nbytes: int
    count: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """Layers (columns, in program order) by executors (lanes). of: what it shows, such as 'a step of decode'."""

    columns: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    edges: tuple[Edge, ...] = ()
    of: str = ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that `remora.explain()` knows of the session so far.

    Raises:
        ValueError: something names an executor or a column that is not there, or a number that cannot be.
    """

    policy: str
    executors: tuple[Executor, ...]
    phases: tuple[Phase, ...] = ()
    choices: tuple[Choice, ...] = ()
    passes: tuple[PassApplied, ...] = ()
    templates: tuple[Template, ...] = ()
    picture: Picture = field(default_factory=Picture)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for wrong in _wrong(self):
            raise ValueError(f"explanation: {wrong}")

    def __str__(self) -> str:
        """Readable at 100 columns; holds no control character, whatever the names hold."""
        from remora.plan.explain_text import print_explanation

        return print_explanation(self)

    def to_json(self) -> str:
        """One line; `from_json` gives an equal tree."""
        return json.dumps(msgspec.to_builtins(self))  # not msgspec's own: file names may hold lone surrogates

    def to_html(self) -> str:
        """One self-contained page: the picture as inline SVG, then what `str` says as tables."""
        from remora.plan.explain_html import page

        return page(self)


def from_json(text: str | bytes) -> Explanation:
    """Inverse of `Explanation.to_json`.

    Raises:
        ValueError: it is no explanation; names what is wrong and where.
    """
    try:
        return msgspec.convert(json.loads(text), Explanation)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ValueError(f"not an explanation: {error}") from None


def _wrong(tree: Explanation) -> list[str]:
    n, columns = len(tree.executors), len(tree.picture.columns)
    wrong = []
    places: list[tuple[str, int, bool]] = []  # what names an executor, which, may it be the client
    for phase in tree.phases:
        for transfer in phase.transfers:
            what = f"a transfer of phase {phase.name!r}"
            places += [(what, transfer.source, True), (what, transfer.target, True)]
        if phase.held and len(phase.held) != n:
            wrong.append(f"phase {phase.name!r} says what {len(phase.held)} executors of {n} held")
    for template in tree.templates:
        places += [(f"template {template.id!r}", at, False) for at in template.executors]
    for block in tree.picture.blocks:
        places.append(("a block of the picture", block.executor, False))
        wrong += _no_column("a block", block.column, columns)
    for edge in tree.picture.edges:
        places += [("an edge of the picture", at, True) for at in (edge.source, edge.target)]
        wrong += _no_column("an edge", edge.source_column, columns)
        wrong += _no_column("an edge", edge.target_column, columns)
    for what, executor, may_be_client in places:
        if not (0 <= executor < n or (may_be_client and executor == CLIENT)):
            wrong.append(f"{what} names executor {executor} of {n}")
    wrong += [
        f"{what}: {seconds} s" for what, seconds in _seconds(tree) if not isfinite(seconds) or seconds < 0
    ]
    return wrong


def _no_column(what: str, column: int, columns: int) -> list[str]:
    return [] if 0 <= column < columns else [f"{what} of the picture names column {column} of {columns}"]


def _seconds(tree: Explanation) -> list[tuple[str, float]]:
    found: list[tuple[str, float | None]] = []
    for phase in tree.phases:
        seconds = [(phase.predicted_s, phase.measured_s), (phase.computed_s, None)]
        seconds += [(transfer.predicted_s, transfer.measured_s) for transfer in phase.transfers]
        found += [(f"phase {phase.name!r}", s) for pair in seconds for s in pair]
    for choice in tree.choices:
        found += [(f"choice {choice.subject!r}", s) for s in (choice.predicted_s, choice.alternative_s)]
    for one in tree.passes:
        of_pass = (one.without_s, one.predicted_s, one.measured_s, one.without_measured_s)
        found += [(f"pass {one.name!r}", s) for s in of_pass]
    for template in tree.templates:
        of_template = (template.predicted_s, template.error_s, template.measured_s, template.planning_s)
        found += [(f"template {template.id!r}", s) for s in of_template]
    return [(what, s) for what, s in found if s is not None]
