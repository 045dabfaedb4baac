"""The policy that decides from meaning: state, cache and weights stay with the rows that read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from remora.errors import PlanError
from remora.ir.annotated import Graph, Residency
from remora.ir.node import Ref, Slot
from remora.plan.blocks import stretches
from remora.plan.devices import Pool
from remora.plan.duration import Duration, Estimate, difference
from remora.plan.estimate import Costs
from remora.plan.legal import legalised
from remora.plan.memory import Need, need, shortfall
from remora.plan.parts import placed, split
from remora.plan.placed import predict
from remora.plan.policies.partition import partition
from remora.plan.policies.policy import ROOM, Policy, Wish
from remora.plan.situation import Situation

STAYS = frozenset({Residency.WEIGHT, Residency.KV_CACHE, Residency.OPTIMIZER_STATE})
DOUBT = 0.1  # relative error of comparing two plans that their common sources do not show
SIGMAS = 2.0  # standard deviations that a gain must exceed: state that left for noise stays away for the whole session
CLEARLY_FASTER = 1.3  # of devices, for what nobody has used yet


@dataclass(frozen=True)
class Option:
    """A placement that could be, with what it takes; `needs` of memory, by executor."""

    executors: tuple[int, ...]
    what: str
    estimate: Estimate
    needs: tuple[Need, ...]

    @property
    def took(self) -> Duration:
        return self.estimate.duration


class Semantic(Policy):
    """Of the placements that hold in memory, the one that moves fewest bytes, unless another is predicted faster by
    more than the model's own error. Considered are: everything on one executor, for each of them; each row where
    what stays of its inputs is; and a cut by layers where no single executor holds it all."""

    name: ClassVar[str] = "semantic"
    optimises: ClassVar[bool] = True

    def place(self, graph: Graph, situation: Situation, costs: Costs) -> Wish:
        options = list(_options(graph, situation, costs))
        fitting = [option for option in options if not shortfall(option.needs, situation.limits_nbytes)]
        if not fitting:
            raise PlanError(_too_small(options, situation))
        roomy = [option for option in fitting if _has_room(option, situation)] or fitting
        best, reason = chosen(roomy)
        others = sorted((o for o in roomy if o is not best), key=lambda option: option.took.seconds)
        if not others:
            held = [option for option in options if option is not best]
            if held:
                reason += (
                    f"; {held[0].what} does not fit: {shortfall(held[0].needs, situation.limits_nbytes)}"
                )
            return Wish(best.executors, best.what, reason)
        return Wish(best.executors, best.what, reason, others[0].what, others[0].took)

    def home(self, nbytes: int, situation: Situation) -> int:
        """With what is there already, while there is room; the first of what is there on a clearly faster device."""
        rooms = situation.rooms_nbytes(ROOM)
        with_room = [executor for executor, room in enumerate(rooms) if room >= nbytes]
        if not with_room:
            return rooms.index(max(rooms))
        if not any(situation.held_nbytes):
            return _fastest(with_room, situation.pool)
        return max(with_room, key=lambda executor: (situation.held_nbytes[executor], -executor))


def chosen(options: Sequence[Option]) -> tuple[Option, str]:
    """The option to take, and why."""
    still = min(options, key=lambda option: option.estimate.wire_nbytes)
    fastest = min(options, key=lambda option: option.took.seconds)
    gain = difference(still.took, fastest.took)
    if len(options) == 1:
        return still, "nothing else was possible"
    if gain.seconds > SIGMAS * gain.sigma_s + DOUBT * fastest.took.seconds:
        return fastest, f"it is predicted faster than moving fewest bytes ({still.what}) by {gain}"
    return still, f"it moves the fewest bytes, {still.estimate.wire_nbytes:,}, and nothing is clearly faster"


def _options(graph: Graph, situation: Situation, costs: Costs) -> Iterator[Option]:
    """What is compared, each as it would really run: bonds kept, parts and transfers counted. Each once."""
    rows, n = len(graph.rows), situation.n_executors
    alone = [
        _option(graph, situation, costs, (executor,) * rows, f"all on executor {executor}")
        for executor in range(n)
    ]
    yield from {option.executors: option for option in alone}.values()
    tried = {option.executors for option in alone}
    wishes = [(_followed(graph, situation, {}), "each row where what it reads stays")]
    if not any(_has_room(option, situation) for option in alone):
        wishes.append((_followed(graph, situation, partition(graph, situation)), "cut by layers"))
    for wished, what in wishes:
        if wished not in tried:
            tried.add(wished)
            yield _option(graph, situation, costs, wished, what)


def _option(graph: Graph, situation: Situation, costs: Costs, wished: tuple[int, ...], what: str) -> Option:
    legal = legalised(graph, wished, situation, situation.random)
    if len(set(legal.executors)) == 1:
        what = f"all on executor {legal.executors[0]}"
    at = placed(graph, legal.executors)
    homes, owners = legal.whereabouts(graph, situation)
    parts = split(at, homes, owners)
    needs = tuple(
        need(
            graph,
            [row for row, here in enumerate(legal.executors) if here == executor],
            [executor in home for home in situation.homes],
            situation.held_nbytes[executor],
        )
        for executor in range(situation.n_executors)
    )
    return Option(legal.executors, what, predict(at, parts, costs, situation.pool).estimate, needs)


def _followed(graph: Graph, situation: Situation, given: Mapping[int, int]) -> tuple[int, ...]:
    """Each row at the executor that owns most bytes of what stays among its inputs; else where most of what stays in
    its layer is; else where the last of its inputs is made.

    given: owners of storages that have none yet.
    """
    own = [_owners(graph, situation, given, number) for number in range(len(graph.rows))]
    layers = stretches(graph.rows)
    stays: dict[int | None, Counter[int]] = {None: Counter()}
    for layer, nbytes in zip(layers, own, strict=True):
        if layer is not None:
            stays.setdefault(layer, Counter()).update(nbytes)
    executors: list[int] = []
    for row, layer, nbytes in zip(graph.rows, layers, own, strict=True):
        for arg in row.tensors():
            if isinstance(arg, Ref) and graph.rows[arg.row].meaning.residency in STAYS:
                facts = graph.facts(arg)
                nbytes[executors[arg.row]] += facts.nbytes if facts is not None else 0
        made = [
            (arg.row, executors[arg.row])
            if isinstance(arg, Ref)
            else (-1, situation.owners[arg.index] or given.get(graph.slots[arg.index].storage, 0))
            for arg in row.tensors()
        ]
        if nbytes or stays[layer]:
            executors.append(_most(nbytes or stays[layer]))
        else:
            executors.append(max(made)[1] if made else executors[-1] if executors else 0)
    return tuple(executors)


def _owners(graph: Graph, situation: Situation, given: Mapping[int, int], number: int) -> Counter[int]:
    """Bytes of what stays among a row's inputs, and of what nobody has yet, by the executor that owns them."""
    nbytes: Counter[int] = Counter()
    for arg in graph.rows[number].tensors():
        if isinstance(arg, Slot):
            slot, owner = graph.slots[arg.index], situation.owners[arg.index]
            if owner is None:
                owner = given.get(slot.storage)
            elif slot.meaning.residency not in STAYS:
                continue
            if owner is not None:
                nbytes[owner] += slot.facts.nbytes
    return nbytes


def _most(nbytes: Counter[int]) -> int:
    return max(nbytes, key=lambda executor: (nbytes[executor], -executor))


def _has_room(option: Option, situation: Situation) -> bool:
    """Whether what is computed on the way holds too, beside what lives on; where something has to get first, room for
    what is computed later is left, as it is when the plan is used again."""
    return all(
        needed.peak_nbytes <= limit and (not needed.missing_nbytes or needed.lasting_nbytes <= ROOM * limit)
        for needed, limit in zip(option.needs, situation.limits_nbytes, strict=True)
    )


def _too_small(options: Sequence[Option], situation: Situation) -> str:
    """The arithmetic of the option that lacks least."""
    limits = situation.limits_nbytes

    def lacking(option: Option) -> int:
        return sum(max(0, n.lasting_nbytes - limit) for n, limit in zip(option.needs, limits, strict=True))

    best = min(options, key=lacking)
    return (
        f"the pool is too small: executors hold {sum(situation.held_nbytes):,} bytes and are to get "
        f"{situation.waiting_nbytes:,} more from the client, but grant {sum(limits):,} together; the best placement "
        f"of what runs now, {best.what}: {shortfall(best.needs, limits)}; add an executor, or give them more --memory"
    )


def _fastest(executors: Sequence[int], pool: Pool) -> int:
    """The first of them, or one that reads memory clearly faster: decoding is bound by that."""
    best = executors[0]
    for executor in executors[1:]:
        if executor < len(pool.devices):
            rate, known = pool.devices[executor].memory_rate, pool.devices[best].memory_rate
            if rate > known * CLEARLY_FASTER:
                best = executor
    return best
