"""Phases: prefill and decode by the query's length and the cache, forward and backward otherwise.

A query of several tokens, or a cache that begins here, is prefill; one token against a cache of an earlier graph is
decode. What feeds the queries, and what follows, is of that phase; an encoder beside it is forward. A graph without
an attention of its own (a segment cut before or behind it) takes the phase of the activations that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import replace

from remora.ir.annotated import Meaning, Phase, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.attention import PRODUCTS, Attention
from remora.semantics.meanings import Meanings
from remora.semantics.memory import Memory
from remora.semantics.optimizer import Training
from remora.semantics.reading import Arg, Reading

KV = Residency.KV_CACHE
GENERATING = (Phase.PREFILL, Phase.DECODE)
_LAYERS = PRODUCTS | {"linear", "addmm", "conv1d", "convolution"}


def recognise(
    reading: Reading,
    known: Meanings,
    sites: Iterable[Attention],
    gradients: frozenset[int],
    training: Training,
) -> Meanings:
    """The phase of every row that is no optimizer's."""
    said = Meanings()
    backward = Meaning(phase=Phase.BACKWARD, evidence=("phase: derives from the gradient of a loss",))
    for row in gradients - training.rows:
        said.rows[row] = backward
    rest = [row for row in range(len(reading.ops)) if row not in gradients and row not in training.rows]
    cached = [site for site in sites if _is_cached(reading, known, site)]
    plain = [site for site in sites if site not in cached]
    stream, meaning = _stream(reading, known, cached)
    if meaning is None:
        stream, meaning = _inherited(reading, known)
    if meaning is None and not plain and not gradients:
        meaning = _learned(reading) or _by_ids(reading)
    forward = Meaning(phase=Phase.FORWARD, evidence=("phase: no cache is read or begun",))
    beside = _beside(reading, stream, plain) if meaning is not None else set()
    for row in rest:
        said.rows[row] = forward if meaning is None or row in beside else meaning
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase is not None and known.slot(number).residency is not Residency.WEIGHT:
            evidence = tuple(text for text in slot.meaning.evidence if text.startswith("phase:"))
            said.slots[number] = Meaning(
                phase=slot.meaning.phase, evidence=evidence or ("phase: of its maker",)
            )
    return said


def learn(reading: Reading, said: Meanings, sites: Iterable[Attention], memory: Memory) -> Memory:
    """The phase of a graph with a cache is that of what feeds it, and of loose graphs behind it."""
    found = {meaning.phase for meaning in said.rows.values()} & set(GENERATING)
    if len(found) != 1:
        return memory
    phase = found.pop()
    assert phase is not None
    cached = [site for site in sites if _is_cached(reading, said, site)]
    stream = _ancestors(reading, cached, set())[0] if cached else set()
    phases = dict(memory.phases)
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase is not Phase.FORWARD or slot.made_by is None:
            continue
        if _is_hidden(reading, said, number) and not stream.isdisjoint(
            row for row, _ in reading.slot_readers[number]
        ):
            phases[slot.made_by] = phase
    return replace(memory, phase=phase, phases=phases if phases != memory.phases else memory.phases)


def _is_hidden(reading: Reading, known: Meanings, number: int) -> bool:
    """Whether a slot is an activation on its way through the layers."""
    slot = reading.graph.slots[number]
    return (
        known.slot(number).residency in (None, Residency.ACTIVATION)
        and len(slot.facts.shape) > 1
        and reading.is_float(Slot(number))
    )


def _is_kv(reading: Reading, known: Meanings, arg: Arg) -> bool:
    origin = reading.origin(arg)
    if isinstance(origin, Slot):
        return known.slot(origin.index).residency is KV
    return known.row(origin.row).residency is KV


def _is_cached(reading: Reading, known: Meanings, site: Attention) -> bool:
    return _is_kv(reading, known, site.key) or _is_kv(reading, known, site.value)


def _stream(reading: Reading, known: Meanings, cached: list[Attention]) -> tuple[set[int], Meaning | None]:
    """The rows of a decoder, and what its attention, or its recurrent state, says of the phase."""
    states = {
        row
        for row, meaning in known.rows.items()
        if meaning.residency is KV and meaning.evidence[0].startswith("recurrent")
    }
    state_slots = [
        number
        for number, meaning in known.slots.items()
        if meaning.residency is KV and meaning.evidence[0].startswith("recurrent")
    ]
    if cached:
        phase, reason = _of_attention(reading, known, cached)
    elif states or state_slots:
        begun = not state_slots
        phase = Phase.PREFILL if begun else Phase.DECODE
        reason = (
            "begins its recurrent state" if begun else "goes on from the recurrent state of an earlier graph"
        )
    else:
        return set(), None
    upstream, meaning = _inherited(reading, known)
    if meaning is not None and phase is not Phase.PREFILL:
        return upstream, meaning
    states.update(row for number in state_slots for row, _ in reading.slot_readers[number])
    stream, chains = _ancestors(reading, cached, states)
    found = stream | chains | reading.behind({site.row for site in cached} | states)
    return found, Meaning(phase=phase, evidence=(f"phase: {reason}",))


def _of_attention(reading: Reading, known: Meanings, cached: list[Attention]) -> tuple[Phase, str]:
    for site in cached:
        n_tokens = _n_tokens(reading, site)
        if n_tokens > 1:
            return Phase.PREFILL, f"{site.name(reading)} goes on with {n_tokens} tokens at once"
    for site in cached:
        origin = reading.origin(site.key)
        if isinstance(origin, Ref) and not _has_past(reading, known, origin):
            return Phase.PREFILL, f"the cache that {site.name(reading)} reads begins here"
    return Phase.DECODE, f"{cached[0].name(reading)} goes on with one token against a cache"


def _n_tokens(reading: Reading, site: Attention) -> int:
    """Tokens of a step: the keys that its cache takes in. A query's length may be folded with grouped heads, and
    counts where no key is taken in."""
    origin = reading.origin(site.key)
    root = reading.root(origin)
    puts = [row for row in reading.writers.get(root, ()) if reading.ops[row] in ("index_copy_", "index_put_")]
    if puts:
        new = reading.shape(reading.inputs[puts[-1]][-1])
        return new[-2] if len(new) > 1 else 1
    if isinstance(origin, Ref) and reading.ops[origin.row] == "cat":
        parts = [arg for arg in reading.inputs[origin.row] if 0 not in reading.shape(arg)]
        new, whole = reading.shape(parts[-1]), reading.shape(origin)
        if len(parts) > 1 and len(new) == len(whole):
            return max((n for n, m in zip(new, whole, strict=True) if n != m), default=1)
    shape = reading.shape(site.query)
    return shape[-2] if len(shape) > 1 else 1


def _has_past(reading: Reading, known: Meanings, origin: Ref) -> bool:
    """Whether a cache's row has an earlier graph's cache in it."""
    return any(_is_kv(reading, known, arg) for arg in reading.inputs[origin.row])


def _ancestors(reading: Reading, cached: list[Attention], states: Set[int]) -> tuple[set[int], set[int]]:
    """What feeds the queries, and what makes keys and values up to the layer that they come from: beyond it may be an
    encoder."""
    cut: dict[int, set[int]] = {}
    chains: set[int] = set()
    for site in cached:
        for arg, row in ((site.key, site.rows[0]), (site.value, site.rows[-1])):
            if isinstance(arg, Ref):
                cut.setdefault(row, set()).add(arg.row)
                chains |= _chain(reading, arg.row)
    found = {row for site in cached for row in site.rows} | set(states)
    pending = list(found)
    while pending:
        row = pending.pop()
        for source in reading.sources[row]:
            if source not in found and source not in cut.get(row, ()):
                found.add(source)
                pending.append(source)
    return found, chains


def _chain(reading: Reading, row: int) -> set[int]:
    """A row and what it comes from, up to and with the layer that made it."""
    found, pending = {row}, [row]
    while pending:
        at = pending.pop()
        if reading.ops[at] in _LAYERS:
            continue
        for source in reading.sources[at]:
            if source not in found:
                found.add(source)
                pending.append(source)
    return found


def _inherited(reading: Reading, known: Meanings) -> tuple[set[int], Meaning | None]:
    """From activations that an earlier graph made in prefill or decode."""
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase in GENERATING and _is_hidden(reading, known, number):
            reason = f"phase: slot {number}, which it reads or goes with, was made in {slot.meaning.phase}"
            rows = reading.behind({row for row, _ in reading.slot_readers[number]})
            return rows, Meaning(phase=slot.meaning.phase, evidence=(reason,))
    return set(), None


def _learned(reading: Reading) -> Meaning | None:
    """A later graph went on with what is made here."""
    for row, out in sorted(reading.graph.keep) if reading.memory.phases else ():
        phase = reading.memory.phases.get((reading.graph.rows[row].node, out))
        if phase is not None:
            return Meaning(phase=phase, evidence=(f"phase: a later graph goes on from row {row} in {phase}",))
    return None


def _by_ids(reading: Reading) -> Meaning | None:
    """Before the first attention of a step: by the number of tokens that are looked up, if a cache is in use."""
    if reading.memory.phase is None:
        return None
    for row, op in enumerate(reading.ops):
        if op == "embedding" and len(reading.inputs[row]) > 1:
            ids = reading.shape(reading.inputs[row][1])
            phase = Phase.DECODE if ids and ids[-1] == 1 else Phase.PREFILL
            reason = f"phase: looks up {ids[-1] if ids else 1} tokens (row {row}) in a session with a cache"
            return Meaning(phase=phase, evidence=(reason,))
    return None


def _beside(reading: Reading, stream: set[int], plain: list[Attention]) -> set[int]:
    """What feeds the decoder or is attention without a cache: an encoder."""
    if not stream:
        return set()
    feeds = reading.before(stream) - stream
    return (feeds | reading.before({site.row for site in plain})) - stream
