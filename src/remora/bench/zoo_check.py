"""One specimen on the executor and on the local CPU: forward, `generate`, one training step, bit by bit."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy
import torch

from remora.bench.zoo_models import Inputs, Specimen

NEW_TOKENS = 8
EQUAL, ABSENT = "equal", "-"


@dataclass
class Result:
    """What became of one specimen: each part is "equal", "-" (the model has none), or what went wrong."""

    name: str
    forward: str = ABSENT
    generate: str = ABSENT
    train: str = ABSENT
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return all(part in (EQUAL, ABSENT) for part in (self.forward, self.generate, self.train))

    def content(self) -> dict[str, Any]:
        return asdict(self)


def check(specimen: Specimen, device: str = "remora") -> Result:
    """Compares all parts; a failure of one does not stop the next."""
    started = time.perf_counter()
    result = Result(specimen.name)
    try:
        pair = Pair(specimen, device)
        result.forward = _outcome(pair.forward)
        if specimen.generates is not None:
            result.generate = _outcome(pair.generate)
        result.train = _outcome(pair.train)
    except Exception as error:
        result.forward = _said(error)
    result.seconds = round(time.perf_counter() - started, 2)
    return result


class Different(Exception):
    """Where remote and local part."""


def _outcome(part: Any) -> str:
    try:
        part()
    except Exception as error:
        return _said(error)
    return EQUAL


def _said(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, Different) else f"{type(error).__name__}: {text}"[:600]


class Pair:
    """The same model here and there."""

    def __init__(self, specimen: Specimen, device: str) -> None:
        self.specimen, self.device = specimen, device
        self.here = specimen.build()
        self.there = copy.deepcopy(self.here).to(device)

    def forward(self) -> None:
        """Every tensor that a forward pass in eval mode returns, caches included."""

        def output(model: Any, device: str) -> Any:
            seed_all()  # some models draw numbers even here
            with torch.no_grad():
                return model(**self._inputs(device))

        expected, got = output(self.here, "cpu"), output(self.there, self.device)
        compare(dict(tensors(expected)), dict(tensors(got)), self.device)

    def generate(self) -> None:
        """Greedy tokens, captured and then repeated."""

        def tokens(model: Any, device: str) -> torch.Tensor:
            inputs = self._inputs(device)
            inputs.pop("labels", None)
            options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **(self.specimen.generates or {})}
            return model.generate(**inputs, **options)

        expected = tokens(self.here, "cpu")
        for _ in range(2):
            compare({"tokens": expected}, {"tokens": tokens(self.there, self.device)}, self.device)

    def train(self) -> None:
        """Loss, gradients, and parameters and buffers after one step of AdamW, with the model's own dropout."""
        expected = train_step(self.here, self._inputs("cpu"))
        got = train_step(self.there, self._inputs(self.device))
        compare(expected, got, self.device)

    def _inputs(self, device: str) -> Inputs:
        return {name: move(item, device) for name, item in self.specimen.inputs().items()}


def move(item: Any, device: str) -> Any:
    if isinstance(item, torch.Tensor):
        return item.to(device)
    if isinstance(item, dict):
        return {name: move(part, device) for name, part in item.items()}
    return [move(part, device) for part in item] if isinstance(item, list) else item


def seed_all(seed: int = 3) -> None:
    """Every generator that models draw from."""
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def train_step(model: Any, inputs: Inputs) -> dict[str, torch.Tensor]:
    """One step; returns the loss, the gradients and the state after it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seed_all()
    output = model(**inputs)
    loss = getattr(output, "loss", None)
    if loss is None:
        loss = sum(part.float().square().mean() for _, part in tensors(output) if part.requires_grad)
    loss.backward()
    found = {"loss": loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"gradient of {name}"] = parameter.grad
    optimizer.step()
    found.update({f"updated {name}": tensor for name, tensor in model.state_dict().items()})
    return found


def tensors(item: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in a model's output, with the way to them; outputs, tuples and caches are walked."""
    if isinstance(item, torch.Tensor):
        yield path, item
    elif isinstance(item, dict):
        for name, part in item.items():
            yield from tensors(part, f"{path}.{name}")
    elif isinstance(item, (list, tuple)):
        for index, part in enumerate(item):
            yield from tensors(part, f"{path}[{index}]")
    elif type(item).__module__.startswith("transformers.") and hasattr(item, "__dict__"):
        yield from tensors({name: part for name, part in vars(item).items() if name != "config"}, path)


def compare(expected: dict[str, torch.Tensor], got: dict[str, torch.Tensor], device: str) -> None:
    """Raises Different at the first tensor that is elsewhere, or has another type, shape or bit."""
    if expected.keys() != got.keys():
        raise Different(f"other tensors: {sorted(expected.keys() ^ got.keys())[:5]}")
    for name, here in expected.items():
        there = got[name]
        if there.device.type != torch.device(device).type and here.numel():
            raise Different(f"{name} is on {there.device}")
        if (there.dtype, there.shape) != (here.dtype, here.shape):
            raise Different(
                f"{name}: {there.dtype} {tuple(there.shape)}, not {here.dtype} {tuple(here.shape)}"
            )
        if here.is_floating_point() and here.isnan().any():
            raise Different(f"{name} is not a number here: the specimen proves nothing")
        copy_ = there.detach().cpu()
        if not torch.equal(copy_, here):
            apart = (copy_.double() - here.double()).abs()
            raise Different(
                f"{name} differs in {int((apart != 0).sum())} of {here.numel()}, by {apart.max():.3g}"
            )
