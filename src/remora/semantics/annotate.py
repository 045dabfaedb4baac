"""From a captured graph to an annotated one: the recognisers, in the order in which they need each other."""

from __future__ import annotations

from dataclasses import replace

from remora.ir.annotated import Graph, Meaning, Phase, Residency, Stage
from remora.ir.stages import enter
from remora.semantics import cache, layers, modality, optimizer, phases, recurrent, weights
from remora.semantics.attention import attentions
from remora.semantics.gradients import gradients
from remora.semantics.meanings import Meanings, add
from remora.semantics.memory import EMPTY, Memory
from remora.semantics.reading import Reading, Root

_ACTIVATION = Meaning(Residency.ACTIVATION, evidence=("activation: computed, and nothing else",))
_OUTPUT = Meaning(Residency.OUTPUT, evidence=("output: the client asked for its bytes",))
_STAYS = frozenset({Residency.WEIGHT, Residency.KV_CACHE, Residency.OPTIMIZER_STATE})


def annotate(graph: Graph, memory: Memory = EMPTY) -> tuple[Graph, Memory]:
    """Says of each row and slot what it means. Pure; to be called once for a template and size bucket.

    Args:
        graph: as captured. A slot's meaning is what was said of the row that made it, or of the slot that it was
            in the last graph that read it; what an earlier graph knew is not found out again.
        memory: of the session's earlier graphs.

    Returns:
        The graph in its stage ANNOTATED, and the memory for the next one.

    Raises:
        PlanError: the graph breaks a stage rule.
    """
    graph = enter(replace(graph, stage=Stage.CAPTURED), Stage.CAPTURED)
    reading = Reading(graph, memory)
    known = Meanings()
    sites = attentions(reading)
    derived = gradients(reading)
    training = optimizer.training(reading, derived)
    add(known, cache.recognise(reading, () if derived else sites))
    states = recurrent.recognise(reading)
    add(known, states)
    add(known, optimizer.recognise(reading, training))
    add(known, weights.recognise(reading, training))
    decoder = phases.decoder(reading, known, states, () if derived else sites)
    add(known, phases.recognise(reading, known, sites, decoder, derived, training))
    add(known, modality.recognise(reading, known, sites))
    add(known, layers.recognise(reading))
    add(known, _rest(reading, known))
    memory = phases.learn(reading, known, decoder, cache.learn(reading, known, sites, memory))
    memory = _learn_storages(graph, known, memory)
    rows = tuple(replace(row, meaning=known.row(number)) for number, row in enumerate(graph.rows))
    slots = tuple(replace(slot, meaning=known.slot(number)) for number, slot in enumerate(graph.slots))
    return enter(replace(graph, rows=rows, slots=slots), Stage.ANNOTATED), memory


def stale(graph: Graph, memory: Memory) -> bool:
    """Whether a later graph taught something that an annotated one does not say: annotate it again then.

    It happens when a program is cut between the rows that make a cache and the attention that reads it. To be asked
    after another template has been annotated, never on a warm step.
    """
    for slot in graph.slots:
        learned, said = memory.storages.get(slot.storage), slot.meaning.residency
        is_big = learned is not Residency.KV_CACHE or len(slot.facts.shape) >= cache.MIN_DIMS
        if learned is not None and is_big and said in (Residency.ACTIVATION, Residency.INPUT):
            return True
    for number, out in graph.keep:
        row = graph.rows[number]
        facts, meaning = row.outs[out], row.meaning
        made = memory.made.get((row.node, out)) if meaning.residency is Residency.ACTIVATION else None
        is_big = facts is not None and len(facts.shape) >= cache.MIN_DIMS
        if made is Residency.OPTIMIZER_STATE or (made is Residency.KV_CACHE and is_big):
            return True
        if meaning.phase is Phase.FORWARD and (row.node, out) in memory.phases:
            return True
    return False


def _rest(reading: Reading, known: Meanings) -> Meanings:
    """Outputs and activations: what no recogniser took. What is written in place and stays is nobody's."""
    said = Meanings()
    wanted = {row for row, _ in reading.graph.wants}
    stays = _stays(reading)
    for row, roots in enumerate(reading.roots):
        if known.row(row).residency is not None:
            continue
        if row in wanted:
            said.rows[row] = _OUTPUT
        elif not (roots and roots[0] in stays):
            said.rows[row] = _ACTIVATION
    for number, slot in enumerate(reading.graph.slots):
        if known.slot(number).residency is None and ("slot", slot.storage, 0) not in stays:
            said.slots[number] = _ACTIVATION
    return said


def _stays(reading: Reading) -> set[Root]:
    """Uploaded memory that is written, such as running statistics."""
    return {
        root
        for root, numbers in reading.slots_of.items()
        if any(reading.graph.slots[number].uploaded for number in numbers)
        and (root in reading.writers or any(reading.graph.slots[number].written for number in numbers))
    }


def _learn_storages(graph: Graph, known: Meanings, memory: Memory) -> Memory:
    storages, made = dict(memory.storages), dict(memory.made)
    for number, slot in enumerate(graph.slots):
        residency = known.slot(number).residency
        if residency in _STAYS:
            storages[slot.storage] = residency
            if residency is Residency.OPTIMIZER_STATE and slot.made_by is not None:
                made[slot.made_by] = residency
        elif storages.get(slot.storage) is Residency.WEIGHT:
            del storages[slot.storage]  # something else than an optimizer wrote it
    return replace(
        memory,
        storages=storages if storages != memory.storages else memory.storages,
        made=made if made != memory.made else memory.made,
    )
