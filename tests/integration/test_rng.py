"""Random numbers on the device: those that the executor's own PyTorch would draw."""

from __future__ import annotations

import copy
import gc
import io
from collections.abc import Callable
from inspect import signature
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.nn import functional

Draw = Callable[[str, Any], torch.Tensor]


def _ones(device: str, *shape: int) -> torch.Tensor:
    return torch.ones(shape, device=device)


DRAWS: dict[str, Draw] = {
    "rand": lambda d, g: torch.rand(5, device=d, generator=g),
    "randn": lambda d, g: torch.randn(2, 3, device=d, generator=g),
    "randint": lambda d, g: torch.randint(-3, 90, (5,), device=d, generator=g),
    "randint high": lambda d, g: torch.randint(90, (5,), device=d, generator=g),
    "randperm": lambda d, g: torch.randperm(7, device=d, generator=g),
    "normal": lambda d, g: torch.normal(_ones(d, 4), _ones(d, 4), generator=g),
    "normal mean": lambda d, g: torch.normal(2.0, _ones(d, 4), generator=g),
    "normal std": lambda d, g: torch.normal(_ones(d, 4), 0.5, generator=g),
    "normal size": lambda d, g: torch.normal(1.0, 0.5, (4,), device=d, generator=g),
    "normal_": lambda d, g: _ones(d, 20).normal_(generator=g),
    "uniform_": lambda d, g: _ones(d, 5).uniform_(-1, 1, generator=g),
    "exponential_": lambda d, g: _ones(d, 5).exponential_(generator=g),
    "geometric_": lambda d, g: _ones(d, 5).geometric_(0.3, generator=g),
    "cauchy_": lambda d, g: _ones(d, 5).cauchy_(generator=g),
    "log_normal_": lambda d, g: _ones(d, 5).log_normal_(generator=g),
    "random_": lambda d, g: _ones(d, 5).random_(3, 50, generator=g),
    "bernoulli": lambda d, g: torch.bernoulli(_ones(d, 9) / 3, generator=g),
    "bernoulli p": lambda d, g: torch.bernoulli(_ones(d, 9), 0.4, generator=g),
    "bernoulli_": lambda d, g: _ones(d, 9).bernoulli_(0.4, generator=g),
    "multinomial": lambda d, g: torch.multinomial(_ones(d, 9), 4, generator=g),
    "multinomial again": lambda d, g: torch.multinomial(_ones(d, 3), 9, replacement=True, generator=g),
    "poisson": lambda d, g: torch.poisson(_ones(d, 9) * 3, generator=g),
    "binomial": lambda d, g: torch.binomial(_ones(d, 5) * 9, _ones(d, 5) / 2, generator=g),
    "trunc_normal_": lambda d, g: torch.nn.init.trunc_normal_(_ones(d, 5), generator=g),
    "kaiming_uniform_": lambda d, g: torch.nn.init.kaiming_uniform_(_ones(d, 3, 3), generator=g),
    "orthogonal_": lambda d, g: torch.nn.init.orthogonal_(_ones(d, 3, 3), generator=g),
}
DEFAULT_DRAWS: dict[str, Callable[[str], torch.Tensor]] = {
    "rand_like": lambda d: torch.rand_like(_ones(d, 5)),
    "randn_like": lambda d: torch.randn_like(_ones(d, 5)),
    "randint_like": lambda d: torch.randint_like(_ones(d, 5), 9),
    "dropout": lambda d: functional.dropout(torch.arange(99.0, device=d), 0.123),
    "dropout in place": lambda d: functional.dropout(torch.arange(99.0, device=d), 0.3, inplace=True),
    "dropout of nothing": lambda d: functional.dropout(torch.arange(9.0, device=d), 0.0),
    "dropout of all": lambda d: functional.dropout(torch.arange(9.0, device=d), 1.0),
    "dropout half": lambda d: functional.dropout(torch.arange(99.0, device=d).bfloat16(), 0.3),
    "dropout2d": lambda d: functional.dropout2d(_ones(d, 2, 5, 2, 2), 0.4),
    "alpha_dropout": lambda d: functional.alpha_dropout(_ones(d, 50), 0.4, training=True),
    "feature_alpha_dropout": lambda d: functional.feature_alpha_dropout(
        _ones(d, 9, 5, 2), 0.4, training=True
    ),
    "rrelu": lambda d: functional.rrelu(-_ones(d, 9), training=True),
    "gumbel_softmax": lambda d: functional.gumbel_softmax(_ones(d, 2, 5)),
    "attention": lambda d: functional.scaled_dot_product_attention(
        *[_ones(d, 1, 2, 4, 8)] * 3, dropout_p=0.3
    ),
    "gamma": lambda d: torch.distributions.Gamma(_ones(d, 3), _ones(d, 3)).sample(),
    "dirichlet": lambda d: torch.distributions.Dirichlet(_ones(d, 3)).sample(),
    "categorical": lambda d: torch.distributions.Categorical(_ones(d, 4)).sample((6,)),
}


def _same(remote: torch.Tensor, local: torch.Tensor) -> None:
    assert remote.device.type == "remora"
    assert remote.dtype == local.dtype
    assert torch.equal(remote.cpu(), local)


def test_every_op_draws_from_its_generator_what_the_cpu_would(connected: ModuleType) -> None:
    ours, theirs = torch.Generator("remora").manual_seed(11), torch.Generator().manual_seed(11)
    for draw in DRAWS.values():
        for _ in range(2):
            _same(draw("remora", ours), draw("cpu", theirs))
    assert torch.equal(ours.get_state(), theirs.get_state())


def test_without_a_generator_the_default_one_draws(connected: ModuleType) -> None:
    torch.manual_seed(5)
    remote = [draw("remora", None) for draw in DRAWS.values()] + [
        draw("remora") for draw in DEFAULT_DRAWS.values()
    ]
    after = torch.remora.get_rng_state()
    torch.manual_seed(5)
    local = [draw("cpu", None) for draw in DRAWS.values()] + [draw("cpu") for draw in DEFAULT_DRAWS.values()]
    for one, other in zip(remote, local, strict=True):
        _same(one, other)
    assert torch.equal(after, torch.get_rng_state())


def test_the_gradient_of_dropout_is_the_cpus(connected: ModuleType) -> None:
    def gradient(device: str) -> torch.Tensor:
        torch.manual_seed(1)
        x = torch.arange(50.0, device=device, requires_grad=True)
        (functional.dropout(x, 0.123) ** 2).sum().backward()
        assert x.grad is not None
        return x.grad

    _same(gradient("remora"), gradient("cpu"))


def test_a_draw_waits_for_nothing_and_repeats_its_template(connected: ModuleType) -> None:
    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run
    torch.remora.synchronize()
    before = connected.stats()
    for seed in range(5):
        drawn = torch.randn(3, device="remora", generator=torch.Generator("remora").manual_seed(seed))
    spent = connected.stats() - before
    assert (spent.round_trips, spent.templates) == (0, 1)
    assert torch.equal(drawn.cpu(), torch.randn(3, generator=torch.Generator().manual_seed(4)))


def test_generators_do_not_disturb_each_other(connected: ModuleType) -> None:
    one, other = torch.Generator("remora"), torch.Generator("remora")
    assert one.initial_seed() == torch.Generator().initial_seed()
    torch.manual_seed(0)
    expected = torch.randn(4)
    torch.manual_seed(0)
    firsts = [torch.rand(2, device="remora", generator=g).tolist() for g in (one, other)]
    assert firsts[0] == firsts[1]
    _same(torch.randn(4, device="remora"), expected)


def test_numbers_of_dead_generators_serve_again(
    connected: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from remora.device import rng

    gc.collect()
    monkeypatch.setattr(rng, "MAX_GENERATORS", rng._n_numbers + 1)
    rng._free_numbers.clear()
    for seed in range(4):
        generator = torch.Generator("remora").manual_seed(seed)
        expected = torch.rand(2, generator=torch.Generator().manual_seed(seed))
        _same(torch.rand(2, device="remora", generator=generator), expected)
        del generator
    kept = torch.Generator("remora")
    with pytest.raises(NotImplementedError, match="generators of the remora device at a time"):
        torch.Generator("remora")
    assert kept.device == torch.device("remora", 0)


def test_a_state_stays_on_the_executor_until_it_is_read(connected: ModuleType) -> None:
    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run
    torch.manual_seed(3)
    before = connected.stats()
    state = torch.remora.get_rng_state()
    first = torch.randn(3, device="remora")
    torch.remora.set_rng_state(state)
    second = torch.randn(3, device="remora")
    assert (connected.stats() - before).round_trips == 0
    assert torch.equal(first.cpu(), second.cpu())
    torch.manual_seed(3)
    assert (state.dtype, state.device.type, state.tolist()) == (
        torch.uint8,
        "cpu",
        torch.get_rng_state().tolist(),
    )
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torch.remora.set_rng_state(torch.load(file))
    _same(torch.randn(3, device="remora"), second.cpu())
    torch.remora.set_rng_state(torch.Generator().manual_seed(8).get_state())
    assert torch.remora.initial_seed() == 8


def test_a_changed_state_counts_as_changed(connected: ModuleType) -> None:
    torch.manual_seed(3)
    state = torch.remora.get_rng_state()
    state.copy_(torch.Generator().manual_seed(4).get_state())
    torch.remora.set_rng_state(state)
    _same(torch.rand(2, device="remora"), torch.rand(2, generator=torch.Generator().manual_seed(4)))


def test_copies_of_a_generator_go_on_alike(connected: ModuleType) -> None:
    generator = torch.Generator("remora").manual_seed(6)
    torch.rand(3, device="remora", generator=generator)
    copies = [generator.clone_state(), copy.deepcopy(generator)]
    expected = torch.rand(3, device="remora", generator=generator).tolist()
    for other in copies:
        assert other.initial_seed() == 6
        assert torch.rand(3, device="remora", generator=other).tolist() == expected


@pytest.mark.parametrize(
    ("wrong", "error", "says"),
    [
        (lambda: torch.remora.set_rng_state(torch.zeros(7, dtype=torch.uint8)), RuntimeError, "wrong size"),
        (
            lambda: torch.remora.set_rng_state(torch.full_like(torch.get_rng_state(), 255)),
            RuntimeError,
            "Invalid",
        ),
        (lambda: torch.remora.set_rng_state(torch.zeros(16)), TypeError, "ByteTensor"),
        (lambda: torch.default_generator.set_state(torch.remora.get_rng_state()), TypeError, "ByteTensor"),
        (lambda: torch.rand(2, device="remora", generator=torch.Generator()), RuntimeError, "found 'cpu'"),
        (lambda: torch.Generator("remora:1"), RuntimeError, "does not exist"),
        (lambda: torch.Generator("remora").manual_seed(1 << 64), ValueError, "verflow"),
        (lambda: torch.Generator("remora").get_offset(), NotImplementedError, "offset"),
    ],
)
def test_what_is_wrong_is_said_at_once(
    connected: ModuleType, wrong: Callable[[], Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        wrong()
    assert torch.rand(2, device="remora").shape == (2,)


@pytest.mark.parametrize("device_type", ["remora", None])
def test_fork_rng_leaves_no_trace_and_does_not_wait(connected: ModuleType, device_type: str | None) -> None:
    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run
    torch.manual_seed(2)
    if device_type is None and torch.accelerator.current_accelerator() != torch.device("remora"):
        pytest.skip("the accelerator of this process is another one")
    if device_type is None and signature(torch.random.fork_rng).parameters["device_type"].default:
        pytest.skip("this PyTorch forks CUDA's generators unless told otherwise")
    before = connected.stats()
    with torch.random.fork_rng(device_type=device_type) if device_type else torch.random.fork_rng():
        torch.manual_seed(99)
        inside = torch.rand(3, device="remora")
    outside = torch.rand(3, device="remora")
    assert (connected.stats() - before).round_trips == 0
    _same(inside, torch.rand(3, generator=torch.Generator().manual_seed(99)))
    _same(outside, torch.rand(3, generator=torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing_draws_again_and_does_not_wait(connected: ModuleType, use_reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    torch.ones(1, device="remora")  # a process's first op may ask what the executor can run

    def step(device: str, saves: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.3)) for _ in range(3)]
        for layer in layers:
            layer.to(device)
        torch.manual_seed(1)
        before = connected.stats()
        x = torch.ones(4, 8, device=device, requires_grad=True)
        out = x
        for layer in layers:
            out = checkpoint(layer, out, use_reentrant=use_reentrant) if saves else layer(out)
        (out * torch.rand(4, 8, device=device)).sum().backward()
        assert (connected.stats() - before).round_trips == 0
        return [
            out.detach(),
            x.grad,
            *[layer[0].weight.grad for layer in layers],
            torch.rand(3, device=device),
        ]

    expected = step("cpu", True)
    for remote, local, plain in zip(step("remora", True), expected, step("remora", False), strict=True):
        _same(remote, local)
        assert torch.equal(plain.cpu(), local)


def test_inference_mode_and_no_grad_draw_alike(connected: ModuleType) -> None:
    generator, local = torch.Generator("remora").manual_seed(1), torch.Generator().manual_seed(1)
    with torch.inference_mode():
        _same(torch.randn(3, device="remora", generator=generator), torch.randn(3, generator=local))
        state = generator.get_state()
    with torch.no_grad():
        _same(
            _ones("remora", 5).bernoulli_(0.4, generator=generator),
            _ones("cpu", 5).bernoulli_(0.4, generator=local),
        )
    generator.set_state(state)
    with torch.inference_mode():
        torch.manual_seed(4)
        _same(torch.rand(3, device="remora"), torch.rand(3, generator=torch.Generator().manual_seed(4)))


def test_default_dtype_is_that_of_the_draw(connected: ModuleType) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        generator = torch.Generator("remora").manual_seed(1)
        _same(
            torch.randn(3, device="remora", generator=generator),
            torch.randn(3, generator=torch.Generator().manual_seed(1)),
        )
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_seed_from_before_the_session_holds_and_a_state_ends_with_it(executor: Any) -> None:
    import remora

    torch.manual_seed(1)
    torch.remora.manual_seed(21)
    generator = torch.Generator("remora").manual_seed(22)
    remora.connect(executor.url)
    try:
        _same(torch.rand(2, device="remora"), torch.rand(2, generator=torch.Generator().manual_seed(21)))
        _same(
            torch.rand(2, device="remora", generator=generator),
            torch.rand(2, generator=torch.Generator().manual_seed(22)),
        )
        state = torch.remora.get_rng_state()
    finally:
        remora.disconnect()
    remora.connect(executor.url)
    try:
        _same(torch.rand(2, device="remora"), torch.rand(2, generator=torch.Generator().manual_seed(21)))
        with pytest.raises(remora.errors.Disconnected, match="manual_seed"):
            torch.rand(2, device="remora", generator=generator)
        with pytest.raises(remora.errors.Disconnected):
            torch.remora.set_rng_state(state)
        generator.manual_seed(1)
        assert torch.rand(2, device="remora", generator=generator).shape == (2,)
    finally:
        remora.disconnect()


def test_pytorchs_own_generators_are_as_they_were() -> None:
    generator = torch.Generator(device="cpu")
    assert type(generator) is type(torch.default_generator)
    assert isinstance(generator, torch.Generator)
    assert not isinstance(1, torch.Generator)
    assert torch.equal(copy.deepcopy(generator).get_state(), generator.get_state())
