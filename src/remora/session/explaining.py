"""From what a session over a pool remembers to the tree that `remora.explain()` gives. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from statistics import median

from remora.ir.annotated import Graph, Residency, Row
from remora.ir.node import Slot
from remora.plan.devices import CLIENT, Link, Pool
from remora.plan.duration import Duration, total
from remora.plan.explain import (
    Choice,
    Executor,
    Explanation,
    Held,
    PassApplied,
    Phase,
    Picture,
    Template,
    Transfer,
)
from remora.plan.explain_text import amount, duration, times
from remora.plan.parts import Parts
from remora.plan.picture import FIRST, LAST, joined, picture_of
from remora.plan.placed import needs
from remora.plan.schedule import Piece, schedule
from remora.session.holdings import Holdings, Living
from remora.session.ledger import UNUSED, Ledger, PhaseTotal, Tally, Way
from remora.session.plans import Plan, Use
from remora.session.stats import Stats
from remora.wire.messages import Grant

OTHER = "other"  # phase of programs without a layer; residency of what no recogniser took
NOT_USED_YET = "not used yet"  # phase of such uploads
ORDER = (*map(str, Residency), OTHER, UNUSED)
_NUMBER = re.compile(r"(?<!executor )(?<![\w.])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\w.])")


@dataclass(frozen=True)
class Observed:
    """A session. executors: address and grant of each. waiting_nbytes: of uploads that no executor has yet."""

    policy: str
    executors: Sequence[tuple[str, Grant]]
    pool: Pool
    holdings: Holdings
    ledger: Ledger
    waiting_nbytes: int
    stats: Stats


def explanation(of: Observed) -> Explanation:
    """The session as it is now."""
    plans = of.ledger.plans
    modules = _Modules(plans, of.holdings.names)
    n = len(of.executors)
    now = _held(of.holdings.living(), modules, n)
    return Explanation(
        of.policy,
        tuple(
            Executor(address, _device(of.pool, number, address, grant), grant.memory_nbytes, now[number])
            for number, (address, grant) in enumerate(of.executors)
        ),
        tuple(_phases(of.ledger, modules, n)),
        tuple(_choices(plans)),
        tuple(_passes(plans, of.pool)),
        tuple(_template(plan) for plan in plans),
        _picture(of.ledger.phases, modules),
        tuple(_notes(of)),
    )


def _device(pool: Pool, number: int, address: str, grant: Grant) -> str:
    """What the executor calls its device: measured, it is called `name at address`."""
    if number >= len(pool.devices):
        name = grant.device
    else:
        name = pool.devices[number].name.removesuffix(f" at {address[:70]}")
    return name if grant.exact else f"{name}, exact=False"


# -- what lives where


class _Modules:
    """Whose values are: of weights the module, of what rows made the row's; of a repeated block, the block.

    A plan's rows keep the paths of the layer that ran them first. By the weights that a use of it read, it is known
    which one ran them then.
    """

    def __init__(self, plans: Iterable[Plan], names: Mapping[int, str]) -> None:
        self._names = names
        self._uses: dict[tuple[int, tuple[int, ...]], dict[str, str]] = {}
        graphs = [plan.graph for plan in plans]
        self._root = _root(graphs)
        self._read: dict[int, str] = {}  # by storage: the module of the first row that reads it
        for graph in graphs:
            for row in graph.rows:
                for arg in row.tensors() if row.module else ():
                    if isinstance(arg, Slot):
                        self._read.setdefault(graph.slots[arg.index].storage, _path(row))
        paths = map(self._short, (*names.values(), *self._read.values()))
        self._order = {path: at for at, path in enumerate(dict.fromkeys(paths))}

    def of(self, value: Living) -> tuple[int, str]:
        """Place in the program, and name; '' if no module is known."""
        if value.use is not None:
            path = _path(value.use.plan.graph.rows[value.row])
            path = self.blocks(value.use).get(_block(path), path)
        else:
            path = self._names.get(value.storage) or self._read.get(value.storage, "")
        short = self._short(path)
        return self._order.get(short, len(self._order)), short

    def blocks(self, use: Use) -> dict[str, str]:
        """What the blocks of a plan's rows are in one use of it."""
        key = id(use.plan), use.storages
        found = self._uses.get(key)
        if found is None:
            found = self._uses[key] = {}
            for row in use.plan.graph.rows:
                block = _block(_path(row))
                for arg in row.tensors() if block else ():
                    if isinstance(arg, Slot):
                        really = _block(self._names.get(use.storages[arg.index], ""))
                        if really:
                            found.setdefault(block, really)
        return found

    def graph(self, use: Use) -> Graph:
        """The plan's graph, its rows where they are in that use."""
        blocks = self.blocks(use)
        graph = use.plan.graph
        return replace(graph, rows=tuple(_moved(row, blocks) for row in graph.rows))

    def _short(self, path: str) -> str:
        """Without the class of the model, as in a state dict, if there is but one."""
        path = _block(path) or path
        root, _, rest = path.partition(".")
        return rest if rest and root == self._root else path


def _path(row: Row) -> str:
    """Of its module, without the class behind it."""
    return row.module.partition(" (")[0]


def _block(path: str) -> str:
    """Up to the number of the repeated block, '' if there is none."""
    parts = path.split(".")
    number = next((at for at, part in enumerate(parts) if part.isdecimal()), None)
    return "" if number is None else ".".join(parts[: number + 1])


def _moved(row: Row, blocks: Mapping[str, str]) -> Row:
    block = _block(_path(row))
    really = blocks.get(block, block)
    if really == block:
        return row
    layer = int(really.rpartition(".")[2])
    return replace(row, module=really + row.module[len(block) :], meaning=replace(row.meaning, layer=layer))


def _root(graphs: Iterable[Graph]) -> str:
    """The class of the model, '' if there are several."""
    roots = {_path(row).partition(".")[0] for graph in graphs for row in graph.rows if row.module}
    return roots.pop() if len(roots) == 1 else ""


@dataclass
class _Memory:
    """A storage at the executors that hold it: as large as the largest value that lies in it."""

    homes: frozenset[int]
    residency: str
    nbytes: int
    place: tuple[int, str]


def _held(living: Iterable[Living], modules: _Modules, n_executors: int) -> tuple[tuple[Held, ...], ...]:
    """By executor, each storage counted once."""
    storages: dict[int, _Memory] = {}
    for value in living:
        residency = value.residency or (OTHER if value.used or value.use is not None else UNUSED)
        found = _Memory(value.homes, residency, value.nbytes, modules.of(value))
        known = storages.setdefault(value.storage, found)
        if known is not found:
            known.homes |= found.homes
            known.nbytes = max(known.nbytes, found.nbytes)
            known.residency = min(known.residency, found.residency, key=ORDER.index)
    return tuple(_held_at(executor, storages.values()) for executor in range(n_executors))


def _held_at(executor: int, storages: Iterable[_Memory]) -> tuple[Held, ...]:
    by_residency: dict[str, list[_Memory]] = {}
    for memory in storages:
        if executor in memory.homes:
            by_residency.setdefault(memory.residency, []).append(memory)
    held = []
    for residency in sorted(by_residency, key=ORDER.index):
        memories = by_residency[residency]
        names = dict.fromkeys(name for _, name in sorted(memory.place for memory in memories) if name)
        nbytes = sum(memory.nbytes for memory in memories)
        held.append(Held(residency, nbytes, len(memories), tuple(names)))
    return tuple(held)


# -- phases and transfers


def _phases(ledger: Ledger, modules: _Modules, n_executors: int) -> Iterator[Phase]:
    transfers: dict[str, list[Transfer]] = {phase: [] for phase in ledger.phases}
    for (phase, way), tally in ledger.flows().items():
        transfers.setdefault(phase, []).append(_transfer(way, tally))
    for name, moved in transfers.items():
        ran = ledger.phases.get(name, PhaseTotal())
        held = _held(ran.living, modules, n_executors) if ran.living else ()
        yield Phase(
            name or OTHER,
            ran.steps,
            ran.predicted_s if ran.steps else None,
            ran.measured_s if ran.steps else None,
            tuple(sorted(moved, key=lambda transfer: (transfer.source, transfer.target, -transfer.nbytes))),
            held,
            ran.living_at,
            _computed_s(ledger.plans, ran) if ran.steps else None,
        )
    unused: dict[Way, Tally] = {}
    for upload in ledger.uploading.values():
        if upload.residency is None and not upload.sending:
            took_s = upload.measured_s
            way = Way(CLIENT, upload.executor, UNUSED)
            unused.setdefault(way, Tally()).add(Tally(upload.nbytes, 1, 0.0, took_s))
    if unused:
        yield Phase(NOT_USED_YET, 0, None, None, tuple(_transfer(way, unused[way]) for way in unused))


def _computed_s(plans: Iterable[Plan], ran: PhaseTotal) -> float:
    """Of the executors in a phase: what timed runs took, for all of them; for plans without any, the prediction."""
    return sum(ran.runs[id(plan)] * _run_s(plan) for plan in plans if id(plan) in ran.runs)


def _run_s(plan: Plan) -> float:
    timed = plan.ran.timed
    return median(run.measured_s for run in timed) if timed else total(plan.predicted).seconds


def _transfer(way: Way, tally: Tally) -> Transfer:
    return Transfer(
        way.source,
        way.target,
        way.residency or OTHER,
        tally.nbytes,
        tally.count,
        tally.predicted_s or None,
        tally.measured_s,
    )


# -- choices


def _choices(plans: Iterable[Plan]) -> Iterator[Choice]:
    """One for all plans of a phase for which the same was chosen, instead of the same, for the same reason but for
    its numbers. What takes longest comes first."""
    groups: dict[tuple[object, ...], list[Plan]] = {}
    for plan in plans:
        wish = plan.wish
        alike = _NUMBER.sub("#", wish.reason)
        key = plan.phase, wish.what, alike, wish.alternative, _chosen([plan]), _is_bound(plan)
        groups.setdefault(key, []).append(plan)

    def took_s(group: list[Plan]) -> float:
        return sum(plan.whole.seconds * plan.ran.count for plan in group)

    for group in sorted(groups.values(), key=took_s, reverse=True):
        yield _choice(group)


def _choice(group: Sequence[Plan]) -> Choice:
    """Predictions are of one run of each template, as it was planned last."""
    latest = list({plan.template: plan for plan in group}.values())
    wish, chosen = latest[-1].wish, _chosen(latest)
    if _is_bound(latest[-1]):
        reason = f"what its rows view, write or draw is there ({wish.what} was wished)"
        predicted_s = sum(plan.whole.seconds for plan in latest)
        return Choice(_subject(group, latest), chosen or wish.what, reason, predicted_s)
    instead = [plan.wish.alternative_took for plan in latest]
    known = [took.seconds for took in instead if took is not None]
    return Choice(
        _subject(group, latest),
        chosen or wish.what + _bound(latest),
        ranged([plan.wish.reason for plan in group]),
        sum(plan.whole.seconds for plan in latest),
        wish.alternative,
        sum(known) if len(known) == len(latest) else None,
    )


def _subject(group: Sequence[Plan], latest: Sequence[Plan]) -> str:
    rows = [len(plan.graph.rows) for plan in latest]
    least, most = min(rows), max(rows)
    what = times(most, "row") if least == most else f"{least:,} to {most:,} rows"
    if len(latest) > 1:
        what = f"{len(latest):,} templates of {what}"
    return f"{latest[-1].phase or OTHER}, {what}, run {times(sum(plan.ran.count for plan in group), 'time')}"


def _chosen(plans: Iterable[Plan]) -> str | None:
    """Where all rows run, if that is one place."""
    executors = {executor for plan in plans for executor in plan.captured_graph.executors}
    return f"all on executor {executors.pop()}" if len(executors) == 1 else None


def _is_bound(plan: Plan) -> bool:
    """Whether bonds have brought all of a plan to one executor, against the wish."""
    return _chosen([plan]) is not None and plan.wish.executors != plan.captured_graph.executors


def _bound(plans: Sequence[Plan]) -> str:
    """Rows that do not run where the policy wished."""
    moved = sum(
        wished != here
        for plan in plans
        for wished, here in zip_longest(plan.wish.executors, plan.captured_graph.executors)
    )
    return f", but for {times(moved, 'row')} bound elsewhere" if moved else ""


def ranged(texts: Sequence[str]) -> str:
    """One text for some that differ in numbers alone: those that differ become ranges."""
    first = texts[0]
    columns = zip(*(_NUMBER.findall(text) for text in texts), strict=True)
    shown = iter([_range(column) for column in columns])
    return _NUMBER.sub(lambda _: next(shown), first)


def _range(numbers: Sequence[str]) -> str:
    ordered = sorted(set(numbers), key=lambda number: float(number.replace(",", "")))
    return ordered[0] if len(ordered) == 1 else f"{ordered[0]} to {ordered[-1]}"


# -- passes


def _passes(plans: Iterable[Plan], pool: Pool) -> Iterator[PassApplied]:
    """Of the last plan of each template and size that a pass had something to propose for. What ran before a pass was
    taken ran without it; later plans run with what it brought about, such as weights where its rows read them."""
    alike: dict[tuple[bytes, int], list[Plan]] = {}
    for plan in plans:
        alike.setdefault((plan.template, plan.bucket), []).append(plan)
    for made in alike.values():
        proposed = [at for at, plan in enumerate(made) if plan.choices]
        if not proposed:
            continue
        latest = made[proposed[-1]]
        takes = [any(choice.taken for choice in plan.choices) for plan in made]
        first = takes.index(True) if True in takes else len(made)
        with_s, without_s = _last_elapsed_s(made[first:], pool), _last_elapsed_s(made[:first], pool)
        runs = sum(plan.ran.count for plan in made)
        for choice in latest.choices:
            yield PassApplied(
                choice.name,
                f"{latest.phase or OTHER}, {times(len(latest.captured_graph.rows), 'row')}, run {times(runs, 'time')}",
                choice.what,
                choice.taken,
                choice.reason,
                choice.without.seconds,
                choice.predicted.seconds,
                with_s if choice.taken else None,
                without_s,
            )


def _last_elapsed_s(plans: Sequence[Plan], pool: Pool) -> float | None:
    """Of the last of these plans that was timed."""
    return next((took_s for plan in reversed(plans) if (took_s := _elapsed_s(plan, pool)) is not None), None)


def _elapsed_s(plan: Plan, pool: Pool) -> float | None:
    """From the first part to the last: parts as long as they were measured, joined by links as they are predicted."""
    if not plan.ran.timed:
        return None
    inside = tuple(one for before in plan.transfers for one in before if one.source != CLIENT)
    needed = needs(plan.graph, Parts(plan.parts, inside))
    parts_s = [median(run.parts_s[at] for run in plan.ran.timed) for at in range(len(plan.parts))]
    pieces = [
        Piece(part.executor, Duration(seconds), waits)
        for part, seconds, waits in zip(plan.parts, parts_s, needed, strict=True)
    ]
    return schedule(pieces, pool).duration.seconds


# -- templates and the picture


def _template(plan: Plan) -> Template:
    """Seconds are of the executors' own work, medians of the runs that were timed."""
    timed = plan.ran.timed
    planned = total(plan.predicted)
    return Template(
        plan.template.hex()[:8],
        plan.phase or OTHER,
        len(plan.graph.rows),
        tuple(sorted({part.executor for part in plan.parts})),
        plan.ran.count,
        median(run.predicted.seconds for run in timed) if timed else planned.seconds,
        median(run.predicted.sigma_s for run in timed) if timed else planned.sigma_s,
        median(run.measured_s for run in timed) if timed else None,
        plan.ran.planning_s,
    )


def _picture(phases: dict[str, PhaseTotal], modules: _Modules) -> Picture:
    """Of the last warm step of the phase with most of them."""
    name = max(phases, key=lambda name: phases[name].steps, default=None)
    if name is None:
        return Picture()
    phase = phases[name]
    uses = {(id(use.plan), *sorted(modules.blocks(use).items())): use for use in phase.last}.values()
    graphs = [modules.graph(use) for use in uses]
    layered = [any(row.meaning.layer is not None for row in graph.rows) for graph in graphs]
    pictures = []
    for number, (use, graph) in enumerate(zip(uses, graphs, strict=True)):
        transfers = [transfer for before in use.plan.transfers for transfer in before]
        picture = picture_of(graph, transfers, use.plan.homes)
        if any(layered) and not layered[number]:  # its columns are modules, beside layers they have no place
            outside = FIRST if any(layered[number:]) else LAST
            picture = replace(picture, columns=(outside,) * len(picture.columns))
        pictures.append(picture)
    return replace(joined(pictures), of=f"a step of {name or OTHER}")


# -- notes


def _notes(of: Observed) -> Iterator[str]:
    if of.ledger.phases:
        yield (
            "a phase is predicted for executors and links alone, and measured at the client, from the first segment of "
            "a step to the answer at its end: with the program's own Python, and waiting"
        )
    timed = sum(len(plan.ran.timed) for plan in of.ledger.plans)
    if timed:
        yield (
            "a template is measured at its executors, without the link: the median of the "
            f"{times(timed, 'run')} that were timed, never the first; predicted is what was known before each of them"
        )
    if of.ledger.forgotten:
        yield f"{of.ledger.forgotten:,} older plans are left out"
    stats = of.stats
    yield (
        f"the client sent {amount(stats.bytes_sent)} in all, received {amount(stats.bytes_received)} and waited for an "
        f"answer {times(stats.round_trips, 'time')}; {amount(stats.peer_bytes)} went from executor to executor"
    )
    if of.ledger.there_nbytes:
        yield f"{amount(of.ledger.there_nbytes)} of uploads did not go: the executors had the same bytes already"
    if of.waiting_nbytes:
        yield f"{amount(of.waiting_nbytes)} of uploads wait at the client for their first use"
    yield from _measured(of.pool)


def _measured(pool: Pool) -> Iterator[str]:
    """What predictions start from."""
    for number, device in enumerate(pool.devices):
        text = f"executor {number}, as calibrated: memory {_rate(device.memory_rate)}"
        if number < len(pool.client):
            text += f"; client {_link(pool.client[number])}"
        for other in range(len(pool.devices)):
            if (number, other) in pool.links:
                text += f"; to executor {other} {_link(pool.links[number, other])}"
        yield text


def _link(link: Link) -> str:
    return f"{_rate(link.bytes_per_s)}, {duration(link.seconds(0))} a message"


def _rate(bytes_per_s: float) -> str:
    return f"{amount(int(bytes_per_s))}/s"
