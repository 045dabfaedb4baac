"""Everything that does not decode: images, two towers, sparse tables, training, and the earlier work's own toy."""

# B batch, T tokens, W width, C channels, K items

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional

from remora.bench import networks
from remora.bench.workloads.workload import Build, Outputs, Running, Workload, integers, normal, seeded


def _forward(model: nn.Module, *inputs: torch.Tensor) -> Build:
    """One forward a step, with all of what it returns."""
    model.eval()

    def build(device: str) -> Running:
        placed, given = model.to(device), [tensor.to(device) for tensor in inputs]

        @torch.no_grad()
        def step() -> Outputs:
            output = placed(*given)
            outputs = output if isinstance(output, tuple) else (output,)
            return [tensor.cpu() for tensor in outputs]

        return Running(step)

    return build


def _resnet(quick: bool) -> Build:
    with seeded():
        return _forward(networks.ResNet18(), normal(1 if quick else 2, 3, 224, 224, seed=1))


class Patches(nn.Module):
    """A vision transformer [Dosovitskiy et al. 2020]: [B, 3, 224, 224] to [B, classes]."""

    def __init__(self, layers: int, width: int = 192, heads: int = 3, classes: int = 1000) -> None:
        super().__init__()
        self.cut = nn.Conv2d(3, width, 16, stride=16)
        self.places = nn.Parameter(torch.randn(1, 197, width) * 0.02)
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        x_BTW = self.cut(images_BCHW).flatten(2).transpose(1, 2)
        x_BTW = torch.cat([self.first.expand(len(x_BTW), -1, -1), x_BTW], 1) + self.places
        classes: torch.Tensor = self.head(self.blocks(x_BTW)[:, 0])
        return classes


def _vit(quick: bool) -> Build:
    with seeded():
        return _forward(Patches(2 if quick else 6), normal(1 if quick else 4, 3, 224, 224, seed=1))


def _t5(quick: bool) -> Build:
    """`generate` of an encoder-decoder: encoded once, cross-attention caches kept."""
    import transformers

    layers = 2 if quick else 4
    config = transformers.T5Config(
        d_model=256,
        d_kv=32,
        num_heads=8,
        d_ff=1024,
        num_layers=layers,
        vocab_size=4096,
        decoder_start_token_id=0,
    )
    with seeded():
        model = transformers.T5ForConditionalGeneration(config).eval()
    model.lm_head.weight = nn.Parameter(
        normal(4096, 256, seed=2)
    )  # a tied random one repeats what it is given
    model.generation_config.eos_token_id = None  # all of the tokens, whatever they are
    ids_BT = integers(4096, 2, 48, seed=1)
    tokens = 4 if quick else 12

    def build(device: str) -> Running:
        placed, source_BT = model.to(device), ids_BT.to(device)

        def step() -> Outputs:
            return [placed.generate(source_BT, max_new_tokens=tokens, do_sample=False).cpu()]

        return Running(step)

    return build


class TwoTowers(nn.Module):
    """Text against items: [B, T] ids and [K, F] features to the scores of the best 10 items of each, and which."""

    def __init__(self, layers: int, width: int = 192, features: int = 512) -> None:
        super().__init__()
        self.tokens = nn.Embedding(8192, width)
        layer = nn.TransformerEncoderLayer(width, 6, 4 * width, dropout=0.0, batch_first=True)
        self.text = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.item = nn.Sequential(
            nn.Linear(features, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, width)
        )

    def forward(self, ids_BT: torch.Tensor, items_KF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        text_BW = functional.normalize(self.text(self.tokens(ids_BT)).mean(1), dim=-1)
        items_KW = functional.normalize(self.item(items_KF), dim=-1)
        best = (text_BW @ items_KW.T).topk(10)
        return best.values, best.indices


def _two_towers(quick: bool) -> Build:
    with seeded():
        model = TwoTowers(2 if quick else 4)
    return _forward(model, integers(8192, 8, 32, seed=1), normal(200 if quick else 1000, 512, seed=2))


class Dlrm(nn.Module):
    """Sparse and dense features to a click probability [Naumov et al. 2019]: [B, 13], [B, tables] to [B]."""

    def __init__(self, tables: int, rows: int, width: int = 32) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for _ in range(tables))
        self.bottom = nn.Sequential(nn.Linear(13, 256), nn.ReLU(), nn.Linear(256, width), nn.ReLU())
        pairs = (tables + 1) * tables // 2
        self.top = nn.Sequential(nn.Linear(width + pairs, 256), nn.ReLU(), nn.Linear(256, 1))
        self.register_buffer("below", torch.tril_indices(tables + 1, tables + 1, -1))

    def forward(self, dense_BF: torch.Tensor, ids_BN: torch.Tensor) -> torch.Tensor:
        bottom_BW = self.bottom(dense_BF)
        looked_up = [table(ids_BN[:, n : n + 1]) for n, table in enumerate(self.tables)]
        features_BNW = torch.stack([bottom_BW, *looked_up], 1)
        products_BNN = features_BNW @ features_BNW.transpose(1, 2)
        crossed_BP = products_BNN[:, self.below[0], self.below[1]]
        clicks: torch.Tensor = torch.sigmoid(self.top(torch.cat([bottom_BW, crossed_BP], 1)).squeeze(1))
        return clicks


def _dlrm(quick: bool) -> Build:
    """Fresh features from the client for each batch, as they come in production."""
    rows, batch, batches = (10_000, 64, 3) if quick else (100_000, 256, 20)
    with seeded():
        model = Dlrm(8, rows).eval()
    dense_NBF, ids_NBF = normal(batches, batch, 13, seed=1), integers(rows, batches, batch, 8, seed=2)

    def build(device: str) -> Running:
        placed = model.to(device)

        @torch.no_grad()
        def step() -> Outputs:
            features = zip(dense_NBF, ids_NBF, strict=True)
            return [placed(dense.to(device), ids.to(device)).cpu() for dense, ids in features]

        return Running(step)

    return build


def _training(quick: bool) -> Build:
    """MLP + Adam; the losses are read at the end of the step's ten updates."""
    updates = 3 if quick else 10
    with seeded():
        made = networks.mlp()
    images, kinds = normal(64, 784, seed=1), integers(10, 64, seed=2)

    def build(device: str) -> Running:
        model = copy.deepcopy(made).to(device)  # it changes
        inputs, labels = images.to(device), kinds.to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

        def step() -> Outputs:
            losses = []
            for _ in range(updates):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
            return [torch.stack(losses).cpu()]

        return Running(step)

    return build


class Seed(nn.Module):
    """The workload of the earlier prototypes: one cache [1, 128, 768] as keys and values, unscaled softmax, an MLP."""

    def __init__(self, hidden: int = 768) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))

    def forward(self, token_B1W: torch.Tensor, cache_BTW: torch.Tensor) -> torch.Tensor:
        weights_B1T = torch.softmax(token_B1W @ cache_BTW.transpose(1, 2), -1)
        following_B1W: torch.Tensor = self.mlp(weights_B1T @ cache_BTW)
        return following_B1W


def _seed(quick: bool) -> Build:
    with seeded():
        model = Seed().eval()
    cache_BTW, first_B1W = normal(1, 128, 768, seed=1), normal(1, 1, 768, seed=2)

    def build(device: str) -> Running:
        placed, cache = model.to(device), cache_BTW.to(device)

        @torch.no_grad()
        def step() -> Outputs:
            token, made = first_B1W.to(device), []
            for _ in range(SEED_STEPS):
                token = placed(token, cache)
                made.append(token.cpu())
            return made

        return Running(step)

    return build


SEED_STEPS = 10
WORKLOADS = (
    Workload("seed", "one layer over a fixed cache, 10 steps", _seed, "step", SEED_STEPS, SEED_STEPS),
    Workload("resnet", "ResNet-18 forward, 2 images", _resnet, "batch"),
    Workload("vit", "a vision transformer, 4 images", _vit, "batch"),
    Workload(
        "t5-generate", "encoder-decoder generate", _t5, "token", 12, 4, wins="phases: cross-attention stays"
    ),
    Workload("two-tower", "text against items, best 10", _two_towers, "batch"),
    Workload("dlrm", "8 tables of 100,000 rows, batches of 256", _dlrm, "batch", 20, 3),
    Workload("mlp-adam", "MLP with Adam", _training, "update", 10, 3),
)
