"""Layers and losses: outputs, gradients and statistics as on the CPU."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import agrees, grads, randn, trained
from torch import nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


@agrees
def test_batch_norm_keeps_statistics(device: str) -> Any:
    m = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.BatchNorm2d(6, momentum=None),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 2),
    ).to(device)
    r = []
    for _ in range(3):
        r.append(trained(m, randn(device, 4, 3, 10, 10))[0])
    m.eval()
    r.append(m(randn(device, 2, 3, 10, 10)))
    return (r, grads(m), dict(m.named_buffers()))


@agrees
def test_norms(device: str) -> Any:
    r = []
    for m, s in (
        (nn.BatchNorm1d(4), (5, 4)),
        (nn.BatchNorm1d(4, affine=False), (5, 4, 3)),
        (nn.BatchNorm3d(2), (2, 2, 3, 3, 3)),
        (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (2, 3, 4, 4)),
        (nn.GroupNorm(2, 4), (2, 4, 3)),
        (nn.LayerNorm((3, 4)), (2, 3, 4)),
        (nn.RMSNorm(4), (2, 4)),
        (nn.LocalResponseNorm(2), (2, 4, 3, 3)),
    ):
        m.to(device)
        r.append((trained(m, randn(device, *s)), dict(m.named_buffers())))
    return r


@agrees
def test_convolutions(device: str) -> Any:
    r = []
    for m, s in (
        (nn.Conv1d(3, 4, 3, dilation=2), (2, 3, 9)),
        (nn.Conv2d(4, 4, 3, groups=4, padding="same"), (2, 4, 6, 6)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 2, 3, stride=2, output_padding=1), (2, 3, 4, 4)),
        (nn.ConvTranspose1d(3, 2, 3), (2, 3, 4)),
        (nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), (2, 3, 5, 5)),
        (nn.Conv2d(3, 4, 3, padding_mode="reflect", padding=1), (2, 3, 5, 5)),
        (nn.Unfold(2), (2, 3, 4, 4)),
        (nn.Fold((4, 4), 2), (2, 12, 9)),
        (nn.PixelShuffle(2), (1, 4, 2, 2)),
        (nn.Upsample(scale_factor=2, mode="nearest"), (1, 2, 3, 3)),
        (nn.Upsample(scale_factor=2, mode="bicubic"), (1, 2, 3, 3)),
    ):
        m.to(device)
        r.append(trained(m, randn(device, *s)))
    return r


@agrees
def test_pools(device: str) -> Any:
    r = []
    for m, s in (
        (nn.MaxPool2d(2, return_indices=True), (2, 3, 6, 6)),
        (nn.AvgPool2d(3, stride=2, padding=1), (2, 3, 6, 6)),
        (nn.AdaptiveMaxPool2d(2), (2, 3, 5, 5)),
        (nn.LPPool2d(2, 2), (2, 3, 4, 4)),
        (nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
        (nn.AdaptiveAvgPool3d((2, None, 1)), (1, 2, 4, 3, 4)),
    ):
        r.append(trained(m.to(device), randn(device, *s)))
    p, u = (nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2))
    x = randn(device, 1, 2, 4, 4)
    o, i = p(x)
    u(o, i).sum().backward()
    return (r, x.grad)


@agrees
def test_activations(device: str) -> Any:
    return [
        trained(m.to(device), randn(device, 3, 4))
        for m in (
            nn.ELU(),
            nn.Hardshrink(),
            nn.Hardsigmoid(),
            nn.Hardtanh(),
            nn.Hardswish(),
            nn.LeakyReLU(),
            nn.LogSigmoid(),
            nn.PReLU(),
            nn.ReLU6(),
            nn.SELU(),
            nn.CELU(),
            nn.GELU(),
            nn.GELU("tanh"),
            nn.Sigmoid(),
            nn.SiLU(),
            nn.Mish(),
            nn.Softplus(),
            nn.Softshrink(),
            nn.Softsign(),
            nn.Tanh(),
            nn.Tanhshrink(),
            nn.Threshold(0.1, 2),
            nn.GLU(),
            nn.Softmin(1),
            nn.Softmax(1),
            nn.LogSoftmax(1),
        )
    ]


@agrees
def test_losses(device: str) -> Any:
    x, y = (randn(device, 4, 5), randn(device, 4, 5, grad=False))
    t = torch.randint(0, 5, (4,)).to(device)
    o = torch.sign(torch.randn(4)).to(device)
    p = torch.rand(4, 5).to(device)
    found = [
        nn.L1Loss()(x, y),
        nn.MSELoss()(x, y),
        nn.CrossEntropyLoss(label_smoothing=0.1, weight=torch.rand(5).to(device))(x, t),
        nn.CrossEntropyLoss()(x, p),
        nn.CrossEntropyLoss(ignore_index=1)(x, t),
        nn.NLLLoss()(x.log_softmax(1), t),
        nn.PoissonNLLLoss()(x, p),
        nn.GaussianNLLLoss()(x, y, p + 1),
        nn.KLDivLoss(reduction="batchmean")(x.log_softmax(1), p.softmax(1)),
        nn.BCELoss()(x.sigmoid(), p),
        nn.BCEWithLogitsLoss(pos_weight=torch.rand(5).to(device))(x, p),
        nn.HingeEmbeddingLoss()(x, torch.sign(y)),
        nn.MultiLabelMarginLoss()(x, torch.randint(0, 5, (4, 5)).to(device)),
        nn.HuberLoss()(x, y),
        nn.SmoothL1Loss()(x, y),
        nn.SoftMarginLoss()(x, torch.sign(y)),
        nn.MultiLabelSoftMarginLoss()(x, (p > 0.5).float()),
        nn.CosineEmbeddingLoss()(x, y, o),
        nn.MultiMarginLoss()(x, t),
        nn.TripletMarginLoss()(x, y, p),
        nn.MarginRankingLoss()(x[:, 0], y[:, 0], o),
        nn.TripletMarginWithDistanceLoss()(x, y, p),
    ]
    sum(found).backward()
    return (found, x.grad)


@agrees
def test_ctc_of_tensors(device: str) -> Any:
    r = []
    for tl in ("cpu", device):
        x = randn(device, 10, 3, 6)
        lp = x.log_softmax(2)
        t = torch.randint(1, 6, (3, 4)).to(device)
        il = torch.tensor([10, 9, 8]).to(tl)
        ol = torch.tensor([4, 3, 2]).to(tl)
        loss = F.ctc_loss(lp, t, il, ol)
        loss.backward()
        r += [loss, x.grad]
    return r


@agrees
def test_ctc_of_numbers(device: str) -> Any:
    x = randn(device, 10, 3, 6)
    loss = F.ctc_loss(
        x.log_softmax(2), torch.randint(1, 6, (9,)).to(device), (10, 9, 8), (4, 3, 2), zero_infinity=True
    )
    loss.backward()
    return (loss, x.grad)


@agrees
def test_embeddings(device: str) -> Any:
    i = torch.randint(0, 10, (3, 4)).to(device)
    r = []
    for kw in ({}, {"padding_idx": 2}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}):
        m = nn.Embedding(10, 4, **kw).to(device)
        m(i).pow(2).sum().backward()
        r += [m.weight.grad, m.weight]
    for mode in ("sum", "mean", "max"):
        m = nn.EmbeddingBag(10, 4, mode=mode).to(device)
        o = m(i)
        o.pow(2).sum().backward()
        r += [o, m.weight.grad]
    m = nn.EmbeddingBag(10, 4, mode="sum", include_last_offset=True).to(device)
    o = m(i.flatten(), torch.tensor([0, 5, 12]).to(device), per_sample_weights=torch.rand(12).to(device))
    o.sum().backward()
    r += [o, m.weight.grad]
    r.append(F.one_hot(i, 10))
    return r


@agrees
def test_attention(device: str) -> Any:
    r = []
    for kw in ({}, {"batch_first": True, "kdim": 6, "vdim": 5}, {"add_bias_kv": True, "add_zero_attn": True}):
        m = nn.MultiheadAttention(8, 2, **kw).to(device)
        q = randn(device, 3, 4, 8)
        k = randn(device, 3, 4, kw.get("kdim", 8))
        v = randn(device, 3, 4, kw.get("vdim", 8))
        o, w = m(q, k, v)
        (o.sum() + w.pow(2).sum()).backward()
        r += [o, w, q.grad, grads(m)]
        o2, _ = m(q, k, v, need_weights=False)
        r.append(o2)
        o3, _ = m(
            q,
            k,
            v,
            key_padding_mask=torch.zeros(
                3 if kw.get("batch_first") else 4, 4 if kw.get("batch_first") else 3, dtype=torch.bool
            ).to(device),
        )
        r.append(o3)
        m.eval()
        with torch.no_grad():
            r.append(m(q, k, v))
    return r


@agrees
def test_transformer_encoder(device: str) -> Any:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    m = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).to(device)
    x = randn(device, 2, 5, 8)
    r = [trained(m, x)]
    mask = nn.Transformer.generate_square_subsequent_mask(5).to(device)
    r.append(m(x, mask=mask, is_causal=True))
    m.eval()
    with torch.no_grad():
        r.append(m(x))
    with torch.inference_mode():
        r.append(m(x).clone())
    with torch.no_grad():
        r.append(
            m(
                x,
                src_key_padding_mask=torch.tensor([[0, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool).to(
                    device
                ),
            )
        )
    return r


@agrees
def test_checkpointed_layers(device: str) -> Any:
    m = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)]).to(device)
    x = randn(device, 2, 4)
    h = x
    for layer in m:
        h = checkpoint(layer, h, use_reentrant=False).relu()
    h.sum().backward()
    return (h, x.grad, grads(m))


@agrees
def test_bilinear(device: str) -> Any:
    return trained(nn.Bilinear(3, 4, 5).to(device), randn(device, 2, 3), randn(device, 2, 4))


def test_nested_tensors_of_an_encoder_are_refused_by_name(connected: ModuleType) -> None:
    encoder = (
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1).to("remora").eval()
    )
    padding = torch.tensor([[False, True]]).to("remora")
    with torch.no_grad(), pytest.raises(NotImplementedError, match="enable_nested_tensor=False"):
        encoder(torch.randn(1, 2, 8).to("remora"), src_key_padding_mask=padding)


def test_ctc_blocks_never(connected: ModuleType) -> None:
    scores = torch.randn(10, 3, 6).to("remora").log_softmax(2).requires_grad_()
    targets = torch.randint(1, 6, (3, 4)).to("remora")
    before = connected.stats()
    F.ctc_loss(scores, targets, torch.tensor([10, 9, 8]), torch.tensor([4, 3, 2])).backward()
    assert (connected.stats() - before).round_trips == 0


def test_data_parallel_over_the_one_executor(connected: ModuleType) -> None:
    local = nn.Linear(3, 2)
    remote = copy.deepcopy(local).to("remora")
    parallel = nn.DataParallel(remote)
    if not parallel.device_ids:
        pytest.skip("remora is not the accelerator of this program")
    inputs = torch.randn(4, 3)
    for given in (inputs, inputs.to("remora")):
        assert torch.equal(parallel(given).detach().cpu(), local(inputs).detach())
    parallel(inputs).sum().backward()
    local(inputs).sum().backward()
    assert torch.equal(remote.weight.grad.cpu(), local.weight.grad)
    parallel.device_ids = [0, 1]
    with pytest.raises(NotImplementedError, match="a session has one"):
        parallel(inputs)
