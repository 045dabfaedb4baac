"""Phases: prefill and decode by the tokens of a step and the cache, forward and backward otherwise.

Several tokens at once, or a cache that begins here, are prefill; one token against a cache of an earlier graph is
decode. What feeds the queries, and what follows, is of that phase; an encoder beside it is forward. A graph without
an attention of its own (a segment cut before or behind it) takes the phase of the activations that it reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from remora.ir.annotated import Meaning, Phase, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.attention import PRODUCTS, Attention
from remora.semantics.cache import puts_of
from remora.semantics.meanings import Meanings
from remora.semantics.memory import Memory
from remora.semantics.optimizer import Training
from remora.semantics.reading import Arg, Reading

KV = Residency.KV_CACHE
GENERATING = (Phase.PREFILL, Phase.DECODE)
_LAYERS = PRODUCTS | {"linear", "addmm", "conv1d", "convolution"}
_COMPUTES = (
    _LAYERS
    | {"conv2d", "conv3d", "embedding", "embedding_bag", "_embedding_bag"}
    | {
        "scaled_dot_product_attention",
        "layer_norm",
        "rms_norm",
        "addmv",
        "mv",
        "einsum",
    }
)
_FORWARD = Meaning(phase=Phase.FORWARD, evidence=("phase: no cache is read or begun",))
_BACKWARD = Meaning(phase=Phase.BACKWARD, evidence=("phase: derives from the gradient of a loss",))


@dataclass(frozen=True, slots=True)
class Decoder:
    """The rows of a decoder in a graph. own: those that feed its queries; what they read is the decoder's too."""

    own: frozenset[int]
    rows: frozenset[int]
    meaning: Meaning


def recognise(
    reading: Reading,
    known: Meanings,
    sites: Iterable[Attention],
    decoder: Decoder | None,
    gradients: frozenset[int],
    training: Training,
) -> Meanings:
    """The phase of every row that is no optimizer's. Nothing of a graph without a layer, which may be of any phase."""
    said = Meanings()
    if decoder is None and not gradients and _COMPUTES.isdisjoint(reading.ops):
        return said
    backward = (gradients | _views_for(reading, gradients)) - training.rows
    plain = [site for site in sites if not _is_cached(reading, known, site)]
    meaning, beside = _of_rest(reading, known, plain, decoder, bool(gradients))
    for row in range(len(reading.ops)):
        if row in backward:
            said.rows[row] = _BACKWARD
        elif row not in training.rows and row not in gradients:
            said.rows[row] = _FORWARD if row in beside else meaning
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase is not None and known.slot(number).residency is not Residency.WEIGHT:
            evidence = tuple(text for text in slot.meaning.evidence if text.startswith("phase:"))
            said.slots[number] = Meaning(
                phase=slot.meaning.phase, evidence=evidence or ("phase: of its maker",)
            )
    return said


def _of_rest(
    reading: Reading, known: Meanings, plain: list[Attention], decoder: Decoder | None, trains: bool
) -> tuple[Meaning, set[int]]:
    """The phase of rows that compute no gradient, and the rows of an encoder beside them."""
    encoder = {site.row for site in plain}
    if decoder is not None:
        feeds = reading.before(decoder.rows) - decoder.rows
        return decoder.meaning, (feeds | reading.before(encoder)) - decoder.rows
    meaning = _inherited(reading, known)
    if meaning is not None:
        return meaning, reading.before(encoder)
    if trains:
        return _FORWARD, set()
    learned = _learned(reading)
    if learned is not None:
        row, meaning = learned
        return meaning, (reading.before(encoder) | reading.behind(encoder)) - reading.before({row})
    return (_by_ids(reading) or _FORWARD) if not plain else _FORWARD, set()


def learn(reading: Reading, said: Meanings, decoder: Decoder | None, memory: Memory) -> Memory:
    """The phase of a graph with a cache is that of what feeds it, and of loose graphs behind it."""
    found = {meaning.phase for meaning in said.rows.values()} & set(GENERATING)
    if len(found) != 1:
        return memory
    phase = found.pop()
    assert phase is not None
    phases = dict(memory.phases)
    own = decoder.own if decoder is not None else frozenset()
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase is not Phase.FORWARD or slot.made_by is None:
            continue
        if _is_hidden(reading, said, number) and not own.isdisjoint(
            row for row, _ in reading.slot_readers[number]
        ):
            phases[slot.made_by] = phase
    return replace(memory, phase=phase, phases=phases if phases != memory.phases else memory.phases)


def decoder(
    reading: Reading, known: Meanings, recurrent: Meanings, sites: Iterable[Attention]
) -> Decoder | None:
    """What a graph has of a decoder: attention with a cache, or recurrent state."""
    cached = [site for site in sites if _is_cached(reading, known, site)]
    states = set(recurrent.rows) | {
        row for number in recurrent.slots for row, _ in reading.slot_readers[number]
    }
    begun = {
        row
        for row, meaning in known.rows.items()
        if meaning.residency is KV and reading.ops[row] in ("zeros", "zeros_like", "new_zeros")
    }
    states |= set() if cached else begun
    if cached:
        phase, reason = _of_attention(reading, known, cached)
    elif states:
        phase = Phase.DECODE if recurrent.slots else Phase.PREFILL
        reason = (
            "goes on from the recurrent state of an earlier graph"
            if recurrent.slots
            else "begins its recurrent state"
        )
    else:
        return None
    meaning = Meaning(phase=phase, evidence=(f"phase: {reason}",))
    inherited = _inherited(reading, known)
    if inherited is not None and phase is not Phase.PREFILL:
        meaning = inherited
    followers = reading.behind({site.row for site in cached} | states)
    own, chains = _ancestors(reading, cached, followers)
    return Decoder(frozenset(own), frozenset(own | chains), meaning)


def _views_for(reading: Reading, gradients: frozenset[int]) -> set[int]:
    """What the backward pass computes for itself alone: views of weights, powers of what was saved."""
    first = min(gradients, default=len(reading.ops))
    found = set(gradients)
    for row in reversed(range(first, len(reading.ops))):
        if reading.readers[row] and found.issuperset(reading.readers[row]):
            found.add(row)
    return found - gradients


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
    return any(
        _is_kv(reading, known, arg) or _is_window(reading, known, arg) or _is_put(reading, known, arg)
        for arg in (site.key, site.value)
    )


def _is_window(reading: Reading, known: Meanings, arg: Arg) -> bool:
    """Whether a part of a fixed cache was joined with new keys."""
    origin = reading.origin(arg)
    return (
        isinstance(origin, Ref)
        and reading.ops[origin.row] == "cat"
        and any(_is_kv(reading, known, part) for part in reading.inputs[origin.row])
    )


def _is_put(reading: Reading, known: Meanings, arg: Arg) -> bool:
    """Whether the keys themselves go into a cache: a prompt that is longer than the window."""
    origin = reading.origin(arg)
    return isinstance(origin, Ref) and any(
        _is_kv(reading, known, reading.inputs[row][place]) for row, place in puts_of(reading, origin)
    )


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
    roots = {reading.root(arg) for arg in (origin, *map(Ref, reading.way(site.key)))}
    writers = sorted(row for root in roots for row in reading.writers.get(root, ()))
    puts = [row for row in writers if reading.ops[row] in ("index_copy_", "index_put_")]
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


def _ancestors(reading: Reading, cached: list[Attention], start: set[int]) -> tuple[set[int], set[int]]:
    """What feeds the decoder's rows, and what makes its keys and values up to the layer that they come from: beyond
    that layer may be an encoder."""
    cut: dict[int, set[int]] = {}
    chains: set[int] = set()
    for site in cached:
        for arg, row in ((site.key, site.rows[0]), (site.value, site.rows[-1])):
            if isinstance(arg, Ref):
                cut.setdefault(row, set()).add(arg.row)
                chains |= _chain(reading, arg.row)
    found = {row for site in cached for row in site.rows} | start
    pending = list(found)
    while pending:
        row = pending.pop()
        for source in reading.sources[row]:
            if source not in found and source not in cut.get(row, ()):
                found.add(source)
                pending.append(source)
    return found, chains


def _chain(reading: Reading, row: int) -> set[int]:
    """A row and what it comes from, up to and with the layer that made it and the views of its weights."""
    found, pending = {row}, [row]
    while pending:
        at = pending.pop()
        for source in reading.sources[at]:
            if reading.ops[at] in _LAYERS and not isinstance(reading.origin(Ref(source)), Slot):
                continue
            if source not in found:
                found.add(source)
                pending.append(source)
    return found


def _inherited(reading: Reading, known: Meanings) -> Meaning | None:
    """From activations that an earlier graph made in prefill or decode."""
    for number, slot in enumerate(reading.graph.slots):
        if slot.meaning.phase in GENERATING and _is_hidden(reading, known, number):
            reason = f"phase: slot {number}, which it reads or goes with, was made in {slot.meaning.phase}"
            return Meaning(phase=slot.meaning.phase, evidence=(reason,))
    return None


def _learned(reading: Reading) -> tuple[int, Meaning] | None:
    """A row that a later graph went on with, and its phase."""
    for row, out in sorted(reading.graph.keep) if reading.memory.phases else ():
        phase = reading.memory.phases.get((reading.graph.rows[row].node, out))
        if phase is not None:
            return row, Meaning(
                phase=phase, evidence=(f"phase: a later graph goes on from row {row} in {phase}",)
            )
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
