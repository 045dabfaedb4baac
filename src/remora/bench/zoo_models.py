"""The zoo: tiny models of many architectures, with random weights made from a seed. No download.

A specimen is a class of transformers, the options of its configuration and one batch of inputs. Here is what they
share; zoo_text.py and zoo_sense.py have the specimens, zoo_specimens.py knows which of them are there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 96
PAD, START, END = 0, 1, 2
Inputs = dict[str, Any]


@dataclass(frozen=True)
class Specimen:
    """One architecture.

    model: the class in transformers. config: options of its configuration class.
    inputs: makes one batch, labels included where the model has a loss of its own.
    generates: options of `generate`; None: it has none.
    """

    name: str
    model: str
    config: dict[str, Any]
    inputs: Callable[[], Inputs]
    generates: dict[str, Any] | None = None

    def build(self, seed: int = 0) -> Any:
        """The model in eval mode, on the CPU. The same weights each time."""
        import transformers

        model_type = getattr(transformers, self.model)
        state = torch.get_rng_state()
        try:
            torch.manual_seed(seed)
            return model_type(model_type.config_class(**self.config)).eval()
        finally:
            torch.set_rng_state(state)


# -- inputs. B batch, T tokens, S samples, C channels, H height, W width


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def ids(batch: int = 2, tokens: int = 9) -> torch.Tensor:
    """Token ids [B, T], none of them special."""
    return torch.randint(END + 1, VOCABULARY, (batch, tokens), generator=_generator())


def text() -> Inputs:
    """Two sentences, the second one shorter."""
    batch = ids()
    mask = torch.ones_like(batch)
    mask[1, 6:] = 0
    return {"input_ids": batch, "attention_mask": mask}


def labelled_text() -> Inputs:
    """Text whose labels are its own tokens, padding left out."""
    inputs = text()
    return {**inputs, "labels": inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)}


def unpadded_text() -> Inputs:
    batch = ids()
    return {"input_ids": batch, "labels": batch}


def pairs() -> Inputs:
    """Text and its translation."""
    return {**text(), "labels": ids(2, 5)}


def pixels(side: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, side, side, generator=_generator())


def images() -> Inputs:
    return {"pixel_values": pixels(), "labels": torch.tensor([0, 1])}


def wave(samples: int = 800) -> Inputs:
    """Sound [B, S] with a transcript."""
    return {"input_values": torch.randn(2, samples, generator=_generator()), "labels": ids(2, 3)}


def spectrum() -> Inputs:
    """A log-mel spectrogram with a transcript."""
    return {"input_features": torch.randn(2, 16, 60, generator=_generator()), "labels": ids(2, 5)}


# -- configurations

TOKENS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
SPREAD = {"initializer_range": 0.2}  # wide, so that greedy tokens differ from each other
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    **TOKENS,
    **SPREAD,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
HEADED = {**GROUPED, "head_dim": 8}
SEQ2SEQ = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
    "init_std": 0.2,
    "decoder_start_token_id": START,
    "forced_eos_token_id": None,
    "encoder_layerdrop": 0.0,  # it draws on the CPU, from the generator that dropout draws from only there
    "decoder_layerdrop": 0.0,
    **TOKENS,
}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": PAD,
    **TOKENS,
}
VISION = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
SPEECH = {
    **TEXT,
    "conv_dim": (16, 16),
    "conv_stride": (4, 4),
    "conv_kernel": (8, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_length": 2,
    "layerdrop": 0.0,  # it draws on the CPU, from the generator that dropout draws from only there
}
