"""`remora bench decode --rtt`: decoding behind round trips, with run-ahead and without, against local.

Ways (bench/ways.py) are forks that hold a session each and take turns in random order. Parts: the ceiling; three models
that decode; ends of sequences; loops that turn or wander; every mode of `generate`; first tokens in new processes.
bench/run_ahead_bars.py judges.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from remora.bench import ceiling, loops, models, run_ahead_bars
from remora.bench.forks import ArmFailed, Fork
from remora.bench.harness import Impossible, Options, Report, check_physics, interleave
from remora.bench.links import Link, proxied
from remora.bench.modes import MODES, families
from remora.bench.run_ahead_bars import GPT2, LLAMA, THIN
from remora.bench.ways import (
    CONNECT_S,
    LOAD_S,
    LOCAL,
    TRIAL_S,
    WARM_S,
    Client,
    First,
    Generated,
    Looped,
    Way,
)
from remora.pool.embedded import EmbeddedExecutor

PROMPT_TOKENS = 16
WARM_UP_TOKENS = 32
SEEDS = range(1, 65)  # of prompts, tried in this order until one does what is asked


@dataclass(frozen=True)
class Extent:
    """How much is measured. models: (name, tokens, trials); mode_tokens, steps: of one generate, one loop.

    few: tokens of ways that wait for a reply at each, where more would tell no more. thorough: else only the shortest
    and the longest of the round trips, and of models and modes only what bars ask for; first tokens are the thin
    model's.
    """

    models: tuple[tuple[str, int, int], ...]
    few: int
    mode_tokens: int
    steps: int
    turns: int
    turn_trials: int
    drawn_trials: int
    ends: int
    first_trials: int
    thorough: bool


FULL = Extent(((THIN, 96, 7), (LLAMA, 48, 5), (GPT2, 64, 5)), 16, 32, 60, 3, 7, 9, 5, 5, True)
QUICK = Extent(((THIN, 32, 5), (LLAMA, 20, 3), (GPT2, 16, 3)), 8, 12, 28, 2, 3, 5, 3, 3, False)


def run(options: Options, report: Report) -> None:
    """One thread in the client, one in the executor."""
    import transformers

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    extent = QUICK if options.quick else FULL
    rtts = options.rtts if extent.thorough else tuple(sorted({options.rtts[0], options.rtts[-1]}))
    if rtts != options.rtts:
        report.say(f"quick: round trips of {rtts[0]:g} and {rtts[-1]:g} ms only")
    made = {name: _model(name) for name, _, _ in extent.models}
    round_trips = _ceiling(report, made, rtts)
    executor = EmbeddedExecutor("--threads", "1")
    with ExitStack() as stack:
        stack.callback(executor.stop)
        url = options.url or executor.start()
        links = {rtt: stack.enter_context(_link(url, rtt)) for rtt in rtts}
        bench = _Bench(report, extent, made | families(), links, random.Random(options.seed))
        bench.measure(round_trips)


def _model(name: str) -> Any:
    if name == LLAMA:
        return models.llama(32, vocabulary=256, spread=models.VARIED)
    size = (12, 48, 12, 256) if name == THIN else (12, 768, 12, 50257)
    return models.gpt2(*size, models.VARIED)


def _link(url: str, rtt_ms: float) -> Any:
    return proxied(url, Link(0.0, rtt_ms / 2e3)) if rtt_ms else _direct(url)


@contextmanager
def _direct(url: str) -> Iterator[str]:
    yield url


def _ceiling(report: Report, made: dict[str, Any], rtts: Sequence[float]) -> dict[float, float]:
    """Says what nothing can beat, before anything else; the round trips as raw sockets measure them."""
    rate = ceiling.read_bytes_per_s()
    report.row("ceiling: one thread reads memory", "this machine", "GB/s", [rate / 1e9])
    for name, model in made.items():
        floor_ms = ceiling.weights_nbytes(model) / rate * 1e3
        report.row("ceiling: weights read once a token", name, "ms", [floor_ms])
        report.say(f"ceiling: {name}: {floor_ms:.3g} ms a token, as fast as memory is read")
    round_trips = {rtt: ceiling.round_trip_ms(rtt) for rtt in rtts}
    for rtt, measured_ms in round_trips.items():
        ceiling.check_not_before(f"a round trip of {rtt:g} ms", measured_ms, rtt)
        report.row("ceiling: a token without run-ahead", f"RTT {rtt:g} ms", "ms", [measured_ms])
        report.say(
            f"ceiling: RTT {rtt:g} ms: {measured_ms:.4g} a token without run-ahead; once a call with it"
        )
    return round_trips


class _Bench:
    """The ways that are open, and the parts in their order."""

    def __init__(
        self,
        report: Report,
        extent: Extent,
        made: dict[str, Any],
        links: dict[float, str],
        rng: random.Random,
    ) -> None:
        self.report, self.extent, self.made, self.links, self.rng = report, extent, made, links, rng
        self.read_bytes_per_s = 0.0  # the best so far: others use this memory too
        self.all = [LOCAL, *(Way(rtt, ahead) for rtt in links for ahead in (False, True))]
        self.forks: dict[Way, Fork] = {}
        self.failed: set[Way] = set()
        self.failures = 0

    def measure(self, round_trips: dict[float, float]) -> None:
        prompts = {name: self._whole_prompt(name, tokens) for name, tokens, _ in self.extent.models}
        ends = self._ends()
        try:
            for name, tokens, trials in self.extent.models:
                found = self._decode(name, prompts[name], tokens, trials)
                run_ahead_bars.judge_decoding(self.report, name, found, round_trips)
                self._check_reads(name, found)
            run_ahead_bars.judge_ends(self.report, self._end(ends), [tokens for _, tokens in ends])
            straight, turned, drawn = self._loops()
            run_ahead_bars.judge_turns(self.report, straight, turned, self.extent.turns, round_trips)
            run_ahead_bars.judge_wandering(self.report, drawn)
            run_ahead_bars.judge_modes(self.report, self._modes())
        finally:
            for fork in self.forks.values():
                fork.close()
        name = GPT2 if self.extent.thorough else THIN
        firsts = self._first_tokens(name, prompts[name])
        run_ahead_bars.judge_first_tokens(self.report, name, firsts, round_trips)
        self.report.bar("failures of ways", self.failures, "==", 0)

    # -- ways

    def _open(self, ways: Sequence[Way]) -> None:
        """Opens those that are not open, or have failed in an earlier part."""
        for way in ways:
            if way in self.failed:
                self.forks.pop(way).close()
            if way not in self.forks:
                self.failed.discard(way)
                self.forks[way] = self._fork(way)
                self._ask(way, "open", CONNECT_S)

    def _fork(self, way: Way) -> Fork:
        url = None if way.rtt_ms is None else self.links[way.rtt_ms]
        return Fork(way.name, lambda: Client(way, url, self.made))

    def _ask(self, way: Way, do: str, within_s: float, **arguments: Any) -> dict[str, Any] | None:
        """None: the way has failed, now or before; it is left out until it is opened anew."""
        if way in self.failed:
            return None
        try:
            return self.forks[way].ask(do, within_s, **arguments)
        except ArmFailed as error:
            self.failed.add(way)
            self.failures += 1
            self.report.say(f"{way.name}: {do}: {error}")
            return None

    def _rounds(
        self, do: str, trials: int, asked: dict[Way, dict[str, Any]]
    ) -> dict[Way, list[dict[str, Any]]]:
        """Trials of ways in turns, each with its arguments; none of those that have failed by the end."""
        ways = {way.name: way for way in asked}
        acts = {
            name: (lambda way=way: self._ask(way, do, TRIAL_S, **asked[way])) for name, way in ways.items()
        }
        answers = interleave(acts, trials, self.rng)
        return {
            way: [] if way in self.failed else [answer for answer in answers[name] if answer is not None]
            for name, way in ways.items()
        }

    # -- parts

    def _decode(
        self, name: str, ids: list[list[int]], tokens: int, trials: int
    ) -> dict[Way, list[Generated]]:
        ways = asked(name, tuple(self.links), self.extent.thorough)
        self.report.say(f"{name}: {trials} trials of {tokens} tokens, {len(ways)} ways")
        self._open(ways)
        for way in ways:
            self._ask(way, "load", LOAD_S, model=name)
        work = {way: {"model": name, "ids": ids, "tokens": self._fewer(way, tokens)} for way in ways}
        self._warm_up(name, ways, {"model": name, "ids": ids})
        found = self._rounds("generate", trials, work)
        return {way: [Generated(**answer) for answer in answers] for way, answers in found.items()}

    def _fewer(self, way: Way, tokens: int) -> int:
        """How many a way makes of them."""
        return tokens if way == LOCAL or way.run_ahead else min(tokens, self.extent.few)

    def _check_reads(self, name: str, found: dict[Way, list[Generated]]) -> None:
        """Raises Impossible if tokens came faster than weights can be read."""
        self.read_bytes_per_s = max(self.read_bytes_per_s, ceiling.read_bytes_per_s())
        nbytes = ceiling.weights_nbytes(self.made[name])
        for way, trials in found.items():
            for trial in trials:
                what, seconds = f"{name}, {way.name}: weights of a token", trial.steady_ms / 1e3
                check_physics(what, nbytes, seconds, self.read_bytes_per_s)

    def _warm_up(self, name: str, ways: Sequence[Way], work: dict[str, Any]) -> None:
        """So much is generated that fast routes are worth making; when they are there they are taken once."""
        self._rounds("generate", 1, dict.fromkeys(ways, work | {"tokens": WARM_UP_TOKENS}))
        for way in ways:
            if waited := self._ask(way, "wait_warm", WARM_S + 10, timeout_s=WARM_S):
                self.report.row(f"{name}: waited for fast routes", way.name, "s", [waited["seconds"]])
                if not waited["warm"]:
                    self.report.say(f"{name}, {way.name}: not warm after {WARM_S:g} s")
        self._rounds("generate", 1, dict.fromkeys(ways, work | {"tokens": self.extent.few}))

    def _end(self, ends: Sequence[tuple[list[list[int]], list[int]]]) -> dict[Way, list[Generated]]:
        """Generates that end by a token that comes late, by the model's own choice."""
        self.report.say(f"{THIN}: {len(ends)} generates that end by themselves")
        found: dict[Way, list[Generated]] = {way: [] for way in self.all if way.run_ahead}
        self._open(list(found))
        for way in found:
            self._ask(way, "load", LOAD_S, model=THIN)
        for ids, expected in ends:
            work = {"model": THIN, "ids": ids, "tokens": 4 * len(expected), "eos": expected[-1]}
            for way, answers in self._rounds("generate", 1, dict.fromkeys(found, work)).items():
                found[way] += [Generated(**answer) for answer in answers]
        return {way: [] if way in self.failed else trials for way, trials in found.items()}

    def _loops(self) -> tuple[dict[Way, list[Looped]], ...]:
        """Loops without a turn, with some, and of random programs; local ones for their results."""
        extent, steps = self.extent, {"steps": self.extent.steps}
        self.report.say(
            f"loops of {extent.steps} steps: {extent.turn_trials} turn, {extent.drawn_trials} are drawn"
        )
        self._open(self.all)
        guessing = [way for way in self.all if way == LOCAL or way.run_ahead]
        straight, turned, drawn = ({way: [] for way in ways} for ways in (guessing, guessing, self.all))
        for trial in range(-1, max(extent.turn_trials, extent.drawn_trials)):  # the first is a warm-up
            kinds = []
            if trial < extent.turn_trials:
                places = loops.turns(extent.steps, extent.turns, self.rng)
                kinds += [
                    (straight, "turning", steps | {"turns": []}),
                    (turned, "turning", steps | {"turns": places}),
                ]
            if trial < extent.drawn_trials:
                seed = self.rng.randrange(1 << 30)
                kinds.append((drawn, "wandering", {"steps": extent.steps // 3, "seed": seed}))
            for into, do, arguments in self.rng.sample(kinds, len(kinds)):
                for way, answers in self._rounds(do, 1, dict.fromkeys(into, arguments)).items():
                    if trial >= 0:
                        into[way] += [Looped(**answer) for answer in answers]
        return tuple(
            {way: [] if way in self.failed else into[way] for way in into}
            for into in (straight, turned, drawn)
        )

    def _modes(self) -> dict[tuple[str, str], dict[Way, list[int] | None]]:
        """Tokens of each family and mode by way; None where it raised. Without run-ahead at the shortest alone."""
        shortest = min(self.links)
        ways = [LOCAL, Way(shortest, False)]
        ways += [Way(rtt, True) for rtt in (self.links if self.extent.thorough else (shortest,))]
        self._open(ways)
        self.report.say(f"{len(MODES)} modes of {len(families())} families, {len(ways)} ways")
        found: dict[tuple[str, str], dict[Way, list[int] | None]] = {}
        for family in families():
            for mode in MODES:
                answers = self._each_mode(ways, family, mode)
                found[family, mode] = {way: answers.get(way) for way in ways}
        return found

    def _each_mode(self, ways: Sequence[Way], family: str, mode: str) -> dict[Way, list[int]]:
        """One that raises in one way has not failed in all: the others of its modes are still asked for."""
        tokens: dict[Way, list[int]] = {}
        asked = {"family": family, "mode": mode, "tokens": self.extent.mode_tokens}
        for way in ways:
            self._open([way])
            if (answer := self._ask(way, "mode", TRIAL_S, **asked)) is not None:
                tokens[way] = answer["tokens"]
        return tokens

    def _first_tokens(self, name: str, ids: list[list[int]]) -> dict[Way, list[First]]:
        """Of processes that have done nothing before; caches on disk are warm."""
        ways = {way.name: way for way in (LOCAL, *(Way(rtt, True) for rtt in self.links))}
        self.report.say(f"first tokens: {self.extent.first_trials} new processes of {len(ways)} ways each")
        acts: dict[str, Callable[[], First | None]] = {
            way_name: (lambda way=way: self._first_token(way, name, ids)) for way_name, way in ways.items()
        }
        found = interleave(acts, self.extent.first_trials, self.rng)
        return {way: [first for first in found[way_name] if first] for way_name, way in ways.items()}

    def _first_token(self, way: Way, name: str, ids: list[list[int]]) -> First | None:
        self.failed.discard(way)
        self.forks[way] = self._fork(way)
        try:
            self._ask(way, "open", CONNECT_S)
            self._ask(way, "load", LOAD_S, model=name)
            answer = self._ask(way, "first", TRIAL_S, model=name, ids=ids)
        finally:
            self.forks.pop(way).close()
        return None if answer is None else First(**answer)

    # -- prompts

    def _whole_prompt(self, name: str, tokens: int) -> list[list[int]]:
        """The first prompt whose generate does not end before all its tokens are made."""
        for ids in _prompts(self.made[name]):
            if len(_local_tokens(self.made[name], ids, tokens)) == tokens:
                return ids.tolist()
        raise Impossible(f"{name} ends every generate of {tokens} tokens early")

    def _ends(self) -> list[tuple[list[list[int]], list[int]]]:
        """Prompts, and the tokens after each up to one that comes late and for the first time."""
        tokens = next(tokens for name, tokens, _ in self.extent.models if name == THIN)
        found = []
        for ids in _prompts(self.made[THIN]):
            made = _local_tokens(self.made[THIN], ids, tokens)
            late = last_new(made, len(made) // 3)
            if late is not None:
                found.append((ids.tolist(), made[: late + 1]))
            if len(found) == self.extent.ends:
                return found
        raise Impossible(f"{THIN} makes no new token late in {tokens}")


def _prompts(model: Any) -> Iterator[torch.Tensor]:
    for seed in SEEDS:
        yield models.prompt(PROMPT_TOKENS, vocabulary=model.config.vocab_size, seed=seed)


def asked(name: str, rtts: Sequence[float], thorough: bool) -> list[Way]:
    """The ways of a model: those that bars ask for, and few beside them, since each takes long to warm up.

    Args:
        rtts: ascending.
        thorough: more beside them; of the thin model all.
    """
    near, far = rtts[0], rtts[-1]
    if name == LLAMA:
        rest = [Way(near, True), *([Way(far, True)] if thorough else [])]
    else:
        waiting = {THIN: rtts, GPT2: (near, far)}[name] if thorough else (far,) if name == THIN else ()
        rest = [*(Way(rtt, False) for rtt in waiting), *(Way(rtt, True) for rtt in rtts)]
    return [LOCAL, *dict.fromkeys(rest)]


def _local_tokens(model: Any, ids: torch.Tensor, tokens: int) -> list[int]:
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False)
    return out[0, ids.shape[1] :].tolist()


def last_new(tokens: Sequence[int], earliest: int) -> int | None:
    """The last place, from `earliest` on, of a token that was not there before; None: there is none."""
    places = [at for at, token in enumerate(tokens) if at >= earliest and token not in tokens[:at]]
    return places[-1] if places else None
