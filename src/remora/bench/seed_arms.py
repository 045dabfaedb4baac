"""The seed's workload as real programs, one for each arm: what a user would write who knows as much as the arm does.

The earlier prototypes' workload: one cache [1, T, 768] as keys and values, an MLP, the next token, batch 1, ten
steps. Remora itself never sends a value twice to the same place, so an arm whose cache travels at every step says so
in its program: `placement="explicit"` and `.to()`, as code that knows nothing of the cache does with GPUs.
"""

# B batch (1), T tokens of the cache, W width

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from remora.bench.arms import LOCAL, WARM_UPS, Arm
from remora.bench.contest import BETWEEN, BOTH_WAYS, Carries, Entry
from remora.bench.workloads import Build, Outputs, Running
from remora.bench.workloads.networks import Seed
from remora.bench.workloads.workload import normal, seeded

WIDTH, STEPS = 768, 10
TOKEN_NBYTES = 4 * WIDTH
# Of a step, requests and replies; measured: 340 to 630, and 3,400 where each message is a request with heads.
CLIENT_FRAMING = {"websocket": 700, "post": 5000}
NEW_FRAMING = 8192  # of a trial: templates that one of its steps is the first to need
FEW_WARM_UPS = 2  # of what moves: its calls are never captured as a whole, as each names its devices
PUSH_FRAMING = 512  # of a step: a push's heads, twice


@dataclass(frozen=True)
class Kind:
    """An arm of the seed. moves: whether the cache travels. reads: whether the client reads each token."""

    name: str
    policy: str | None
    build: Callable[[Seed, torch.Tensor, int, int], Build]
    moves: bool = False
    reads: bool = True

    def arm(self, transport: str = "websocket") -> Arm:
        label = self.name if transport == "websocket" else f"{self.name}, {transport}"
        return Arm(self.policy, 2, label, run_ahead=False, transport=transport)


def nbytes_of(tokens: int) -> int:
    """Of a cache."""
    return tokens * WIDTH * 4


def _blind(model: Seed, first: torch.Tensor, tokens: int, steps: int) -> Build:
    """Executors take turns, and the state moves to the compute."""

    def build(_: str) -> Running:
        models = [copy.deepcopy(model).to(f"remora:{at}") for at in (0, 1)]
        held = cache_of(tokens).to("remora:1")

        @torch.no_grad()
        def step() -> Outputs:
            nonlocal held
            token, made = first.to("remora:1"), []
            for number in range(steps):
                at = number % 2
                held, token = held.to(f"remora:{at}"), token.to(f"remora:{at}")
                token = models[at](token, held)
                made.append(token.cpu())
            return made

        return Running(step)

    return build


def _split(model: Seed, first: torch.Tensor, tokens: int, steps: int) -> Build:
    """The cache on one executor, the decoder on another, which fetches the cache at each step."""

    def build(_: str) -> Running:
        decoder, held = copy.deepcopy(model).to("remora:0"), cache_of(tokens).to("remora:1")

        @torch.no_grad()
        def step() -> Outputs:
            token, made = first.to("remora:0"), []
            for _ in range(steps):
                token = decoder(token, held.to("remora:0"))
                made.append(token.cpu())
            return made

        return Running(step)

    return build


def _aware(model: Seed, first: torch.Tensor, tokens: int, steps: int) -> Build:
    """Cache and decoder on the same executor; the client reads each token, and waits for it."""

    def build(device: str) -> Running:
        decoder, held = copy.deepcopy(model).to(device), cache_of(tokens).to(device)
        return Running(lambda: [token.cpu() for token in chain(decoder, first.to(device), held, steps)])

    return build


def _resident(model: Seed, first: torch.Tensor, tokens: int, steps: int) -> Build:
    """As aware, and the client reads the last token only."""

    def build(device: str) -> Running:
        decoder, held = copy.deepcopy(model).to(device), cache_of(tokens).to(device)
        start = first.to(device)

        def step() -> Outputs:
            *_, last = chain(decoder, start, held, steps)
            return [last.cpu()]

        return Running(step)

    return build


def chain(model: Seed, token: torch.Tensor, cache: torch.Tensor, steps: int) -> Iterator[torch.Tensor]:
    """Each token as it is made."""
    for _ in range(steps):
        with torch.no_grad():
            token = model(token, cache)
        yield token


def cache_of(tokens: int) -> torch.Tensor:
    return normal(1, tokens, WIDTH, seed=1)


BLIND = Kind("blind", "explicit", _blind, moves=True)
SPLIT = Kind("split", "explicit", _split, moves=True)
AWARE = Kind("aware", "semantic", _aware)
RESIDENT = Kind("resident", "semantic", _resident, reads=False)
KINDS = (BLIND, SPLIT, AWARE, RESIDENT)


def local_entry(tokens: int) -> Entry:
    """The same by plain PyTorch."""
    build = _aware(*_made(), tokens, STEPS)
    return Entry(LOCAL, build, STEPS, lambda: build("cpu").step())


def entry(
    kind: Kind,
    tokens: int,
    steps: int,
    *,
    predicted_s: float | None = None,
    floor_s: float = 0.0,
    bound: str = "",
    transport: str = "websocket",
) -> Entry:
    """An arm over a cache of that many tokens, `steps` a trial (even); seconds are of one step."""
    model, first = _made()
    plain = (_aware if kind.reads else _resident)(model, first, tokens, steps)
    between = nbytes_of(tokens) * steps if kind.moves else 0
    returned = TOKEN_NBYTES * (steps if kind.reads else 1)
    return Entry(
        kind.arm(transport),
        kind.build(model, first, tokens, steps),
        steps,
        lambda: plain("cpu").step(),
        (
            Carries(BETWEEN, between, (TOKEN_NBYTES + PUSH_FRAMING) * steps if kind.moves else 0),
            Carries(BOTH_WAYS, returned, CLIENT_FRAMING[transport] * steps + NEW_FRAMING),
        ),
        floor_s * steps,
        None if predicted_s is None else predicted_s * steps,
        warm_ups=FEW_WARM_UPS if kind.moves else WARM_UPS,
        bound=bound,
    )


def _made() -> tuple[Seed, torch.Tensor]:
    with seeded():
        model = Seed(WIDTH).eval()
    return model, normal(1, 1, WIDTH, seed=2)
