"""300 random programs, other ones in each run: all that they make is bit for bit what the CPU makes.

RANDOM_PROGRAMS_SEED=n repeats a run.
"""

from __future__ import annotations

import os
import random

import torch
from random_programs import Program, run_line

PROGRAMS = 300


def test_random_programs_are_equal_to_the_cpu(connected, record_property):
    seed = int(os.environ.get("RANDOM_PROGRAMS_SEED") or random.SystemRandom().randrange(10**9))
    record_property("RANDOM_PROGRAMS_SEED", seed)
    for n in range(PROGRAMS):
        check(Program(seed * 1000 + n))


def check(program: Program) -> None:
    env = program.environment("remora")
    torch.manual_seed(program.seed % 2**31)
    last = ""
    try:
        for number, last in enumerate(program.lines):
            if program.raises is not None and number == len(program.lines) - 1:
                raised = None
                try:
                    run_line(last, env)
                except Exception as error:
                    raised = error
                assert raised is not None, f"the CPU raises {program.raises.__name__}, remora does not"
            else:
                run_line(last, env)
        for last, expected in program.tensors().items():
            if last == "loss" and program.raises is not None:
                continue
            same(expected, env[last])
            if is_leaf(expected) and expected.grad is not None:
                same(expected.grad, env[last].grad)
    except Exception as error:
        text = "\n".join(program.lines)
        raise AssertionError(
            f"at {last}: {type(error).__name__}: {error}\ntorch.manual_seed({program.seed % 2**31})\n{text}"
        ) from error


def is_leaf(tensor: torch.Tensor) -> bool:
    try:
        return tensor.is_leaf
    except RuntimeError:  # a view whose base was written where autograd did not look
        return False


def same(expected: torch.Tensor, found: torch.Tensor) -> None:
    assert found.device.type == "remora"
    facts = [
        (t.dtype, t.shape, t.requires_grad and t.dtype.is_floating_point, t.is_conj(), t.is_neg())
        for t in (expected, found)
    ]
    assert facts[1] == facts[0], f"{facts[1]} and not {facts[0]}"
    if expected.numel():
        strides = [
            [s for n, s in zip(t.shape, t.stride(), strict=True) if n > 1] + [t.storage_offset()]
            for t in (expected, found)
        ]
        assert strides[1] == strides[0], f"strides and offset {strides[1]} and not {strides[0]}"
    a, b = (t.detach().cpu().resolve_conj().resolve_neg().contiguous() for t in (expected, found))
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    equal = (a == b) | ((a != a) & (b != b))
    if a.is_floating_point():
        equal &= (a.signbit() == b.signbit()) | (a != a)
    assert equal.all(), f"{b} and not {a}"
