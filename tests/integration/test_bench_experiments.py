"""The experiments seed, modes and scale in their smallest forms: real executors, real bytes, every check in place."""

from __future__ import annotations

from warm_python import run_program

# Forks of a process that has no threads and no session, as in the experiments.
HEAD = """
import random, torch
from remora.bench import links, contest, seed_arms, seed, seed_simulated, mode_arms, models, scale
from remora.bench.contest import BETWEEN, BOTH_WAYS, DOWN, UP, Setting, carried
from remora.bench.harness import NotAsSaid, Report
torch.set_num_threads(1)
report, rng = Report("x"), random.Random(0)
"""


def test_the_seeds_arms_carry_what_they_say_are_exact_and_are_simulated() -> None:
    """Blind moves 96 KiB a step: 83 ms at what 0.01 Gbit/s carry, and nearly nothing at 400."""
    done = run_program(
        HEAD
        + """
with links.executors(2, None, "--no-same-host", calibrate=False) as pool:
    entries = [seed_arms.local_entry(32)]
    entries += [seed_arms.entry(kind, 32, 4) for kind in (seed_arms.BLIND, seed_arms.AWARE, seed_arms.RESIDENT)]
    found = contest.contest(report, Setting("seed", "step"), entries, pool, 1, rng, clocks=True)
    seed_simulated.KINDS = seed_arms.BLIND,
    slow, fast = seed_simulated.measure(report, pool.urls, [0.01, 400.0], [32], {"blind": 4}, 0)
for name, result in found.items():
    between = {carried(trial.nbytes)[BETWEEN] // 4 // seed_arms.nbytes_of(32) for trial in result.trials}
    print(name, between, result.busy_s > 0)
measured, simulated = report.samples[:-2], report.samples[-2:]
print(len(measured), all(sample.identical for sample in measured))
print([(sample.arm, sample.how, sample.link.by, sample.link.gbit_per_s) for sample in simulated])
print(0.083 < slow.seconds[32]["blind"] < 0.14, 0 < fast.seconds[32]["blind"] < 0.06)
"""
    )
    assert done.stdout.splitlines() == [
        "local {0} False",
        "blind {1} True",
        "aware {0} True",
        "resident {0} True",
        "4 True",
        "[('blind', 'simulated', 'model', 0.01), ('blind', 'simulated', 'model', 400.0)]",
        "True True",
    ], done.stderr


def test_modes_carry_their_arithmetic_and_a_wrong_output_is_refused() -> None:
    done = run_program(
        HEAD
        + """
model, tokens = models.gpt2(2, 48, 4, 512), 3
weights = sum(weight.nbytes for weight in (*model.parameters(), *model.buffers()))
sizes = mode_arms.Sizes.of(model.config, 4, weights)
prompts = lambda number: models.prompt(9, seed=number)
ids_made = mode_arms.plain(model.to, prompts, tokens)
def measure(modes, sizes, made):
    entries = [mode_arms.entry(mode, model.to, sizes, prompts, tokens, made) for mode in modes]
    return contest.contest(report, Setting("GPT-2", "token"), entries, pool, 1, rng)
def refused(made):
    try:
        measure([mode_arms.HANDLE], sizes, made)
    except NotAsSaid as error:
        return str(error)
with links.executors(2, None, "--no-same-host", calibrate=False) as pool:
    print(*measure(mode_arms.MODES, sizes, ids_made))
    print(refused(lambda number: ids_made(number) + 1))
"""
    )
    names, output = done.stdout.splitlines()
    assert names == "naive full KV both ways delta KV handle semantic", done.stderr
    assert output == "handle: 3 of 3 outputs differ from local PyTorch's (3 came)"


def test_a_point_of_scale_with_two_clients_on_two_executors() -> None:
    done = run_program(
        HEAD
        + """
with links.executors(2, calibrate=False) as pool:
    cost = scale.measured(report, scale.Point(2, clients=2, executors=2), pool, 3, 1, rng)
    print(cost.local_ms > 0, cost.remote_ms > 0, 0 < cost.nbytes < 20_000)
print([(sample.arm, sample.executors, len(sample.seconds)) for sample in report.samples])
"""
    )
    assert done.stdout.splitlines() == [
        "True True True",
        "[('local', 0, 2), ('remote', 2, 2)]",
    ], done.stderr
