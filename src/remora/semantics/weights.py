"""Weights and inputs: what the client uploaded, apart by what ops do with it.

A weight stands where an op has its parameters (the matrix of a `linear`, the table of an `embedding`), or is spread
over the batch, or has been read by graph after graph; and nothing writes it but an optimizer. What else was uploaded
is an input. Parameters that were made on the device count as weights by their place alone.
"""

from __future__ import annotations

from remora.ir.annotated import Meaning, Outside, Residency
from remora.ir.node import Ref, Slot
from remora.semantics.meanings import Meanings
from remora.semantics.optimizer import Training
from remora.semantics.reading import Reading, Root

# Of each op, the positions among its tensors where parameters stand.
PARAMETERS: dict[str, frozenset[int]] = {
    **dict.fromkeys(("linear", "bilinear"), frozenset({1, 2})),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "convolution", "_convolution"), frozenset({1, 2})),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), frozenset({1, 2})),
    **dict.fromkeys(
        ("layer_norm", "native_layer_norm", "group_norm", "native_group_norm"), frozenset({1, 2})
    ),
    **dict.fromkeys(("rms_norm", "_fused_rms_norm", "prelu", "_prelu_kernel"), frozenset({1})),
    **dict.fromkeys(
        ("batch_norm", "native_batch_norm", "_native_batch_norm_legit", "_batch_norm_impl_index"),
        frozenset({1, 2, 3, 4}),
    ),
    **dict.fromkeys(
        ("_native_batch_norm_legit_no_training", "cudnn_batch_norm", "instance_norm"), frozenset({1, 2, 3, 4})
    ),
    **dict.fromkeys(("embedding", "embedding_bag", "_embedding_bag"), frozenset({0})),
    **dict.fromkeys(("_embedding_bag_forward_only",), frozenset({0})),
    **dict.fromkeys(("_weight_norm_interface", "_weight_norm"), frozenset({0, 1})),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm"), frozenset({0, 2})),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), frozenset(range(2, 64))),
}
_STRICT = frozenset(PARAMETERS) - {"addmm", "addbmm", "baddbmm"}  # where a computed value hardly ever stands
_PRODUCTS = frozenset({"mm", "matmul", "bmm"})
_SPREADS = frozenset({"add", "mul", "sub", "div", "add_", "mul_", "pow", "where", "rsub"})
_FACTORIES = ("empty", "zeros", "ones", "rand", "full", "new_", "arange", "normal")


def recognise(reading: Reading, training: Training) -> Meanings:
    """Slots that are weights or inputs, and the rows that are views of them."""
    said = Meanings()
    roots: dict[Root, Meaning] = {}
    for root, numbers in reading.slots_of.items():
        meaning = _weight(reading, training, root, numbers) or _input(reading, root, numbers)
        if meaning is not None:
            roots[root] = meaning
            said.slots.update(dict.fromkeys(numbers, meaning))
    for row, outs in enumerate(reading.roots):
        if outs and (meaning := roots.get(outs[0])) is not None:
            said.rows[row] = meaning
    return said


def _weight(reading: Reading, training: Training, root: Root, numbers: list[int]) -> Meaning | None:
    slots = [reading.graph.slots[number] for number in numbers]
    if root in training.weights:
        return Meaning(Residency.WEIGHT, evidence=(training.weights[root],))
    known = reading.memory.storages.get(root[1]) is Residency.WEIGHT or any(
        slot.meaning.residency is Residency.WEIGHT for slot in slots
    )
    if root in reading.writers or root in training.states:
        return None
    if known:
        return Meaning(Residency.WEIGHT, evidence=("weight: was one in an earlier graph, not written since",))
    if not any(reading.is_float(Slot(number)) for number in numbers):
        return None
    uploaded = any(_of_client(slot) for slot in slots)
    written = any(slot.written for slot in slots)
    if written and (uploaded or not all(_made_by_factory(reading, number) for number in numbers)):
        return None
    reason = _place(reading, numbers, uploaded)
    if reason is None and uploaded:
        reason = _read_again(reading, numbers)
    return None if reason is None else Meaning(Residency.WEIGHT, evidence=(f"weight: {reason}",))


def _of_client(slot: Outside) -> bool:
    """Uploaded, or a view of what was."""
    return slot.uploaded or slot.meaning.residency in (Residency.INPUT, Residency.WEIGHT)


def _made_by_factory(reading: Reading, number: int) -> bool:
    made_by = reading.graph.slots[number].made_by
    return made_by is not None and made_by[0].op.split(".")[1].startswith(_FACTORIES)


def _place(reading: Reading, numbers: list[int], uploaded: bool) -> str | None:
    """Where ops have it, if that is a parameter's place. Whoever stands where data stands is no weight."""
    found: str | None = None
    for number in numbers:
        if not uploaded and (
            reading.graph.slots[number].meaning.modality is not None
            or reading.graph.slots[number].meaning.phase is not None
            or not _made_by_factory(reading, number)
        ):
            return None
        for row, position, spread in _uses(reading, number):
            op = reading.ops[row]
            places = PARAMETERS.get(op)
            if places is not None and position not in places:
                return None
            if places is not None and (uploaded or op in _STRICT):
                found = found or f"parameter of {op} (row {row})"
            elif uploaded and op in _PRODUCTS and _multiplies_computed(reading, row, position):
                found = found or f"matrix of {op} (row {row})"
            elif uploaded and (spread or _spreads(reading, row, position)):
                found = found or f"spread over the batch by {op} (row {row})"
    return found


def _uses(reading: Reading, number: int) -> list[tuple[int, int, bool]]:
    """Rows that compute with a slot, its position there, and whether it was expanded on the way."""
    found: list[tuple[int, int, bool]] = []
    pending = [(row, position, False) for row, position in reading.slot_readers[number]]
    seen: set[int] = set()
    while pending:
        row, position, spread = pending.pop()
        if not reading.carries(row) or (position and reading.ops[row] != "index"):
            found.append((row, position, spread))
            continue
        if row in seen:
            continue
        seen.add(row)
        if reading.ops[row] == "expand":
            shape, whole = reading.shape(reading.inputs[row][0]), reading.shape(Ref(row))
            spread |= bool(whole) and (len(whole) > len(shape) or shape[:1] == (1,)) and whole[0] > 1
        for reader in reading.readers[row]:
            found_at = [
                p for p, arg in enumerate(reading.inputs[reader]) if isinstance(arg, Ref) and arg.row == row
            ]
            pending += [(reader, p, spread) for p in found_at]
    return sorted(found)


def _multiplies_computed(reading: Reading, row: int, position: int) -> bool:
    """Whether the other factor was computed, and is not as large in the batch as this one."""
    inputs = reading.inputs[row]
    if len(inputs) < 2:
        return False
    mine, other = reading.shape(inputs[position]), inputs[1 - position if position < 2 else 0]
    return isinstance(other, Ref) and len(mine) <= max(2, len(reading.shape(other)) - 1)


def _spreads(reading: Reading, row: int, position: int) -> bool:
    """Whether an elementwise op repeats it for each part of the batch."""
    if reading.ops[row] not in _SPREADS:
        return False
    mine, whole = (
        reading.shape(reading.inputs[row][position]),
        reading.shape(Ref(row)) or _first(reading, row),
    )
    return bool(mine) and bool(whole) and (len(mine) < len(whole) or (mine[0] == 1 and whole[0] > 1))


def _first(reading: Reading, row: int) -> tuple[int, ...]:
    return reading.shape(reading.inputs[row][0])


def _read_again(reading: Reading, numbers: list[int]) -> str | None:
    reads = max(reading.graph.slots[number].reads for number in numbers)
    used = any(_uses(reading, number) for number in numbers)
    fed = any(
        position not in PARAMETERS.get(reading.ops[row], {position})
        for number in numbers
        for row, position, _ in _uses(reading, number)
    )
    return (
        f"uploaded, read by {reads} graphs before this one, never written"
        if reads and used and not fed
        else None
    )


def _input(reading: Reading, root: Root, numbers: list[int]) -> Meaning | None:
    if root in reading.writers:
        return None
    slots = [reading.graph.slots[number] for number in numbers]
    if any(_of_client(slot) for slot in slots) and not any(slot.written for slot in slots):
        return Meaning(
            Residency.INPUT, evidence=("input: came from the client, stands in no parameter's place",)
        )
    return None
