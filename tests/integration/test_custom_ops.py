"""Custom operators: metadata from the fake kernel, the work on an executor whose operator has the module."""

from __future__ import annotations

import ctypes
import importlib
import os
import subprocess
import sys

import pytest
import torch
from executor_process import executor_process

import remora
from remora.errors import NotSupported

MODULE = """
import numpy, torch
from torch.library import custom_op

CALLS = []  # of the kernels in this process

@custom_op("remora_examples::scale", mutates_args=())
def scale(x: torch.Tensor, factor: float) -> torch.Tensor:
    CALLS.append("scale")
    return torch.from_numpy(numpy.ascontiguousarray(x.numpy() * numpy.float32(factor)))

@scale.register_fake
def _(x, factor):
    return torch.empty_like(x, memory_format=torch.contiguous_format)

scale.register_autograd(
    lambda ctx, grad: (scale(grad, ctx.factor), None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "factor", inputs[1]),
)

@custom_op("remora_examples::fill", mutates_args=("x",))
def fill(x: torch.Tensor, value: float) -> None:
    CALLS.append("fill")
    x.fill_(value)

@fill.register_fake
def _(x, value):
    return None

@custom_op("remora_examples::parts", mutates_args=())
def parts(xs: list[torch.Tensor], how: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    CALLS.append("parts")
    joined = torch.cat(xs).to(dtype)
    return (joined.sin(), joined.cos()) if how == "sin first" else (joined.cos(), joined.sin())

@parts.register_fake
def _(xs, how, dtype):
    n = sum(x.shape[0] for x in xs)
    return xs[0].new_empty(n, dtype=dtype), xs[0].new_empty(n, dtype=dtype)

@custom_op("remora_examples::without_fake", mutates_args=())
def without_fake(x: torch.Tensor) -> torch.Tensor:
    CALLS.append("without_fake")
    return x[::2].clone()

@custom_op("remora_examples::positive", mutates_args=())
def positive(x: torch.Tensor) -> torch.Tensor:
    CALLS.append("positive")
    return x[x > 0].clone()

@positive.register_fake
def _(x):
    return x.new_empty(torch.library.get_ctx().new_dynamic_size())

@custom_op("remora_examples::noise", mutates_args=())
def noise(x: torch.Tensor) -> torch.Tensor:
    CALLS.append("noise")
    return x + torch.rand(x.shape)

@noise.register_fake
def _(x):
    return torch.empty_like(x)

@custom_op("remora_examples::count", mutates_args=())
def count(x: torch.Tensor) -> torch.Tensor:
    CALLS.append("count")
    return x.sum().reshape(1)

@count.register_fake
def _(x):
    return x.new_empty(1)

library = torch.library.Library("remora_plain", "DEF")
library.define("twice(Tensor x) -> Tensor")
library.impl("twice", lambda x: x * 2, "CPU")
library.impl("twice", lambda x: torch.empty_like(x), "Meta")
"""
X = torch.linspace(-1, 1, 8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ops")
    (folder / "remora_examples.py").write_text(MODULE)
    (folder / "no_ops_in_here.py").write_text("import json\n")
    return folder


@pytest.fixture(scope="module")
def ops(folder):
    """The module, in this process."""
    sys.path.insert(0, str(folder))
    yield importlib.import_module("remora_examples")
    sys.path.remove(str(folder))


@pytest.fixture(scope="module")
def having(folder):
    """An executor that was started with the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path_with(folder))
        with executor_process("--ops", "remora_examples") as executor:
            yield executor


def path_with(folder):
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def there(having, ops):
    remora.connect(having.url)
    ops.CALLS.clear()
    yield ops
    remora.disconnect()
    assert ops.CALLS == []  # no kernel ran in this process


def here(function):
    """What the function gives on the CPU, without a trace in CALLS."""
    calls = sys.modules["remora_examples"].CALLS
    before = len(calls)
    result = function()
    del calls[before:]
    return result


def test_it_runs_on_the_executor(there):
    expected = here(lambda: there.scale(X, 3.0))
    there.scale(X.to("remora"), 2.0)  # asks once which operators the executor has
    before = remora.stats()
    out = there.scale(X.to("remora"), 3.0)
    assert out.shape == X.shape
    assert (remora.stats() - before).round_trips == 0
    assert torch.equal(out.cpu(), expected)
    assert torch.equal(torch.ops.remora_plain.twice(X.to("remora")).cpu(), X * 2)


def test_its_gradient_too(there):
    x = X.to("remora").requires_grad_()
    (there.scale(x, 3.0) * x).sum().backward()
    local = X.clone().requires_grad_()
    here(lambda: (there.scale(local, 3.0) * local).sum().backward())
    assert torch.equal(x.grad.cpu(), local.grad)


def test_it_writes_its_argument(there):
    x = X.to("remora")
    view = x[2:4]
    assert there.fill(view, 5.0) is None
    expected = X.clone()
    expected[2:4] = 5
    assert torch.equal(x.cpu(), expected)


@pytest.mark.parametrize("how", ["sin first", "cos first"])
def test_lists_words_dtypes_and_several_results(there, how):
    expected = here(lambda: there.parts([X, X + 1], how, torch.float64))
    out = there.parts([X.to("remora"), (X + 1).to("remora")], how, torch.float64)
    for got, want in zip(out, expected, strict=True):
        assert got.dtype == torch.float64
        assert torch.equal(got.cpu(), want)


@pytest.mark.parametrize("name", ["without_fake", "positive"])
def test_without_a_fake_kernel_or_with_a_size_from_data_the_executor_says_the_shape(there, name):
    expected = here(lambda: getattr(there, name)(X))
    out = getattr(there, name)(X.to("remora"))
    assert out.shape == expected.shape
    assert torch.equal(out.cpu(), expected)


def test_random_numbers_are_the_sessions(there):
    torch.manual_seed(5)
    expected = here(lambda: [there.noise(X), torch.rand(3)])
    torch.manual_seed(5)
    got = [there.noise(X.to("remora")), torch.rand(3, device="remora")]
    for a, b in zip(got, expected, strict=True):
        assert torch.equal(a.cpu(), b)


def test_integers_that_are_known_here_are_not_computed_here(there):
    assert there.count(torch.tensor([1, 2, 3]).to("remora")).item() == 6  # `there` checks CALLS


def test_under_torch_compile(there):
    run = torch.compile(lambda x: there.scale(x, 2.0) + 1, fullgraph=True)
    assert torch.equal(run(X.to("remora")).cpu(), here(lambda: there.scale(X, 2.0) + 1))


def test_an_executor_without_the_module_refuses_by_name_and_goes_on(connected, ops):
    ops.CALLS.clear()
    with pytest.raises(NotSupported, match=r"remora_examples\.scale.*remora serve --ops MODULE"):
        ops.scale(X.to("remora"), 3.0)
    assert ops.CALLS == []
    assert torch.equal((X.to("remora") + 1).cpu(), X + 1)


def test_a_pointer_is_refused(connected):
    x = X.to("remora")
    with pytest.raises(NotSupported, match=r"executor.*\.cpu\(\)"):
        ctypes.c_void_p(x.data_ptr())
    with pytest.raises(AttributeError, match="__cuda_array_interface__"):
        _ = x.__cuda_array_interface__


@pytest.mark.parametrize(
    ("module", "reason"),
    [("there_is_no_such_module", "cannot be imported"), ("no_ops_in_here", "defines no operator")],
)
def test_serve_says_which_module_is_of_no_use(folder, module, reason):
    done = subprocess.run(
        [sys.executable, "-m", "remora.cli", "serve", "--port", "0", "--device", "cpu", "--ops", module],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": path_with(folder)},
    )
    assert done.returncode == 1
    assert f"--ops {module}" in done.stderr
    assert reason in done.stderr
