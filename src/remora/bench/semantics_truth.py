"""What tensors mean by the model's own word: parameters, caches, optimizer state, hooks on modules and steps.

Nothing here asks a recogniser. Values are known by their names; what lies in the memory of a parameter or of a cache
is it too. Where the model says nothing (rows between two calls of the model), there is no truth and nothing is scored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from remora.bench.watch import Name, Plan, Watch
from remora.bench.zoo_check import tensors
from remora.capture.recorder import Recorder
from remora.capture.value import OUT_BITS
from remora.device.tensor import RemoraTensor
from remora.ir.annotated import Meaning, Modality, Phase, Residency
from remora.ir.node import Ref

UNKNOWN = "unknown"  # the model does not say
NONE = "none"  # it says that there is none
MIN_CACHE_DIMS = 3  # counters and positions that a cache keeps are no cache
At = tuple[int, int]  # a place in the op stream: segment and row


@dataclass(frozen=True)
class Span:
    """Rows from one place to another that are of a kind."""

    start: At
    end: At
    kind: str
    value: Any


@dataclass
class Truth:
    """Gathers labels while a program runs; answers afterwards."""

    watch: Watch
    recorder: Recorder
    spans: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._names: dict[Residency, set[Name]] = {residency: set() for residency in Residency}
        self._held: list[Any] = []  # names are never used twice, but a value's tensor may be
        self._buffers: set[Name] = set()

    # -- what the program says

    def weights(self, model: torch.nn.Module) -> None:
        """Parameters, and buffers that nothing writes."""
        for _, parameter in model.named_parameters():
            self._note(Residency.WEIGHT, parameter)
        for _, buffer in model.named_buffers():
            self._note(Residency.WEIGHT, buffer)

    def cache(self, cache: Any) -> None:
        for _, tensor in tensors(cache):
            if tensor.dim() >= MIN_CACHE_DIMS and tensor.is_floating_point():
                self._note(Residency.KV_CACHE, tensor)

    def inputs(self, inputs: Any) -> None:
        for _, tensor in tensors(inputs):
            self._note(Residency.INPUT, tensor)

    def optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            for tensor in state.values():
                if isinstance(tensor, torch.Tensor):
                    self._note(Residency.OPTIMIZER_STATE, tensor)

    def _note(self, residency: Residency, tensor: torch.Tensor) -> None:
        if isinstance(tensor, RemoraTensor):
            self._held.append(tensor._value)
            self._names[residency].add((tensor._value.segment, tensor._value.code))

    # -- where rows are

    def here(self) -> At:
        return self.recorder.segment, self.recorder.step.rows

    @contextmanager
    def during(self, kind: str, value: Any) -> Iterator[None]:
        start = self.here()
        try:
            yield
        finally:
            self.spans.append(Span(start, self.here(), kind, value))

    def hook(self, module: torch.nn.Module, kind: str, value: Any) -> None:
        """Rows of every call of a module. value: of the label, or a function that gives it when the call begins."""
        open_: list[tuple[At, Any]] = []

        def before(module: Any, args: Any, kwargs: Any) -> None:
            open_.append((self.here(), value() if callable(value) else value))

        def after(module: Any, args: Any, result: Any) -> None:
            start, found = open_.pop()
            self.spans.append(Span(start, self.here(), kind, found))

        module.register_forward_pre_hook(before, with_kwargs=True)
        module.register_forward_hook(after)

    def layers(self, model: torch.nn.Module) -> None:
        """The items of the outermost lists of equal modules."""
        self.hook(model, "layer", NONE)
        self._layers(model)

    def _layers(self, module: torch.nn.Module) -> None:
        for child in module.children():
            items = list(child.children())
            is_list = isinstance(child, (torch.nn.ModuleList, torch.nn.Sequential))
            if (
                is_list
                and len(items) > 1
                and len({type(item) for item in items}) == 1
                and list(items[0].children())
            ):
                for index, item in enumerate(items):
                    self.hook(item, "layer", index)
            else:
                self._layers(child)

    # -- what is true

    def of_rows(self, plan: Plan) -> list[dict[str, Any]]:
        graph = plan.captured
        found = []
        for number in range(len(graph.rows)):
            label = {kind: self._at((plan.segment, number), kind) for kind in ("phase", "modality", "layer")}
            outs = graph.rows[number].outs
            storages = set()
            for out in range(len(outs)):
                kind, root, root_out = graph.storage(Ref(number, out))
                code = root << OUT_BITS | root_out
                storages.add(root if kind == "slot" else plan.segment << 32 | code)
            label["residency"] = self._residency(storages) if outs else UNKNOWN
            found.append(label)
        return found

    def of_slots(self, plan: Plan) -> list[dict[str, Any]]:
        return [{"residency": self._residency({slot.storage})} for slot in plan.captured.slots]

    def _residency(self, storages: set[int]) -> Any:
        for residency, marked in self._storages().items():
            if storages & marked:
                return NONE if storages & self._written else residency
        return UNKNOWN if storages & self.watch.uploads else Residency.ACTIVATION

    def _storages(self) -> dict[Residency, set[int]]:
        if not hasattr(self, "_found"):
            self._found = {
                residency: {found for name in names if (found := self.watch.storage(name)) is not None}
                for residency, names in self._names.items()
                if names
            }
            self._written = {
                found for name in self._buffers if (found := self.watch.storage(name)) is not None
            }
        return self._found

    def statistics(self, model: torch.nn.Module) -> None:
        """Buffers that training writes: no weights."""
        for name, buffer in model.named_buffers():
            if "running_" in name or "num_batches" in name:
                assert isinstance(buffer, RemoraTensor)
                self._buffers.add((buffer._value.segment, buffer._value.code))

    def _at(self, place: At, kind: str) -> Any:
        """Of the innermost span around a row."""
        around = [span for span in self.spans if span.kind == kind and span.start <= place < span.end]
        return (
            max(around, key=lambda span: (span.start, (-span.end[0], -span.end[1]))).value
            if around
            else UNKNOWN
        )


@dataclass
class Score:
    """Of one label: how often it was said rightly, said wrongly, and left out."""

    right: int = 0
    wrong: int = 0
    missed: int = 0

    @property
    def precision(self) -> float:
        said = self.right + self.wrong
        return self.right / said if said else 1.0

    @property
    def recall(self) -> float:
        there = self.right + self.missed
        return self.right / there if there else 1.0

    @property
    def there(self) -> int:
        return self.right + self.missed


Scores = dict[str, Score]
Wrong = Callable[[str], None]


def scored(truth: Truth, plans: list[Plan], wrong: Wrong = lambda text: None) -> Scores:
    """By label, over rows and slots of all plans."""
    scores: Scores = {}
    for at, plan in enumerate(plans):
        for kind, items, labels in (
            ("slot", plan.annotated.slots, truth.of_slots(plan)),
            ("row", plan.annotated.rows, truth.of_rows(plan)),
        ):
            for number, (item, label) in enumerate(zip(items, labels, strict=True)):
                for fact, true in label.items():
                    said = _said(item.meaning, fact)
                    if true != UNKNOWN and said != Residency.OUTPUT:
                        _count(scores, fact, str(true), said)
                        if said != str(true):
                            wrong(f"graph {at} {kind} {number}: {fact} {said}, is {true}")
    return scores


def _said(meaning: Meaning, fact: str) -> str:
    said = getattr(meaning, fact)
    return NONE if said is None else str(said)


def _count(scores: Scores, fact: str, true: str, said: str) -> None:
    def score(label: str) -> Score:
        return scores.setdefault("layer" if fact == "layer" else label, Score())

    if said == true:
        if true != NONE:
            score(true).right += 1
        return
    if said != NONE:
        score(said).wrong += 1
    if true != NONE:
        score(true).missed += 1


LABELS = [*(str(kind) for kinds in (Residency, Phase, Modality) for kind in kinds), "layer"]
