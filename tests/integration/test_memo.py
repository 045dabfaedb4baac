"""A second process starts warm: it infers nothing, and believes what the first one inferred."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from executor_process import ExecutorProcess

SCRIPT = """
import json, logging
import torch, remora
from remora.bench import models
from remora.device import dispatch, infer, memo_store
model = models.gpt2(layers=1, width=48, heads=4, vocabulary=512).to("remora")
tokens = model.generate(models.prompt(8).to("remora"), max_new_tokens=6, do_sample=False).tolist()
known = {}
for key, outcome in dispatch.memo.items():
    if memo_store._is_kept(key[0]):
        facts = [getattr(out, "facts", out) for out in outcome.outs]
        rest = [outcome.single, outcome.container, outcome.layouts, outcome.foldable, outcome.is_view,
                outcome.stale]
        known[f"{key[0]} {memo_store.key_digest(key).hex()}"] = repr([facts, rest])
store = memo_store.store
print(json.dumps([tokens, infer.misses, store.hits, store.failures, known]))
"""


def _generate(cache: Path, url: str) -> Any:
    environment = {**os.environ, "REMORA_CACHE": str(cache), "REMORA_URL": url}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_second_process_infers_nothing(executor: ExecutorProcess, tmp_path: Path) -> None:
    tokens, cold_misses, cold_hits, failures, inferred = _generate(tmp_path, executor.url)
    assert (cold_misses > 50, cold_hits, failures) == (True, 0, 0)
    again, misses, hits, failures, believed = _generate(tmp_path, executor.url)
    assert (misses, hits, failures) == (0, cold_misses, 0)
    assert believed == inferred
    assert again == tokens
