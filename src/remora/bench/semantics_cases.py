"""Programs whose tensors' meanings are known: real architectures, tiny, and others that only look alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from remora.bench.semantics_truth import NONE, UNKNOWN, Truth
from remora.bench.zoo_models import ids, pixels
from remora.bench.zoo_specimens import specimens
from remora.ir.annotated import Modality, Phase

DEVICE = "remora"
TEXT, VISION, AUDIO, SPARSE = Modality.TEXT, Modality.VISION, Modality.AUDIO, Modality.SPARSE
NEW_TOKENS = 6


@dataclass(frozen=True)
class Case:
    """A program. negative: nothing in it is a cache, or nothing is what it looks like."""

    name: str
    run: Callable[[Truth], None]
    group: str
    strip_paths: bool = False


def moved(model: torch.nn.Module, truth: Truth, parts: dict[str, Any]) -> Any:
    """The model on the device, with hooks for layers and, by the path of a module, for modality."""
    model = model.to(DEVICE)
    truth.weights(model)
    truth.layers(model)
    for path, modality in parts.items():
        truth.hook(model.get_submodule(path), "modality", modality)
    return model


def _specimen(name: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    found = specimens()[name]
    model = type(found)(found.name, found.model, {**found.config, **changes}, found.inputs).build()
    inputs = {key: item for key, item in found.inputs().items() if key not in ("labels", "return_loss")}
    return model, inputs


def generated(name: str, parts: dict[str, Any], **options: Any) -> Callable[[Truth], None]:
    """`generate` of a specimen; the phase is that of the number of the call, encoders apart."""

    def run(truth: Truth) -> None:
        model, inputs = _specimen(name)
        padded = options.get("padded", False)
        if not padded and "attention_mask" in inputs:
            inputs = {"input_ids": ids()}
        if padded:  # on the left, as for generation
            inputs = {key: item.flip(1) for key, item in inputs.items()}
        model = moved(model, truth, parts)
        decoder = (
            model.get_decoder()
            if hasattr(model, "get_decoder") and model.config.is_encoder_decoder
            else model
        )
        calls = [0]

        def phase() -> Phase:
            calls[0] += 1
            return Phase.PREFILL if calls[0] == 1 else Phase.DECODE

        caches: list[Any] = []

        def before(module: Any, args: Any, kwargs: Any) -> None:
            caches.append(_caches(kwargs))
            truth.cache(caches[-1])

        def after(module: Any, args: Any, kwargs: Any, result: Any) -> None:
            truth.cache(_caches(kwargs))
            truth.cache(_caches(dict(result)))

        truth.hook(decoder, "phase", phase)
        model.register_forward_pre_hook(before, with_kwargs=True)
        model.register_forward_hook(after, with_kwargs=True)
        if model.config.is_encoder_decoder:
            truth.hook(model.get_encoder(), "phase", Phase.FORWARD)
        there = {key: item.to(DEVICE) for key, item in inputs.items()}
        truth.inputs(there)
        rest = {key: item for key, item in options.items() if key != "padded"}
        model.generate(**there, max_new_tokens=NEW_TOKENS, do_sample=False, **rest).cpu()
        truth.cache(caches)  # as the last step left them

    return run


def _caches(mapping: Any) -> list[Any]:
    return [mapping.get(name) for name in ("past_key_values", "cache_params")]


def forward(name: str, parts: dict[str, Any], **changes: Any) -> Callable[[Truth], None]:
    """Two forward passes of a specimen."""

    def run(truth: Truth) -> None:
        model, inputs = _specimen(name, **changes)
        _forward(truth, moved(model, truth, parts), [inputs, inputs])

    return run


def _forward(truth: Truth, model: Any, batches: list[dict[str, Any]]) -> None:
    truth.hook(model, "phase", Phase.FORWARD)
    with torch.no_grad():
        for inputs in batches:
            there = {key: item.to(DEVICE) for key, item in inputs.items()}
            truth.inputs(there)
            result = model(**there)
            first = result if isinstance(result, torch.Tensor) else next(iter(result.values()))
            first.cpu()


def trained(
    make: Callable[[], torch.nn.Module],
    batch: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    optimizer: Callable[[Any], torch.optim.Optimizer],
    steps: int = 3,
) -> Callable[[Truth], None]:
    """A training loop; the loss is fetched in each step."""

    def run(truth: Truth) -> None:
        torch.manual_seed(0)
        model = moved(make(), truth, {}).train()
        truth.statistics(model)
        truth.hook(model, "phase", Phase.FORWARD)
        optim = optimizer(model.parameters())
        inputs, labels = (item.to(DEVICE) for item in batch())
        truth.inputs([inputs, labels])
        for _ in range(steps):
            loss = torch.nn.functional.cross_entropy(model(inputs).flatten(0, -2), labels.flatten())
            optim.zero_grad()
            with truth.during("phase", Phase.BACKWARD):
                loss.backward()
            with truth.during("phase", NONE):
                optim.step()
            truth.optimizer(optim)
            loss.item()

    return run


class Logits(torch.nn.Module):
    """A transformers model as one that gives logits alone."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, use_cache=False).logits  # type: ignore[no-any-return]


def decoder() -> torch.nn.Module:
    return Logits(specimens()["llama"].build())


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    return ids(2, 9), ids(2, 9)


class Classifier(torch.nn.Module):
    """Convolutions with running statistics, then a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3)
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(8, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(images))).mean((2, 3)))  # type: ignore[no-any-return]


def labelled_pixels() -> tuple[torch.Tensor, torch.Tensor]:
    return pixels(8, 4), torch.tensor([0, 1, 2, 3])


def perceptron() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))


def points() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(2)), torch.arange(8) % 4


class Recommender(torch.nn.Module):
    """As DLRM: tables of categories and dense features, multiplied with each other, then an MLP.

    B batch, K tables, D width. bags: each table gives the sum of several rows; else one row.
    """

    def __init__(self, bags: bool, n_tables: int = 4, width: int = 8) -> None:
        super().__init__()
        table = torch.nn.EmbeddingBag if bags else torch.nn.Embedding
        self.tables = torch.nn.ModuleList(table(50, width) for _ in range(n_tables))
        self.bottom = torch.nn.Sequential(torch.nn.Linear(5, 16), torch.nn.ReLU(), torch.nn.Linear(16, width))
        n = n_tables + 1
        self.top = torch.nn.Sequential(
            torch.nn.Linear(n * n + width, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1)
        )

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> dict[str, torch.Tensor]:
        features = [self.bottom(dense), *(table(sparse[k]) for k, table in enumerate(self.tables))]
        stacked = torch.stack(features, 1)
        crossed = torch.bmm(stacked, stacked.transpose(1, 2))
        return {"logits": self.top(torch.cat([features[0], crossed.flatten(1)], 1))}


def recommended(bags: bool) -> Callable[[Truth], None]:
    def run(truth: Truth) -> None:
        torch.manual_seed(0)
        parts = {**{f"tables.{k}": SPARSE for k in range(4)}, "bottom": NONE, "top": SPARSE}
        model = moved(Recommender(bags), truth, parts)
        shape = (4, 3, 2) if bags else (4, 3)
        batch = {"dense": torch.randn(3, 5), "sparse": torch.randint(0, 50, shape)}
        _forward(truth, model, [batch, batch])

    return run


# -- what only looks like something else


def joined_without_attention(truth: Truth) -> None:
    """An MLP over a history that grows by `cat`, as a cache does, and that no attention reads."""
    torch.manual_seed(0)
    model = moved(perceptron(), truth, {"": NONE})
    truth.hook(model, "phase", Phase.FORWARD)
    with torch.no_grad():
        history = torch.zeros(1, 2, 6, device=DEVICE)
        for _ in range(4):
            history = torch.cat([history, torch.ones(1, 1, 6, device=DEVICE)], dim=1)
            model(history).sum().item()


def running_mean(truth: Truth) -> None:
    """A mean over batches that is kept by hand, in place, beside a model."""
    torch.manual_seed(0)
    model = moved(perceptron(), truth, {"": NONE})
    truth.hook(model, "phase", Phase.FORWARD)
    mean = torch.zeros(4, device=DEVICE)
    with torch.no_grad():
        for _ in range(3):
            found = model(torch.ones(8, 6).to(DEVICE))
            mean.mul_(0.9).add_(found.mean(0), alpha=0.1)
            (found - mean).sum().item()


class PlainAttention(torch.nn.Module):
    """Attention over its own input, no cache."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = torch.nn.Linear(16, 48)
        self.out = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in self.proj(x).chunk(3, -1))
        found = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.out(found.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def attention_without_cache(truth: Truth) -> None:
    """A token is joined to the inputs in each step, and all keys are computed anew."""
    torch.manual_seed(0)
    model = moved(PlainAttention(), truth, {"": NONE})
    truth.hook(model, "phase", Phase.FORWARD)
    with torch.no_grad():
        x = torch.zeros(1, 3, 16, device=DEVICE)
        for _ in range(3):
            x = torch.cat([x, model(x)[:, -1:]], dim=1)
            x.sum().item()


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def _adam_per_tensor(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2, foreach=False)


def _adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2)


def _sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2)


def _momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9, weight_decay=1e-3)


WHOLE = {"": TEXT}
SEQ = {"model.encoder": TEXT, "model.decoder": TEXT}
WHISPER = {
    "model.encoder": AUDIO,
    "model.decoder": TEXT,
    **{f"model.decoder.layers.{n}.encoder_attn": UNKNOWN for n in range(2)},  # where both meet
}
# Architectures that nobody looked at while the recognisers were written.
OTHER_DECODERS = (
    *("gpt_neo", "gpt_neox", "gptj", "opt", "bloom", "mpt", "falcon", "gemma2", "phi3", "qwen3", "stablelm"),
    *("starcoder2", "cohere2", "glm", "mixtral", "qwen3_moe", "gpt_oss", "biogpt"),
)
OTHER_PAIRS: dict[str, dict[str, Any]] = {
    "mt5": {"encoder": TEXT, "decoder": TEXT},
    "pegasus": SEQ,
    "m2m_100": SEQ,
    "marian": SEQ,
}
OTHER_ENCODERS: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("roberta", "distilbert", "electra", "deberta_v2", "modernbert", "mpnet"), WHOLE),
    **{name: {"": VISION} for name in ("deit", "beit", "dinov2", "swin", "convnext")},
    **{name: {"": AUDIO} for name in ("hubert", "wavlm", "audio_spectrogram_transformer")},
    "siglip": {"text_model": TEXT, "vision_model": VISION},
}
CASES = (
    Case("gpt2", generated("gpt2", WHOLE), "decoder"),
    Case("llama", generated("llama", WHOLE), "decoder"),
    Case("mistral sliding", generated("mistral", WHOLE), "decoder"),
    Case("qwen2", generated("qwen2", WHOLE), "decoder"),
    Case("llama static", generated("llama", WHOLE, cache_implementation="static"), "static cache"),
    Case("gpt2 static", generated("gpt2", WHOLE, cache_implementation="static"), "static cache"),
    Case("mistral static", generated("mistral", WHOLE, cache_implementation="static"), "static cache"),
    Case("gpt2 beams", generated("gpt2", WHOLE, num_beams=2), "beams"),
    Case("llama beams", generated("llama", WHOLE, num_beams=2), "beams"),
    Case("gpt2 padded", generated("gpt2", WHOLE, padded=True), "padded"),
    Case("llama padded", generated("llama", WHOLE, padded=True), "padded"),
    Case("t5", generated("t5", {"encoder": TEXT, "decoder": TEXT}), "encoder-decoder"),
    Case("bart", generated("bart", SEQ), "encoder-decoder"),
    Case("bart beams", generated("bart", SEQ, num_beams=2), "encoder-decoder"),
    Case("whisper", generated("whisper", WHISPER), "speech"),
    Case("wav2vec2", forward("wav2vec2", {"": AUDIO}), "speech"),
    Case("vit", forward("vit", {"": VISION}), "vision"),
    Case("resnet", forward("resnet", {"": VISION}), "vision"),
    Case("bert", forward("bert", WHOLE), "encoder"),
    Case(
        "clip",
        forward("clip", {"text_model": TEXT, "vision_model": VISION}),
        "two-tower",
    ),
    Case("dlrm bags", recommended(True), "sparse"),
    Case("dlrm tables", recommended(False), "sparse"),
    Case("mamba", generated("mamba", WHOLE), "state space"),
    Case("mamba2", generated("mamba2", WHOLE), "state space"),
    Case("mlp adam", trained(perceptron, points, _adam), "training"),
    Case("mlp adam one by one", trained(perceptron, points, _adam_per_tensor), "training"),
    Case("mlp sgd", trained(perceptron, points, _sgd), "training"),
    Case("llama adamw", trained(decoder, tokens, _adamw), "training"),
    Case("convolutions momentum", trained(Classifier, labelled_pixels, _momentum), "training"),
    Case("cat without attention", joined_without_attention, "negative"),
    Case("running mean", running_mean, "negative"),
    Case("attention without cache", attention_without_cache, "negative"),
    *(Case(f"other: {name}", generated(name, WHOLE), "others") for name in OTHER_DECODERS),
    *(Case(f"other: {name}", generated(name, parts), "others") for name, parts in OTHER_PAIRS.items()),
    *(Case(f"other: {name}", forward(name, parts), "others") for name, parts in OTHER_ENCODERS.items()),
    Case("llama without paths", generated("llama", WHOLE), "without paths", strip_paths=True),
)
