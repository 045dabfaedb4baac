"""First tokens of new processes, behind round trips: decode.py starts it, with what it asks as JSON.

This process imports everything and does nothing; its forks are new ones, without the imports. Their weights are made on
the executor: none are sent, all are present.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch
import transformers
from shapes import make, prompt

import remora
from remora.bench.forks import Fork
from remora.bench.ways import connect

FIRSTS = 3  # new processes for each round trip
WITHIN_S = 60.0


class FirstToken:
    """What a fork does."""

    def measure(self, url: str, run_ahead: bool, name: str, tiny: bool, tokens: int) -> dict[str, float]:
        """Milliseconds until the program has the token. tokens: of the prompt."""
        connect(url, run_ahead)
        model, ids = make(name, "remora", tiny), prompt(tokens).to("remora")
        torch.remora.synchronize()  # type: ignore[attr-defined]
        started = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1, do_sample=False).cpu()
        return {"ms": round((time.perf_counter() - started) * 1e3, 2)}

    def close(self) -> None:
        remora.disconnect()


def first_tokens(urls: dict[str, str], **asked: Any) -> dict[str, list[float]]:
    """By round trip, as `urls` are."""
    found: dict[str, list[float]] = {rtt: [] for rtt in urls}
    for _ in range(FIRSTS):
        for rtt, url in urls.items():
            fork = Fork(f"RTT {rtt}", FirstToken)
            try:
                found[rtt].append(fork.ask("measure", WITHIN_S, url=url, **asked)["ms"])
            finally:
                fork.close()
    return found


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    print(json.dumps(first_tokens(**json.loads(sys.argv[1]))))
