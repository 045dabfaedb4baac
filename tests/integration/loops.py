"""Random loops as source, the same for every device: what they sync, and all that is left, can be compared.

A loop is put together from parts, each with what it needs before the loop and its lines inside. A part always works:
what raises, raises by plan and is caught by the loop. What a failing test prints runs as it is:

    print(loop(torch, "remora", lambda i: None))
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import torch

MAX_STEPS = 18

BEFORE = {
    "w": "w = torch.randn(8, 8, device=device)",
    "acc": "acc = torch.zeros(4, 8, device=device); row = acc[1]; column = acc.t()[2]",
    "cache": "cache = torch.zeros(2, 32, 8, device=device)",
    "at": "at = torch.zeros(1, dtype=torch.int64, device=device)",
    "k": "k = torch.zeros(1, 0, 8, device=device)",
    "count": "count = torch.zeros(2, dtype=torch.int64, device=device)",
    "c": "c = 1",
    "held": "held = []",
    "views": "views = []",
    "turned": "turned = [h.t()]",
    "buf": "buf = torch.zeros(2, device=device)",
    "state": "state = g.get_state()",
    "p": "p = torch.full((8, 8), 0.1, device=device, requires_grad=True)",
    "opt": "opt = torch.optim.SGD([p], lr=0.1, momentum=0.9)",
}

LISTS = ("held", "views", "turned")

# Lines by what they are about; `{n}` is a small number, `{step}` one of the loop's steps, `{period}` 1 to 3. The
# words of BEFORE that a line has are set up before the loop.
COMPUTE = (
    "h = (h @ w).tanh()",
    "h = torch.nn.functional.linear(h, w).sin()",
    "h = torch.nn.functional.layer_norm(h, [8]) * 0.5",
    "h = h.softmax(-1) - h.mean()",
    "old, h = h, h.clone(); h = h + old[0]",
    "t = h.clone(); t.unsqueeze_(0); t.transpose_(1, 2); h = h - t[0].t() * 0.5",
)
CONSTANTS = (
    "h = h + i",
    "h = h * 0.5 + 0.25 * i",
    "h = h.roll(i, 1)",
    "h = h - torch.arange(i, i + 8, device=device)",
    "h = h - torch.full((4, 8), 2.0 - i, device=device)",
    "c += 1 if i < {step} else 3; h = h * c",
    "h = h + w[i % {period} :][:1]",
)
IN_PLACE = (
    "row.add_(h[0])",
    "column.mul_(0.5)",
    "acc.mul_(0.5).add_(h, alpha=0.25)",
    "acc.t()[{n}] = i",
    "acc[{n} - 1] = h[0]; h = h + acc",
    "torch._foreach_mul_([acc, h], 0.9)",
    "torch.add(h, acc, out=acc)",
    "acc[h > 0] = 0.5",
    "acc.masked_fill_(h < 0, float(i))",
    "acc[[0, 2]] = h[:2]",
    "acc.scatter_(1, torch.tensor([[1, {n}]], device=device), 2.0)",
    "acc.index_add_(0, torch.tensor([{n}, {n}], device=device), h[:2])",
    "acc.copy_(h); h = h + row",
    "h.neg_(); h += 1",
)
CACHES = (
    "cache[:, i] = h[:2]; h = h + cache[0, : i + 1].sum(0)",
    "cache.index_copy_(1, at, h[:2, None]); at.add_(1).remainder_(32); h[:2] += cache[:, {n}]",
    "cache[0, i:] = 0; cache[1, :i] *= 0.5",
    "k = torch.cat([k, h[None, :1]], 1); h = h + torch.nn.functional.scaled_dot_product_attention(h[None], k, k)[0]",
    "k = torch.cat([k, h[None, :2]], 1); tail = k[:, -1]; h = h - tail",
    "k = torch.cat([k, h[None, :1]], 1).index_select(0, torch.tensor([0], device=device))",
    "k = torch.cat([k, h[None, :1]], 1); k[:, 0] += 1; k = k[:, -{period} - 2 :]",
    "k, forked = torch.cat([k, h[None, :1]], 1), torch.cat([k, h[None, 1:2] * 2], 1); h = h + forked[0, -1] - k[0, -1]",
)
DRAWS = (
    "h = h + torch.rand(4, 8, device=device)",
    "h = h + torch.randn(4, 8, device=device, generator=g)",
    "h = torch.nn.functional.dropout(h, 0.25)",
    "acc.normal_(generator=g)",
    "row.uniform_(-1, 1)",
    "h = h + torch.multinomial(torch.ones(4, 8, device=device), 1, generator=g)",
    "h = h - torch.bernoulli(h.sigmoid())",
)
SYNCS = (
    "seen.append(h.sum().item())",
    "seen.append((h[0] > 0).tolist())",
    "seen.append(bool(h.sum() > 0))",
    "seen.append(h.argmax(-1).tolist())",
    "seen.append(h.cpu().abs().max().item())",
    "seen.append(float(h.amax())); seen.append(float(h.amin()))",
    "seen.append(f'{h[0, 1]:.6f}')",
    "seen.append(int((h > 0.5).sum()))",
    "seen.append(acc.tolist())",
    "seen.append(row.sum().item())",
    "seen.append(cache[0, i].tolist())",
    "h = h + h[h > 0].sum()",
    "seen.append(len(h[0].nonzero()))",
    "seen.append(k.shape[1]); seen.append(k.sum().item())",
)
HELD = (
    "held.append(h); held[:] = held[-3:]; h = h + held[0]",
    "views.append(acc[{n}]); views[:] = views[-{period}:]",
    "turned.append(h.t()); h = h + turned.pop(0).t()",
    "views.append(cache[:, i]); views[:] = views[-2:]; h[:2] += views[0]",
    "t = h * 2; u = t.view(-1); del t; h = h + u[{n}]; del u",
)
# What no step tells of the next: uploads, seeds, numbers that change by no fixed step, memory that grows.
SUDDEN = (
    "h = h + 0.9 ** i",
    "h = h + h.narrow(1, i % 8, 1)",
    "acc[:, i % 8 : i % 8 + 2] = {n}",
    "buf.resize_(2 + i).fill_(i); h = h + buf[0]",
    "cache.index_copy_(1, torch.tensor([i], device=device), h[:2].unsqueeze(1)); h = h + cache.mean(1)[1]",
    "torch.manual_seed(i)",
    "g.manual_seed({n})",
    "state = g.get_state(); h = h * torch.rand(1, device=device, generator=g)",
    "g.set_state(state); h = h + torch.rand(8, device=device, generator=g)",
    "h = h + torch.tensor([float(i), 1.5, *[0.0] * 6], device=device)",
    "h = h + torch.nn.functional.embedding(torch.tensor([[i % 5]], device=device), w)[0]",
    "h = h + torch.ones(4, 8).mul(i).to(device)",
    "h = h * torch.tensor(len(seen), device=device).cos()",
    "h = h + torch.full((20_000,), float(i % {period})).to(device)[:8]",
)
BRANCHES = (
    "if h.mean().item() > 0.1:\n    {line}\nelse:\n    h = h - 0.125",
    "if bool(h[0, 0] > 0.9):\n    {line}",
    "if i == {step}:\n    {line}",
    "if i % {period} == 0:\n    {line}\nelse:\n    {other}",
    "if torch.rand(1, device=device).item() < 0.1:\n    {line}",
    "count += 1\nif bool((count >= {step}).all()):\n    {line}",
    "count += 1\nif bool((count > {step} + 2).any()):\n    break",
    "n = 0\nwhile n < 4 and bool(h.abs().max() > 1.0):\n    h = h * 0.5; n += 1",
    "for j in range({period}):\n    {line}\n    seen.append((h.sum() + j).item())",
    "if i == {step}:\n    pause(-1)\n    continue",
    "try:\n    t = torch.nn.functional.embedding(torch.tensor([9 if i == {step} else {n}], device=device), w)\n"
    "    seen.append(t.sum().item())\nexcept IndexError:\n    seen.append('IndexError')",
    "try:\n    {line}\n    if i == {step}:\n        h @ h\nexcept RuntimeError:\n    seen.append('RuntimeError')",
    "try:\n    {line}\n    if h.sum().item() > {n}:\n        raise KeyError(i)\n    {other}\nexcept KeyError:\n"
    "    seen.append('KeyError')",
    "loss = (h.detach() @ p).square().mean(); loss.backward(); opt.step(); opt.zero_grad()\nseen.append(loss.item())",
)
LINES = (COMPUTE, CONSTANTS, IN_PLACE, IN_PLACE, CACHES, CACHES, DRAWS, HELD)


class Loop:
    """One loop. source: a function `loop(torch, device, pause)`, which gives what it saw."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = random.Random(seed)
        self.steps = rng.randint(6, MAX_STEPS)
        body = [rng.choice(COMPUTE)]
        for _ in range(rng.randint(1, 4)):
            body.append(self._branch() if rng.random() < 0.25 else self._line())
        if rng.random() < 0.4:
            body.append(self._sudden())
        body.insert(rng.randint(0, len(body)), self._fill(rng.choice(SYNCS)))
        body.append("h = h.nan_to_num(0.0, 1.0, -1.0).clamp(-4, 4)")
        self.source = self._source("\n".join(body).split("\n"))
        found: dict[str, Any] = {}
        exec(compile(self.source, f"<loop {seed}>", "exec"), found)
        self._function: Callable[..., list[Any]] = found["loop"]

    def run(self, device: str, pause: Callable[[int], None] = lambda i: None) -> list[Any]:
        """What the loop saw and left. pause: called before each step; must not change anything that it sees."""
        return self._function(torch, device, pause)

    def _line(self) -> str:
        return self._fill(self.rng.choice(self.rng.choice(LINES)))

    def _sudden(self) -> str:
        line = self._fill(self.rng.choice(SUDDEN))
        return line if self.rng.random() < 0.3 else self._fill(f"if i == {{step}}:\n    {line}")

    def _branch(self) -> str:
        return self._fill(self.rng.choice(BRANCHES))

    def _fill(self, text: str) -> str:
        rng = self.rng
        text = text.replace("{n}", str(rng.randint(1, 3))).replace("{period}", str(rng.randint(1, 3)))
        text = text.replace("{step}", str(rng.randrange(self.steps)))
        return text.replace("{line}", self._line() if "{line}" in text else "").replace(
            "{other}", self._line() if "{other}" in text else ""
        )

    def _source(self, body: list[str]) -> str:
        words = _words("\n".join(body))
        if "opt" in words:
            words.add("p")
        if "row" in words or "column" in words:
            words.add("acc")
        names = [name for name in BEFORE if name in words]
        tensors = ["h", *(name for name in names if name not in (*LISTS, "opt", "c", "state"))]
        before = [
            "seen = []",
            f"torch.manual_seed({self.seed % 1000})",
            f"g = torch.Generator(device); g.manual_seed({self.seed % 7})",
            "h = torch.randn(4, 8, device=device)",
            *(BEFORE[name] for name in names),
            f"for i in range({self.steps}):",
            "    pause(i)",
        ]
        after = [f"seen += [(list(t.shape), t.tolist()) for t in ({', '.join(tensors)},)]"]
        after += [f"seen += [t.tolist() for t in {name}]" for name in names if name in LISTS]
        after += ["seen.append(torch.rand(2, device=device).tolist())"]
        after += ["seen.append(torch.rand(2, device=device, generator=g).tolist())", "return seen"]
        lines = [*before, *(f"    {line}" for line in body), *after]
        return "def loop(torch, device, pause):\n" + "".join(f"    {line}\n" for line in lines)


def _words(text: str) -> set[str]:
    return set("".join(c if c.isalnum() or c == "_" else " " for c in text).split())
