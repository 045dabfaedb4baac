"""Ctrl-C at any moment leaves the session usable and its values right."""

from __future__ import annotations

import pytest
from warm_python import TRANSFORMERS, run_program

PROGRAM = """
import os, random, signal, sys, threading, time
import torch, remora
from remora.bench import models

url, what, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
remora.connect(url)
rng = random.Random(7)
model = models.gpt2(layers=1, width=16, heads=2, vocabulary=64)
ids = models.prompt(6, vocabulary=64)
expected = model.generate(ids, max_new_tokens=6, do_sample=False)
model.to("remora")
big = torch.arange(3 << 20, dtype=torch.float32)
kept = torch.arange(1000.0).to("remora") * 3

def generate():
    return torch.equal(model.generate(ids.to("remora"), max_new_tokens=6, do_sample=False).cpu(), expected)

def upload():
    shift = rng.randrange(1000)
    source = big + shift
    there = source.to("remora")
    return (there[[0, -1]] + 1).tolist() == [shift + 1, float(big[-1] + shift + 1)]

def ops():
    total = torch.zeros(3, device="remora")
    for i in range(80):
        total = total + torch.tensor([i, 1, 2]).to("remora")
        if i % 20 == 0:
            total.tolist()
    return total.tolist() == [3160, 80, 160]

act = {"generate": generate, "upload": upload, "ops": ops}[what]
assert act()
started = time.perf_counter()
assert act()
took_s = time.perf_counter() - started
interrupted = 0
for _ in range(rounds):
    delay_s = rng.random() * took_s * 1.1
    killer = threading.Thread(target=lambda: (time.sleep(delay_s), os.kill(os.getpid(), signal.SIGINT)))
    try:
        killer.start()
        act()
        killer.join()
        time.sleep(0.01)
    except KeyboardInterrupt:
        interrupted += 1
    while True:
        try:
            killer.join()
            break
        except KeyboardInterrupt:
            pass
    assert act(), "wrong after an interrupt"
    assert kept[[0, 999]].tolist() == [0, 2997]
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
print(interrupted > rounds // 2, remora.stats().reconnects <= interrupted)
remora.disconnect()
"""


@pytest.mark.parametrize(("what", "rounds"), [("generate", 40), ("upload", 25), ("ops", 60)])
def test_interrupted_at_many_moments(executor, what, rounds):
    done = run_program(PROGRAM, executor.url, what, str(rounds), modules=TRANSFORMERS, timeout_s=110)
    assert done.stdout.split() == ["True", "True"], done.stderr[-4000:]
