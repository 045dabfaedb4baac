"""Ops of PyTorch's own test database against the CPU: those that were hard, and others in each run.

`remora bench compat` compares all of them. COMPAT_SEED=n repeats a run.
"""

from __future__ import annotations

import os
import random
import time
import warnings

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of PyTorch's test code
    from torch.testing._internal.common_methods_invocations import op_db

from remora.bench.compat_compare import check, full_name

# which forbids every other test to set PyTorch's flags
torch.backends.disable_global_flags.__globals__["__allow_nonbracketed_mutation_flag"] = True

OPS = {full_name(op): op for op in op_db}
RANDOM_OPS_S = 10.0  # as many as fit into it

# Each for a reason of its own: views in place, `out=`, layouts, lists, data-dependent shapes, random numbers,
# composites with kernels of their own, conjugates, segments, PyTorch's Python operators.
HARD = (
    *(
        "t",
        "squeeze",
        "unsqueeze",
        "transpose",
        "as_strided",
        "resize_",
        "resize_as_",
        "add",
        "matmul",
        "cat",
    ),
    *("masked_select", "nonzero", "argwhere", "unique", "index_put", "histogramdd", "tensor_split", "stft"),
    *("linalg.eig", "linalg.svdvals", "linalg.matrix_rank", "linalg.cholesky", "linalg.lstsq", "fft.hfft"),
    *("nn.functional.silu", "nn.functional.interpolate.bilinear", "nn.functional.max_unpool2d"),
    *("nn.functional.scaled_dot_product_attention", "nn.functional.dropout", "native_batch_norm"),
    *("nn.functional.linear_cross_entropy.chunked", "_segment_reduce.offsets", "empty_strided", "sgn", "to"),
)
# As in docs/compatibility.md, each with its reason.
FAIL = {"sparse.sampled_addmm", "sparse.mm.reduce", "to_sparse", "ormqr", "masked.prod"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in HARD if name in OPS])
def test_an_op_that_was_hard_is_as_on_the_cpu(connected, name):
    verdict = check(OPS[name], samples=2)
    assert verdict.compared
    assert not verdict.failures, verdict.failures[0]


@pytest.mark.filterwarnings("ignore")
def test_random_ops_are_as_on_the_cpu(connected, record_property):
    seed = int(os.environ.get("COMPAT_SEED") or random.SystemRandom().randrange(10**9))
    record_property("COMPAT_SEED", seed)
    names = sorted(OPS)
    random.Random(seed).shuffle(names)
    until = time.monotonic() + RANDOM_OPS_S
    wrong = {}
    for name in names:
        if time.monotonic() > until:
            break
        if name not in FAIL and (failures := check(OPS[name], samples=1).failures):
            wrong[name] = failures[0]
    assert not wrong


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(FAIL & {"to_sparse", "masked.prod"}))
def test_what_is_known_to_fail_still_does(connected, name):
    """Else docs/compatibility.md says too little."""
    assert check(OPS[name]).failures
