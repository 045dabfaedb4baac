"""The experiment `seed`: the earlier prototypes' workload with real bytes, at rates and cache sizes.

The arms are bench/seed_arms.py's; what a step of each should take is said before it is measured (bench/gains.py),
from a twin over a small cache, raw sockets, and local PyTorch. Where this machine carries less than a rate, moving
arms are bound by its processor, and say so; a rate that it cannot come near is simulated (bench/seed_simulated.py).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from remora.bench import gains, seed_arms, seed_models, seed_simulated
from remora.bench.contest import BOTH_WAYS, Result, Setting, carried, contest, row
from remora.bench.gains import Twin, Wire
from remora.bench.harness import CLOCK_SLACK, Options, Report
from remora.bench.links import Executors, Link, executors, on_hosts
from remora.bench.netns import burst_nbytes
from remora.bench.seed_arms import AWARE, BLIND, KINDS, RESIDENT, SPLIT, STEPS, Kind
from remora.errors import UsageError

RATES, QUICK_RATES = (0.56, 1.0, 10.0, 25.0, 100.0, 400.0), (0.56, 10.0, 100.0, 400.0)  # Gbit/s
MOST_MEASURED = 25.0  # Gbit/s; beyond, no such machine carries a share worth measuring
TOKENS, QUICK_TOKENS = (128, 1024, 8192, 32768, 131072), (128, 1024)
SEED_RATE, SEED_TOKENS, TWIN_TOKENS = 0.56, 128, 16
TRIALS, QUICK_TRIALS = 7, 5  # at least
MOST_TRIALS, TURNS_S = 31, 4.0  # of arms that take a moment: more, for as long as that
LONGEST_TRIAL_S = 3.0
READ_BYTES_PER_S = 5e9  # of a cache, twice a step, about: how long plain PyTorch takes is not known yet
SPLIT_UP_TO = 8192  # beyond, it is what blind is, and takes as long
WITHIN = 0.10  # of the cost model
NEAR = 0.9  # of its rate that a link carries, for arms to be bound by it
RESIDENT_STEPS = 100  # ten of the seed's runs in a row, so that the wait at the end is a small part
SHARES = (0.5, 0.9)


@dataclass
class Found:
    """Median seconds of a step by arm, by size of the cache, of one rate."""

    about: str
    seconds: dict[int, dict[str, float]] = field(default_factory=dict)


def run(options: Options, report: Report) -> None:
    """Every rate, every size; then from which sizes on time is saved."""
    torch.set_num_threads(1)
    rng = random.Random(options.seed)
    say_model(report)
    rates = _rates(options)
    found = {rate: _at(report, rate, options, rng) for rate in rates if rate is None or rate <= MOST_MEASURED}
    for one in found.values():
        judge_gains(report, one)
    simulate(report, found, [rate for rate in rates if rate is not None], options.quick)


def simulate(
    report: Report, measured: Mapping[float | None, Found], rates: Sequence[float], quick: bool
) -> None:
    """Every rate: those that were measured too, to be compared."""
    if not rates:
        return
    steps = {kind.name: _steps(kind, 0.0) for kind in KINDS}
    with executors(2, None, "--no-same-host", calibrate=False) as pool:
        sizes = QUICK_TOKENS if quick else TOKENS
        simulated = seed_simulated.measure(report, pool.urls, rates, sizes, steps, SPLIT_UP_TO)
    for one in simulated:
        if one.gbit_per_s in measured:
            compare(report, measured[one.gbit_per_s], one.seconds)
        else:
            judge_gains(report, Found(f"{one.gbit_per_s:g} Gbit/s, simulated", one.seconds))


def say_model(report: Report) -> None:
    report.say(
        "model of an arm whose cache travels, and of aware: own + bytes / link + kernels; nothing overlaps"
    )
    report.say("model of resident: the longer of the client's processor time and the executor's busy time")
    report.say(
        f"own, and those times: the same program over {TWIN_TOKENS} tokens; kernels: local PyTorch; link: raw sockets"
    )


def _rates(options: Options) -> Sequence[float | None]:
    """None: what the hosts' own network carries."""
    if options.executors:
        if len(options.executors) != 2:
            raise UsageError(f"seed needs two executors, and these are {len(options.executors)}")
        return (None,)
    return options.rates or (QUICK_RATES if options.quick else RATES)


def _at(report: Report, rate: float | None, options: Options, rng: random.Random) -> Found:
    with ExitStack() as stack:
        if rate is None:
            pool = stack.enter_context(on_hosts(options.executors))
        else:
            pool = stack.enter_context(executors(2, Link(rate * 1e9 / 8), "--no-same-host"))
        carries = (pool.rates.peers or pool.rates.up) * 8 / 1e9
        about = "hosts" if rate is None else f"{rate:g} Gbit/s"
        bound = "link" if rate is None or carries >= NEAR * rate else "cpu"
        by = "a session, when it opens" if rate is None else "raw socket"
        report.row(f"executor to executor, by {by}", f"{pool.kind}, {about}", "Gbit/s", [carries])
        report.say(
            f"{pool.about}; measured by {by}: {carries:.3g} Gbit/s, so arms that move are bound by {bound}"
        )
        found = _Rate(report, pool, about, bound, rate, options.quick, rng).measure()
        if not options.quick or rate in (None, SEED_RATE):
            seed_models.measure(report, pool, about, bound, options.quick, rng)
        return found


class _Rate:
    """All sizes on one link."""

    def __init__(
        self,
        report: Report,
        pool: Executors,
        about: str,
        bound: str,
        rate: float | None,
        quick: bool,
        rng: random.Random,
    ) -> None:
        self.report, self.pool, self.about, self.bound, self.rng = report, pool, about, bound, rng
        self.quick, self.seed_like = quick, rate == SEED_RATE
        self.trials = QUICK_TRIALS if quick else TRIALS
        burst = burst_nbytes(pool.link.bytes_per_s) if pool.kind == "netns" else 0.0
        self.wire = Wire(pool.rates.peers or pool.rates.up, burst)

    def measure(self) -> Found:
        found = Found(self.about)
        twins = self._twins()
        for tokens in QUICK_TOKENS if self.quick else TOKENS:
            found.seconds[tokens] = self._size(tokens, twins)
        return found

    def _twins(self) -> dict[str, Twin]:
        setting = self._setting("seed, twin", TWIN_TOKENS)
        entries = [seed_arms.entry(kind, TWIN_TOKENS, _steps(kind, 0.0)) for kind in KINDS]
        entries.insert(0, seed_arms.local_entry(TWIN_TOKENS))
        results = contest(self.report, setting, entries, self.pool, MOST_TRIALS, self.rng, clocks=True)
        kernel_s = statistics.median(results["local"].seconds)
        return {kind.name: _twin(kind, results[kind.name], kernel_s) for kind in KINDS}

    def _size(self, tokens: int, twins: dict[str, Twin]) -> dict[str, float]:
        """Median seconds of a step by arm."""
        setting = self._setting("seed", tokens)
        plain = seed_arms.local_entry(tokens)
        plain_s = STEPS * 2 * seed_arms.nbytes_of(tokens) / READ_BYTES_PER_S
        local = contest(self.report, setting, [plain], self.pool, self._trials(plain_s), self.rng)
        kernels = local["local"].seconds
        kernel_s, floor_s = statistics.median(kernels), min(kernels) / CLOCK_SLACK
        predicted = {
            kind.name: self.predicted(kind, twins[kind.name], tokens, kernel_s)
            for kind in KINDS
            if kind is not SPLIT or tokens <= SPLIT_UP_TO
        }
        self._say_ceilings(tokens, floor_s, predicted)
        kinds = [kind for kind in KINDS if kind.name in predicted]
        posted = (AWARE,) if self.quick else (BLIND, AWARE, RESIDENT)
        entries, turn_s = [plain], STEPS * kernel_s
        for kind in kinds:
            steps = _steps(kind, predicted[kind.name])
            bound = self.bound if kind.moves else ""
            of = {"floor_s": floor_s, "bound": bound}
            turn_s += steps * predicted[kind.name]
            entries.append(seed_arms.entry(kind, tokens, steps, predicted_s=predicted[kind.name], **of))
            if self.seed_like and tokens == SEED_TOKENS and kind in posted:
                entries.append(seed_arms.entry(kind, tokens, steps, transport="post", **of))
        results = contest(self.report, setting, entries, self.pool, self._trials(turn_s), self.rng)
        self._rows(setting, tokens, results, predicted)
        if self.seed_like and tokens == SEED_TOKENS:
            judge_seed(self.report, results, predicted)
        return {name: statistics.median(result.seconds) for name, result in results.items()}

    def _trials(self, turn_s: float) -> int:
        """turn_s: that all arms take for one each."""
        return max(self.trials, min(MOST_TRIALS, int(TURNS_S / turn_s)))

    def predicted(self, kind: Kind, twin: Twin, tokens: int, kernel_s: float) -> float:
        """Seconds of a step."""
        if not kind.reads:
            return gains.pipelined_s(twin, kernel_s, _steps(kind, kernel_s))
        nbytes = seed_arms.nbytes_of(tokens) if kind.moves else twin.nbytes
        return gains.waiting_s(twin, nbytes, kernel_s, self.wire)

    def _say_ceilings(self, tokens: int, floor_s: float, predicted: dict[str, float]) -> None:
        link_ms = seed_arms.nbytes_of(tokens) / self.wire.bytes_per_s * 1e3
        self.report.say(
            f"{self.about}, {tokens} tokens: kernels take {floor_s * 1e3:.3g} ms at least, the link {link_ms:.3g}"
        )
        said = ", ".join(f"{name} {seconds * 1e3:.3g}" for name, seconds in predicted.items())
        self.report.say(f"  predicted, ms a step: {said}")

    def _rows(
        self, setting: Setting, tokens: int, results: dict[str, Result], predicted: dict[str, float]
    ) -> None:
        where = f"{self.about}, {tokens} tokens"
        for name, result in results.items():
            median_ms = row(self.report, setting, where, result)
            if name in predicted:
                ratio = predicted[name] * 1e3 / median_ms
                self.report.row(f"seed, {where}: predicted / measured", name, "x", [ratio])
        blind = results[BLIND.name].seconds
        for kind in (AWARE, RESIDENT):
            found = self.report.ratio(
                f"seed, {where}: time, blind / this", kind.name, blind, results[kind.name].seconds
            )
            self.report.say(f"  blind / {kind.name}: {found.median:.3g} [{found.low:.3g}, {found.high:.3g}]")

    def _setting(self, workload: str, tokens: int) -> Setting:
        return Setting(workload, "step", {"cache_tokens": tokens, "width": seed_arms.WIDTH})


def _steps(kind: Kind, predicted_s: float) -> int:
    """Of a trial; even, so that what takes turns ends where it began."""
    wanted = RESIDENT_STEPS if not kind.reads else STEPS
    if predicted_s * wanted <= LONGEST_TRIAL_S:
        return wanted
    return max(2, 2 * int(LONGEST_TRIAL_S / predicted_s / 2))


def _twin(kind: Kind, result: Result, kernel_s: float) -> Twin:
    nbytes = seed_arms.nbytes_of(TWIN_TOKENS) if kind.moves else seed_arms.TOKEN_NBYTES
    return Twin(
        statistics.median(result.seconds),
        nbytes,
        kernel_s,
        statistics.median(result.cpu_s),
        result.busy_s / result.entry.units,
        statistics.median(trial.spent["segments"] for trial in result.trials) / result.entry.units,
    )


def judge_seed(report: Report, results: dict[str, Result], predicted: dict[str, float]) -> None:
    """The bars on the seed's own shape at the seed's own rate."""
    for kind in (BLIND, AWARE, RESIDENT):
        measured_s = statistics.median(results[kind.name].seconds)
        error = abs(predicted[kind.name] / measured_s - 1)
        said = f"{predicted[kind.name] * 1e3:.3g} and {measured_s * 1e3:.3g} ms"
        report.bar(f"seed at 0.56 Gbit/s, {kind.name}: off the cost model ({said})", error, "<=", WITHIN)
    nbytes = {
        kind.name: statistics.median(
            carried(trial.nbytes)[BOTH_WAYS] / results[kind.name].entry.units
            for trial in results[kind.name].trials
        )
        for kind in (AWARE, RESIDENT)
    }
    for kind, most in ((AWARE, 3500), (RESIDENT, 400)):
        report.bar(f"seed, {kind.name}: bytes a step, both ways", nbytes[kind.name], "<=", most)
    resident_ms = statistics.median(results[RESIDENT.name].seconds) * 1e3
    report.bar("seed, resident: ms a step, pipelined", resident_ms, "<=", 0.40)


def compare(report: Report, measured: Found, simulated: dict[int, dict[str, float]]) -> None:
    """What the simulator says of what was measured."""
    for tokens, by_arm in simulated.items():
        for arm, seconds in by_arm.items():
            ratio = seconds / measured.seconds[tokens][arm]
            report.row(f"seed, {measured.about}, {tokens} tokens: simulated / measured", arm, "x", [ratio])


def judge_gains(report: Report, found: Found) -> None:
    """From which size of the cache on how much of blind's time is saved, by aware and by resident."""
    for kind in (AWARE, RESIDENT):
        shares = {
            tokens: gains.saved(seconds[BLIND.name], seconds[kind.name])
            for tokens, seconds in found.seconds.items()
        }
        for tokens, share in shares.items():
            report.row(
                f"seed, {found.about}, {tokens} tokens: of blind's time saved", kind.name, "share", [share]
            )
        for share in SHARES:
            size = gains.smallest(shares, share)
            what = f"seed, {found.about}: smallest cache that saves {share:.0%}"
            if size is None:
                report.say(f"{what}, {kind.name}: none up to {max(shares)} tokens")
            else:
                report.row(what, kind.name, "tokens", [float(size)])
