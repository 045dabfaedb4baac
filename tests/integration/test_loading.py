"""`from_pretrained(device_map="remora")` streams: the client never holds the model, and sends each weight once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers

SHARD = 32 << 20
LEAST_MODEL = 6 * SHARD
SLACK = 96 << 20  # what stays of sent files (64 MiB), and buffers

PROGRAM = """
import json, sys, torch, transformers, remora
torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()

def high_water():
    return [int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmHWM")][0]

remora.connect(sys.argv[1])
kind = transformers.LlamaForCausalLM
warm = kind(transformers.LlamaConfig(num_hidden_layers=1, hidden_size=64, vocab_size=32)).to("remora")
before, sent = high_water(), remora.stats()
model = kind.from_pretrained(sys.argv[2], device_map="remora", dtype=torch.bfloat16)
torch.remora.synchronize()
spent = remora.stats() - sent
print(json.dumps({
    "grown": high_water() - before,
    "sent": spent.weights_bytes,
    "devices": sorted({parameter.device.type for parameter in model.parameters()}),
    "tied": model.lm_head.weight is model.model.embed_tokens.weight,
    "first": model.model.layers[-1].mlp.down_proj.weight[0, :4].tolist(),
}))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, int, list[float]]:
    """A Llama in shards, its size, and four of its numbers. Its embedding and its head are one."""
    config = transformers.LlamaConfig(
        num_hidden_layers=16,
        hidden_size=768,
        intermediate_size=2048,
        num_attention_heads=12,
        vocab_size=4096,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape[-1], generator=generator)
            parameter.copy_(
                noise + torch.arange(parameter[..., 0].numel())[:, None].view(*parameter.shape[:-1], 1)
            )
    model.save_pretrained(tmp_path, max_shard_size=f"{SHARD >> 20}MB")
    nbytes = sum(parameter.nbytes for parameter in model.parameters())
    return tmp_path, nbytes, model.model.layers[-1].mlp.down_proj.weight[0, :4].tolist()


@pytest.mark.skipif(sys.platform != "linux", reason="pages of mapped files leave on Linux alone")
def test_a_sharded_checkpoint_never_lies_in_the_clients_memory(executor, checkpoint) -> None:
    path, nbytes, first = checkpoint
    assert nbytes > LEAST_MODEL
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, executor.url, str(path)],
        stdout=subprocess.PIPE,
        check=True,
        timeout=100,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["devices"] == ["remora"]
    assert found["tied"]
    assert found["first"] == first
    assert 0.9 * nbytes < found["sent"] <= nbytes  # small tensors go in messages
    assert found["grown"] < SHARD + SLACK, f"grew by {found['grown'] >> 20} MiB"
