"""A client and an executor of different PyTorch versions: equal results, or an error at the call that names the op.

One executor has exactly the ops of PyTorch 2.11, as read there; one lacks ops, and has others in another form, of
every class.
"""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from executor_process import executor_process

import remora
from remora.bench import models
from remora.errors import UnsupportedOp

WORKER = Path(__file__).with_name("older_worker.py")
REAL = Path(__file__).parents[1] / "data" / "torch-2.11-against-2.13.json"
MISSING = [
    *("aten.gelu.default", "aten.sin_.default", "aten.flip.default", "aten.bernoulli.default"),
    *("aten.hann_window.default", "aten.nonzero.default", "aten.topk.default", "aten.expm1.out"),
    *(
        "aten.unfold.default",
        "aten.rms_norm.default",
        "aten._foreach_add.Scalar",
        "aten._foreach_mul_.Scalar",
    ),
    "aten.cosine_similarity.default",
]
SCHEMAS = {
    # an argument less; in another order; another default; a return less; an argument more
    "aten.softplus.default": "aten::softplus(Tensor self, Scalar beta=1) -> Tensor",
    "aten.hardtanh.default": "aten::hardtanh(Tensor self, Scalar max_val=1, Scalar min_val=-1) -> Tensor",
    "aten.leaky_relu.default": "aten::leaky_relu(Tensor self, Scalar negative_slope=0.5) -> Tensor",
    "aten.aminmax.default": "aten::aminmax(Tensor self, *, int? dim=None, bool keepdim=False) -> Tensor",
    "aten.tril.default": "aten::tril(Tensor self, int diagonal, int offset) -> Tensor",
}


@pytest.fixture(scope="module")
def real():
    with executor(REAL) as process:
        yield process


@pytest.fixture(scope="module")
def invented(tmp_path_factory):
    path = tmp_path_factory.mktemp("older") / "ops.json"
    path.write_text(json.dumps({"torch": "2.5.0", "missing": MISSING, "schemas": SCHEMAS}))
    with executor(path) as process:
        yield process


@contextmanager
def executor(path: Path):
    os.environ["REMORA_TEST_OLDER"] = str(path)
    with executor_process("--memory", "1GiB", worker=WORKER) as process:
        yield process


@pytest.fixture
def older(invented):
    remora.connect(invented.url)
    yield
    remora.disconnect()


def test_generate_and_training_on_the_ops_of_2_11(real):
    model = models.gpt2(layers=2, width=16, heads=2, vocabulary=64)
    ids = models.prompt(6, vocabulary=64)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    losses = []
    remora.connect(real.url)
    try:
        assert remora.session.connect.current().grant.torch == "2.11.0"
        for device in ("cpu", "remora"):
            net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 1))
            net.load_state_dict({n: torch.full_like(v, 0.1) for n, v in net.state_dict().items()})
            net.to(device)
            step = torch.optim.AdamW(net.parameters(), lr=0.1)
            for _ in range(3):
                loss = net(torch.ones(2, 4, device=device)).square().sum()
                step.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                step.step()
                losses.append(loss.item())
        assert losses[:3] == losses[3:]
        assert torch.equal(model.to("remora").generate(ids.to("remora"), max_new_tokens=8).cpu(), expected)
    finally:
        remora.disconnect()


@pytest.mark.parametrize("placement", ["blind", "split"])
def test_a_pool_of_both_runs_the_ops_that_both_have(real, placement):
    model = models.gpt2(layers=2, width=16, heads=2, vocabulary=64)
    ids = models.prompt(6, vocabulary=64)
    expected = model.generate(ids, max_new_tokens=8, do_sample=False)
    with executor_process("--memory", "1GiB") as newer:
        remora.connect([newer.url, real.url], placement=placement)
        try:
            tokens = model.to("remora").generate(ids.to("remora"), max_new_tokens=8, do_sample=False)
            assert torch.equal(tokens.cpu(), expected)
            assert remora.stats().peer_bytes > 0
            if hasattr(torch.ops.aten, "_foreach_clone"):  # which 2.11 lacks
                x = torch.arange(3.0, device="remora")
                assert torch.ops.aten._foreach_clone.default([x])[0].tolist() == [0, 1, 2]
        finally:
            remora.disconnect()


@pytest.mark.skipif(not hasattr(torch.ops.aten, "_foreach_clone"), reason="this PyTorch is the older one")
def test_what_2_11_lacks(real):
    remora.connect(real.url)
    try:
        x = torch.arange(4.0, device="remora").reshape(2, 2)
        copies = torch.ops.aten._foreach_clone.default([x, x + 1])
        assert [c.tolist() for c in copies] == [[[0, 1], [2, 3]], [[1, 2], [3, 4]]]
        assert torch.ops.aten._foreach_mm.default([x], [x])[0].tolist() == [[2, 3], [6, 11]]
        image = torch.ones(1, 1, 4, 4, device="remora")
        with pytest.raises(UnsupportedOp, match=r"aten\._upsample_lanczos2d_aa\.default.*torch 2\.11\.0"):
            torch.ops.aten._upsample_lanczos2d_aa.default(image, [2, 2], False)
        key = torch.zeros(2, dtype=torch.uint64, device="remora")
        with pytest.raises(UnsupportedOp, match=r"aten\._philox_uniform\.default"):
            torch.ops.aten._philox_uniform.default(x, key)
        assert (x + 1).sum().item() == 10
    finally:
        remora.disconnect()


X = torch.tensor([[0.5, -1.25], [2.0, 0.75]])


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("aten.gelu.default", torch.nn.functional.gelu),
        ("aten.sin_.default", lambda x: x.clone().sin_()),
        ("aten.flip.default", lambda x: x.flip(0)),
        ("aten.bernoulli.default", lambda x: torch.bernoulli(x.clamp(0, 1))),
        ("aten.hann_window.default", lambda x: torch.hann_window(4, device=x.device)),
        ("aten.nonzero.default", torch.nonzero),
        ("aten.topk.default", lambda x: x.topk(1)),
        ("aten.expm1.out", lambda x: torch.expm1(x, out=torch.empty_like(x))),
        ("aten.unfold.default", lambda x: x.unfold(0, 2, 1)),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
def test_a_missing_op_is_named_at_the_call_and_the_session_goes_on(older, name, call):
    x = X.to("remora")
    before = x * 2
    with pytest.raises(NotImplementedError, match=rf"{name}: .*does not have it.*torch 2\.5\.0"):
        call(x)
    assert torch.equal((before + x).cpu(), X * 2 + X)


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.nn.functional.rms_norm(x, (2,)),
        lambda x: torch.nn.functional.cosine_similarity(x, x + 1),
        lambda x: torch._foreach_add([x, x * 2], 1)[1],
    ],
    ids=["rms_norm", "cosine_similarity", "foreach"],
)
def test_a_missing_op_of_parts_is_made_of_its_parts(older, call, grad):
    with torch.set_grad_enabled(grad):
        there, here = X.to("remora").requires_grad_(grad), X.clone().requires_grad_(grad)
        assert torch.equal(call(there).detach().cpu(), call(here).detach())
        if grad:
            call(there).sum().backward()
            call(here).sum().backward()
            assert torch.equal(there.grad.cpu(), here.grad)


def test_a_missing_in_place_loop(older):
    there = [X.to("remora"), X.to("remora") + 1]
    assert torch._foreach_mul_(there, 3) is not None
    assert torch.equal(there[1].cpu(), (X + 1) * 3)


def test_arguments_go_by_name_and_defaults_stay_out(older):
    x, f = X.to("remora"), torch.nn.functional
    assert torch.equal(f.softplus(x).cpu(), f.softplus(X))
    assert torch.equal(f.softplus(x, beta=2).cpu(), f.softplus(X, beta=2))
    assert torch.equal(f.softplus(x, 1, 20).cpu(), f.softplus(X))
    assert torch.equal(f.hardtanh(x, -0.5, 0.7).cpu(), X.clamp(-0.5, 0.7))
    assert torch.equal(f.hardtanh(x, -0.25, 0.7).cpu(), X.clamp(-0.25, 0.7))
    assert torch.equal(f.leaky_relu(x).cpu(), f.leaky_relu(X))
    assert torch.equal(f.leaky_relu(x, 0.5).cpu(), f.leaky_relu(X, 0.5))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda x: torch.nn.functional.softplus(x, 1, 5), r"aten\.softplus.*takes no argument 'threshold'"),
        (torch.aminmax, r"aten\.aminmax\.default: there it returns something else"),
        (torch.tril, r"aten\.tril\.default: there it needs an argument 'offset'"),
    ],
    ids=["argument", "returns", "needs"],
)
def test_a_form_that_does_not_fit_is_named_at_the_call(older, call, says):
    x = X.to("remora")
    with pytest.raises(UnsupportedOp, match=says):
        call(x)
    assert torch.equal((x + 1).cpu(), X + 1)


def test_the_tables_are_asked_for_once_and_kept_on_disk(invented, tmp_path, monkeypatch):
    monkeypatch.setenv("REMORA_CACHE", str(tmp_path))
    blocked = []
    for _ in range(2):
        remora.connect(invented.url)
        at_connect = remora.stats().round_trips
        torch.nn.functional.softplus(X.to("remora"))
        blocked.append((at_connect, remora.stats().round_trips - at_connect))
        remora.disconnect()
    assert blocked == [(1, 1), (0, 0)]  # digests, then schemas
