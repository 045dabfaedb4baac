"""Trains a small ResNet to tell drawn shapes apart, then classifies images that it has not seen.

    REMORA_URL=http://gpu-box:8470 python examples/images.py
    python examples/images.py --device cpu

The images are drawn by a DataLoader on this machine, and travel as bytes (uint8); what makes floats of them, and all
else, runs on the executor.
"""

# B batch, C channels, H height, W width, K classes

from __future__ import annotations

import argparse
import sys

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

import remora  # makes the device known

CLASSES = ("disc", "square", "cross", "ring")


class Shapes(Dataset):
    """Image `i` is always the same: a shape of random place, size and colour on noise. uint8 [3, H, W], class."""

    def __init__(self, n: int, size: int, seed: int) -> None:
        self.n, self.size, self.seed = n, size, seed
        self.y_HW, self.x_HW = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        random = torch.Generator().manual_seed(self.seed * 1_000_003 + i)
        kind = i % len(CLASSES)
        radius = self.size * (0.2 + 0.15 * torch.rand((), generator=random))
        y, x = (radius + (self.size - 2 * radius) * torch.rand(2, generator=random)).unbind()
        dy_HW, dx_HW = (self.y_HW - y).abs(), (self.x_HW - x).abs()
        far_HW = torch.hypot(dy_HW, dx_HW)
        inside_HW = (
            far_HW < radius,
            torch.maximum(dy_HW, dx_HW) < 0.85 * radius,
            (torch.minimum(dy_HW, dx_HW) < 0.3 * radius) & (torch.maximum(dy_HW, dx_HW) < radius),
            (far_HW < radius) & (far_HW > 0.6 * radius),
        )[kind]
        colour = 0.4 + 0.6 * torch.rand(3, 1, 1, generator=random)
        noise = 0.4 * torch.rand(3, self.size, self.size, generator=random)
        return (torch.where(inside_HW, colour, noise) * 255).to(torch.uint8), kind


class Residual(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
        )
        self.skip = nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x_BCHW) + self.skip(x_BCHW))


class ResNet(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.stages = nn.Sequential(Residual(width, width, 2), Residual(width, 2 * width, 2))
        self.head = nn.Linear(2 * width, len(CLASSES))

    def forward(self, bytes_BCHW: torch.Tensor) -> torch.Tensor:
        x_BCHW = self.stages(self.stem(bytes_BCHW.float() / 255 - 0.5))
        return self.head(x_BCHW.mean(dim=(2, 3)))


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    model = ResNet(args.width).to(args.device)
    losses = train(model, args)
    for step in range(0, len(losses), max(1, len(losses) // 8)):
        print(f"step {step:4}  loss {losses[step]:.9g}")
    print(f"last loss {losses[-1]:.9g}")

    kinds_B, found_B, sure_B = classify(model, args)
    print(f"{(kinds_B == found_B).sum()} of {len(kinds_B)} new images right")
    for kind, found, sure in list(zip(kinds_B.tolist(), found_B.tolist(), sure_B.tolist(), strict=True))[:4]:
        print(f"  a {CLASSES[kind]}: {CLASSES[found]} ({sure:.9g})")
    if args.device == "remora":
        print(remora.stats(), file=sys.stderr)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="remora")
    for name, default in [
        ("images", 2000),
        ("size", 32),
        ("batch", 32),
        ("width", 16),
        ("workers", 0),
        ("seed", 1),
    ]:
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def train(model: nn.Module, args: argparse.Namespace) -> list[float]:
    """One pass over the images; the loss at every step, read once at the end."""
    data = Shapes(args.images, args.size, seed=1)
    loader = DataLoader(data, args.batch, shuffle=True, num_workers=args.workers, drop_last=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for images_BCHW, kinds_B in track(loader, "training", console=Console(stderr=True)):
        loss = cross_entropy(model(images_BCHW.to(args.device)), kinds_B.to(args.device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).tolist()


@torch.no_grad()
def classify(model: nn.Module, args: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of new images: what they are, what the model says, and how sure it is. [B] each"""
    model.eval()
    loader = DataLoader(Shapes(2 * args.batch, args.size, seed=2), args.batch, num_workers=args.workers)
    kinds, probabilities = [], []
    for images_BCHW, kinds_B in loader:
        kinds.append(kinds_B)
        probabilities.append(torch.softmax(model(images_BCHW.to(args.device)), dim=1))
    sure_B, found_B = torch.cat(probabilities).cpu().max(dim=1)
    return torch.cat(kinds), found_B, sure_B


if __name__ == "__main__":
    main()
