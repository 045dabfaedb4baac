"""Fine-tunes a language model with low-rank adapters (LoRA), written by hand: the model itself stays frozen.

    REMORA_URL=http://gpu-box:8470 python examples/lora.py
    python examples/lora.py --model path/or/name --rank 16        # any causal model of transformers

Without --model, a tiny random Llama learns to count in a base of its own. Only the adapters have gradients and
optimizer state; at the end they alone come back and are saved.
"""

# B batch, T tokens, R rank

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import track
from torch import nn

import remora  # makes the device known


class LoRA(nn.Module):
    """A frozen linear layer plus `up(down(x))`, which is zero at the start."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.normal_(self.down.weight, std=1 / rank)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.up(self.down(x))


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    model = load(args.model)
    vocabulary = model.config.vocab_size
    adapters = adapt(model, args.rank)
    model.to(args.device).train()
    n_all = sum(parameter.numel() for parameter in model.parameters())
    n_adapters = sum(tensor.numel() for tensor in adapters.values())
    print(f"{n_adapters:,} parameters of {n_all:,} are trained ({n_adapters / n_all:.1%})")

    prompt_BT = counting(vocabulary, rows=1, length=6, seed=99)
    print("before:", continued(model, prompt_BT.to(args.device), args.device))
    losses = train(model, list(adapters.values()), args, vocabulary)
    for step in range(0, args.steps, max(1, args.steps // 8)):
        print(f"step {step:4}  loss {losses[step]:.9g}")
    print(f"last loss {losses[-1]:.9g}")
    print("after: ", continued(model, prompt_BT.to(args.device), args.device))

    if args.save:
        torch.save({name: tensor.detach().cpu() for name, tensor in adapters.items()}, args.save)
        print(f"saved {args.save.stat().st_size / 1024:.0f} KiB of adapters in {args.save}", file=sys.stderr)
    if args.device == "remora":
        print(remora.stats(), file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="remora")
    parser.add_argument("--model", help="folder or name of a causal model; without it, a tiny random Llama")
    for name, default in [("steps", 120), ("batch", 8), ("length", 24), ("rank", 8), ("seed", 1)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--save", type=Path, help="where to save the adapters")
    return parser.parse_args()


def load(name: str | None) -> nn.Module:
    if name:
        return transformers.AutoModelForCausalLM.from_pretrained(name)
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return transformers.LlamaForCausalLM(config)


def adapt(model: nn.Module, rank: int) -> dict[str, nn.Parameter]:
    """Freezes the model and puts an adapter on each linear layer; returns the adapters' parameters by name."""
    model.requires_grad_(False)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    for name, module in linear:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, LoRA(module, rank))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def counting(vocabulary: int, rows: int, length: int, seed: int) -> torch.Tensor:
    """What is to be learnt: from a random start, each token is the one before plus 7. [rows, length]"""
    start = torch.randint(vocabulary, (rows, 1), generator=torch.Generator().manual_seed(seed))
    return (start + 7 * torch.arange(length)) % vocabulary


def train(
    model: nn.Module, adapters: list[nn.Parameter], args: argparse.Namespace, vocabulary: int
) -> list[float]:
    """The loss at every step, read once at the end."""
    optimizer = torch.optim.AdamW(adapters, lr=2e-2, weight_decay=0.0)
    losses = []
    for step in track(range(args.steps), "training", console=Console(stderr=True)):
        ids_BT = counting(vocabulary, args.batch, args.length, seed=step).to(args.device)
        loss = model(input_ids=ids_BT, labels=ids_BT).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def continued(model: nn.Module, prompt_BT: torch.Tensor, device: str) -> str:
    model.eval()
    ids_BT = model.generate(prompt_BT, max_new_tokens=6, do_sample=False, pad_token_id=0)
    model.train()
    asked = prompt_BT.shape[1]
    row = ids_BT[0].tolist()
    return f"{' '.join(map(str, row[:asked]))} | {' '.join(map(str, row[asked:]))}"


if __name__ == "__main__":
    main()
