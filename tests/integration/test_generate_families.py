"""Modes of `generate` for every family of models, against the same on the local CPU: tokens, scores, caches."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers

from remora.bench.zoo_check import compare, tensors
from remora.bench.zoo_specimens import specimens


class OddOnly(transformers.LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        even = torch.zeros_like(scores, dtype=torch.bool)
        even[:, ::2] = True
        return scores.masked_fill(even, -torch.inf)


class AfterSevens(transformers.StoppingCriteria):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **options: Any) -> torch.Tensor:
        return input_ids[:, -1] % 7 == 0


MODES: dict[str, dict[str, Any]] = {
    "sampled": {"do_sample": True, "top_k": 20, "temperature": 0.9},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "without cache": {"use_cache": False},
    "scores": {"output_scores": True, "output_logits": True, "return_dict_in_generate": True},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    "a processor and a criterion of one's own": {
        "logits_processor": transformers.LogitsProcessorList([OddOnly()]),
        "stopping_criteria": transformers.StoppingCriteriaList([AfterSevens()]),
    },
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"assistant": True},
}
ONE_AT_A_TIME = {"prompt lookup", "assisted"}
# what transformers itself refuses, or does by the name of the device: mixtures decode otherwise on "cpu"
NOT = {
    ("mamba", "prompt lookup"),
    ("mamba", "assisted"),
    ("mixtral", "scores"),
}
FAMILIES = ("t5", "mixtral", "mamba", "llava")


def _generate(model: Any, assistant: Any, name: str, mode: str, device: str) -> Any:
    inputs = {key: item.to(device) for key, item in specimens()[name].inputs().items() if key != "labels"}
    options = dict(MODES[mode])
    if mode in ONE_AT_A_TIME:
        inputs = {key: item[:1] for key, item in inputs.items()}
    if options.pop("assistant", False):
        options["assistant_model"] = assistant
    torch.manual_seed(5)
    return model.generate(**inputs, **{"max_new_tokens": 6, "do_sample": False, **options})


@pytest.mark.filterwarnings("ignore")  # of transformers, about options
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_mode_gives_what_it_gives_on_the_cpu(connected: ModuleType, name: str, mode: str) -> None:
    if (name, mode) in NOT:
        pytest.skip("transformers refuses it, or does it otherwise by the device's name")
    here = [specimens()[name].build(seed) for seed in (0, 1)]
    there = [copy.deepcopy(model).to("remora") for model in here]
    expected = _generate(*here, name, mode, "cpu")
    got = _generate(*there, name, mode, "remora")
    compare(dict(tensors(expected)), dict(tensors(got)), "remora")
