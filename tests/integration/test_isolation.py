"""Two programs on one executor know nothing of each other."""

from __future__ import annotations

import threading

import pytest
import torch
from executor_process import executor_process, status_until
from warm_python import TRANSFORMERS, run_program

import remora
from remora.errors import RemoraError
from remora.session.connect import current

PROGRAM = """
import torch
from remora.bench import models

def draws_its_own(seed):
    model = models.gpt2(layers=2, width=16, heads=2, vocabulary=64)
    ids = models.prompt(6, vocabulary=64, seed=seed)
    torch.manual_seed(seed)
    expected = [model.generate(ids, max_new_tokens=16, do_sample=True) for _ in range(4)]
    model.to("remora")
    torch.manual_seed(seed)
    got = [model.generate(ids.to("remora"), max_new_tokens=16, do_sample=True).cpu() for _ in range(4)]
    return all(map(torch.equal, got, expected))
"""
OTHER = """
import sys, remora
remora.connect(sys.argv[1])
print(all([draws_its_own(seed) for seed in (2, 3)]))
"""


def test_two_programs_at_once_draw_from_their_own_streams(connected, executor):
    said = []
    other = threading.Thread(
        target=lambda: said.append(run_program(PROGRAM + OTHER, executor.url, modules=TRANSFORMERS))
    )
    here = {}
    exec(PROGRAM, here)
    other.start()
    while other.is_alive():
        assert here["draws_its_own"](1)
    assert said[0].stdout == "True\n", said[0].stderr


def test_names_of_another_session_cannot_be_read(connected, executor):
    from remora.config import ClientSettings
    from remora.session.session import Session
    from remora.transport.http import HttpTransport
    from remora.wire.messages import Fetch, OpenSession

    secret = torch.arange(5.0).to("remora") * 3
    assert secret.tolist()[4] == 12
    transport = HttpTransport(executor.url)
    grant = transport.open_session(OpenSession(2, 2, str(torch.__version__)), 2.0)
    eve = Session(transport, grant, ClientSettings())
    eve.link.open(2.0)
    try:
        with pytest.raises(RemoraError, match="does not exist in this session"):
            eve._ask(Fetch(1, secret._value.name))
    finally:
        eve.close(RemoraError("over"))
    assert secret.tolist()[4] == 12


def test_random_numbers_are_those_of_a_local_program_seeded_alike(connected):
    torch.manual_seed(5)
    expected = [torch.randn(3), torch.rand(2, 2)]
    torch.manual_seed(5)
    got = [torch.randn(3, device="remora").cpu(), torch.rand(2, 2, device="remora").cpu()]
    assert all(map(torch.equal, got, expected))


def test_a_session_that_ends_leaves_nothing():
    with executor_process() as own:
        remora.connect(own.url)
        x = torch.ones(1 << 20, device="remora")
        assert x[5].item() == 1
        status_until(own, lambda status: status.used_nbytes >= 1 << 22)
        assert current().grant.principal == "local/user"
        remora.disconnect()
        status_until(own, lambda status: status.used_nbytes == 0 and status.sessions == 0)
