"""Small programs of many kinds, for a recording: python tests/recording/programs.py FILE.gz

Needed again when the messages of the hop change. Each compares with local PyTorch while it is recorded, so what is
recorded is right for the PyTorch that made it.
"""

from __future__ import annotations

import gzip
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

Program = Callable[[str], Any]


def generate(device: str) -> Any:
    from remora.bench import models

    torch.manual_seed(0)
    model = models.gpt2(layers=1, width=16, heads=2, vocabulary=64).to(device)
    ids = models.prompt(6, vocabulary=64).to(device)
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False)
    beams = model.generate(ids, max_new_tokens=4, num_beams=2, do_sample=False)
    with torch.no_grad():
        return [greedy, beams, model(ids).logits]


def training(device: str) -> Any:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)).to(device)
    step = torch.optim.AdamW(net.parameters(), lr=0.05)
    x, y = torch.linspace(-1, 1, 24).reshape(4, 6).to(device), torch.tensor([0, 1, 2, 1]).to(device)
    losses = []
    for _ in range(4):
        loss = nn.functional.cross_entropy(net(x), y)
        step.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        step.step()
        losses.append(loss.detach())
    return [*losses, *(p.detach() for p in net.parameters())]


def vision(device: str) -> Any:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    with torch.no_grad():
        return [net.to(device)(torch.linspace(0, 1, 300).reshape(1, 3, 10, 10).to(device))]


def recurrent(device: str) -> Any:
    torch.manual_seed(3)
    with torch.no_grad():
        out, (h, c) = nn.LSTM(4, 5).to(device)(torch.linspace(0, 1, 24).reshape(3, 2, 4).to(device))
    return [out, h, c]


def shapes(device: str) -> Any:
    x = torch.arange(24.0, device=device).reshape(2, 3, 4)
    y = x.clone()
    y[:, 1:, ::2] += 1
    y.transpose(0, 2)[0].mul_(2)
    mask = x > 7
    parts = torch.split(x, 1, dim=1)
    return [
        *(y, x[mask], torch.nonzero(mask), x[[0, 1], [2, 0]], torch.cat(parts, 2), x.topk(2).values),
        *(x.unfold(2, 2, 1), torch.einsum("abc,adc->bd", x, x), x.sort(descending=True).indices, x.cumsum(1)),
        *(
            torch.where(mask, x, -x),
            x.std(),
            x.to(torch.bfloat16),
            x.long() // 5,
            torch.unique(x.long() // 5),
        ),
    ]


PROGRAMS: tuple[Program, ...] = (generate, training, vision, recurrent, shapes)


def main() -> None:
    from executor_process import executor_process

    import remora

    torch.set_num_threads(1)
    recording = Path(tempfile.mkdtemp()) / "recording"
    os.environ["REMORA_TEST_RECORD"] = str(recording)
    with executor_process(worker=Path(__file__).with_name("recording_worker.py")) as executor:
        for program in PROGRAMS:
            local = program("cpu")
            remora.connect(executor.url)
            for here, there in zip(local, program("remora"), strict=True):
                assert torch.equal(here, there.cpu()), program.__name__
            remora.disconnect()
            print(program.__name__, len(local), file=sys.stderr)
    Path(sys.argv[1]).write_bytes(gzip.compress(recording.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
