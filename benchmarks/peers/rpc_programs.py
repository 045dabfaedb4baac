"""The same work by hand through torch RPC: the model lives at the other end, a message asks for each step.

The client sends a token or a batch and gets logits or a loss back. Imported at both ends.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import programs
import torch
from programs import Result, Trial
from torch.distributed import rpc

CLIENT, EXECUTOR = "client", "executor"
_held: dict[str, Any] = {}  # of the executor's end


def join(name: str, port: int) -> None:
    """Both ends meet in a file named by the port, since the store that is usual listens on all addresses."""
    os.environ |= {"TP_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
    meeting = Path(tempfile.gettempdir()) / f"remora-bench-rpc-{os.getuid()}-{port}"
    options = rpc.TensorPipeRpcBackendOptions(init_method=meeting.as_uri())
    rpc.init_rpc(name, rank=0 if name == EXECUTOR else 1, world_size=2, rpc_backend_options=options)


def _there(function: Callable[..., Any], *arguments: Any) -> Any:
    return rpc.rpc_sync(EXECUTOR, function, args=arguments)


def hold_model(name: str) -> None:
    _held["model"] = getattr(programs, name)()[0]


def forget_cache() -> None:
    _held["cache"] = None


def forward(ids: torch.Tensor) -> torch.Tensor:
    """The logits of the last position."""
    with torch.no_grad():
        out = _held["model"](ids, past_key_values=_held["cache"], use_cache=True)
    _held["cache"] = out.past_key_values
    return out.logits[:, -1]


def hold_step(name: str) -> None:
    _held["step"] = getattr(programs, name)("cpu")


def one_step() -> torch.Tensor:
    return _held["step"]()


def keep(state: dict[str, torch.Tensor]) -> torch.Tensor:
    _held["state"] = state
    return torch.stack([weight.flatten()[-1] for weight in state.values()])


def _generating(name: str, tokens: int) -> Trial:
    _, ids = getattr(programs, name)()
    _there(hold_model, name)

    def trial() -> Result:
        started = time.perf_counter()
        _there(forget_cache)
        found, now = ids, ids
        for _ in range(tokens):
            now = _there(forward, now).argmax(-1, keepdim=True)
            found = torch.cat([found, now], 1)
        return time.perf_counter() - started, found[0].tolist()

    return trial


def _training(name: str, steps: int) -> Trial:
    _there(hold_step, name)

    def trial() -> Result:
        started = time.perf_counter()
        losses = torch.stack([_there(one_step) for _ in range(steps)])
        return time.perf_counter() - started, losses.tolist()

    return trial


def _uploading() -> Trial:
    make = programs.fresh_weights()

    def trial() -> Result:
        model = make()
        started = time.perf_counter()
        last = _there(keep, {name: weight.detach() for name, weight in model.named_parameters()})
        return time.perf_counter() - started, last.tolist()

    return trial


def program(workload: str, units: int) -> Trial:
    """As programs.program."""
    if workload == "upload of GPT-2":
        return _uploading()
    if workload in ("GPT-2 124M generate", "12 thin layers generate"):
        return _generating("gpt2" if workload.startswith("GPT-2") else "thin", units)
    return _training("mlp_step" if workload.startswith("MLP") else "gpt_step", units)


if __name__ == "__main__":  # the executor's end: rpc_programs.py PORT
    import sys

    import rpc_programs  # functions are found by this name

    torch.set_num_threads(1)
    rpc_programs.join(EXECUTOR, int(sys.argv[1]))
    rpc.shutdown()  # when the client has gone
