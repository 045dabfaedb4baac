"""Trains a GPT on the characters of Python's own licence, then lets it write.

    REMORA_URL=http://gpu-box:8470 python examples/char_gpt.py
    python examples/char_gpt.py --device cpu           # the same losses and the same text, on this machine

Without REMORA_URL an executor starts on this machine. The loop never waits for the executor, except where the loss
is shown: `remora run --lint examples/char_gpt.py` lists those lines.
"""

# B batch, T tokens, C channels, H heads, V vocabulary

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import remora  # makes the device known


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    text = licence()
    characters = sorted(set(text))
    ids = torch.tensor([characters.index(character) for character in text])
    model = GPT(len(characters), args.layers, args.width, args.heads, args.context).to(args.device)
    print(f"{len(text):,} characters, {len(characters)} different; {n_parameters(model):,} parameters")

    losses = train(model, ids.to(args.device), args)
    for step in range(0, args.steps, args.show_every):  # nine digits tell one float32 from the next
        print(f"step {step:5}  loss {losses[step]:.9g}")
    print(f"last loss {losses[-1]:.9g}")

    torch.manual_seed(args.seed)  # the device draws from here on, and has a generator of its own
    start = torch.tensor([[characters.index(character) for character in "This "]])
    written = write(model, start.to(args.device), args.write, args.context)
    print("".join(characters[i] for i in written[0].tolist()))
    if args.device == "remora":
        print(f"{remora.stats()}", file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="remora")
    for name, default in [
        ("steps", 1000),
        ("batch", 16),
        ("context", 64),
        ("layers", 3),
        ("width", 96),
        ("heads", 4),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--write", type=int, default=300, help="characters to write at the end")
    parser.add_argument("--show-every", type=int, default=25, help="steps between two looks at the loss")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def licence() -> str:
    """The text that `license()` shows; where a build lacks it, the language reference that `help()` shows."""
    for folder in (Path(sysconfig.get_path("stdlib")), Path(sys.base_prefix)):
        for name in ("LICENSE.txt", "LICENSE"):
            if (folder / name).is_file():
                return (folder / name).read_text(encoding="utf-8")
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        B, T, C = x_BTC.shape
        qkv = self.qkv(self.before_attention(x_BTC)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C)
        x_BTC = x_BTC + self.out(mixed)
        return x_BTC + self.mlp(self.before_mlp(x_BTC))


class GPT(nn.Module):
    def __init__(self, vocabulary: int, layers: int, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)
        self.head.weight = self.token.weight  # tied: one tensor, here and on the executor

    def forward(self, ids_BT: torch.Tensor) -> torch.Tensor:
        position = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        x_BTC = self.token(ids_BT) + self.position(position)
        return self.head(self.norm(self.blocks(x_BTC)))


def n_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def train(model: GPT, ids: torch.Tensor, args: argparse.Namespace) -> list[float]:
    """The loss at every step. The text is on the device; only the places to read at travel."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    window = torch.arange(args.context + 1, device=ids.device)
    losses: list[torch.Tensor] = []
    with progress() as bar:
        task = bar.add_task("training", total=args.steps, loss="")
        for step in range(args.steps):
            at = torch.randint(len(ids) - args.context, (args.batch, 1)).to(ids.device)
            chunk_BT = ids[at + window]
            logits_BTV = model(chunk_BT[:, :-1])
            loss = cross_entropy(logits_BTV.flatten(0, 1), chunk_BT[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
            shown = f"loss {loss.item():.3f}" if step % args.show_every == 0 else None
            bar.update(task, advance=1, **({"loss": shown} if shown else {}))
    return torch.stack(losses).tolist()


def progress() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    return Progress(*columns, TextColumn("{task.fields[loss]}"), console=Console(stderr=True))


@torch.no_grad()
def write(model: GPT, ids_BT: torch.Tensor, n: int, context: int) -> torch.Tensor:
    """Draws `n` more characters. Nothing is read before the end, so nothing waits."""
    model.eval()
    for _ in range(n):
        logits_BV = model(ids_BT[:, -context:])[:, -1]
        drawn_B1 = torch.multinomial(torch.softmax(logits_BV / 0.7, dim=-1), 1)
        ids_BT = torch.cat([ids_BT, drawn_B1], dim=1)
    return ids_BT


if __name__ == "__main__":
    main()
