"""transformers' Trainer as it is, on the executor, against the same on the local CPU."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from remora.bench import models

MEASURES = ("loss", "eval_loss", "grad_norm", "learning_rate")


@pytest.fixture(autouse=True)
def _alone():
    """accelerate's global state is made anew."""
    yield
    AcceleratorState._reset_state(True)


class Sentences(torch.utils.data.Dataset):
    def __init__(self, n: int) -> None:
        self.ids = models.prompt(8, batch=n, vocabulary=128)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[at], "labels": self.ids[at]}


def trainer(path: Any, cpu: bool, **options: Any) -> Trainer:
    torch.manual_seed(0)
    model = models.gpt2(2, 32, 4, 128)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # on the CPU it draws from the generator that also shuffles
    arguments = TrainingArguments(
        str(path),
        use_cpu=cpu,
        **{
            "per_device_train_batch_size": 4,
            "num_train_epochs": 2,
            "logging_steps": 1,
            "save_strategy": "no",
            "eval_strategy": "epoch",
            "report_to": [],
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            "gradient_accumulation_steps": 2,
            "learning_rate": 1e-2,
            "seed": 3,
            **options,
        },
    )
    made = Trainer(model, arguments, train_dataset=Sentences(16), eval_dataset=Sentences(4))
    made.remove_callback(PrinterCallback)
    return made


def curve(made: Trainer) -> list[dict[str, float]]:
    """What was logged, but times."""
    return [{key: log[key] for key in MEASURES if key in log} for log in made.state.log_history]


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped, cosine": {"max_grad_norm": 0.5, "lr_scheduler_type": "cosine", "warmup_steps": 2},
    "adafactor": {"optim": "adafactor"},
    "gradient checkpointing": {"activation_checkpointing": True},
    "a worker": {"dataloader_num_workers": 1},
}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", VARIANTS)
def test_the_loss_curve_is_that_of_the_cpu(connected: ModuleType, tmp_path: Any, name: str) -> None:
    there = trainer(tmp_path, cpu=False, **VARIANTS[name])
    there.train()
    here = trainer(tmp_path, cpu=True, **VARIANTS[name])  # accelerate has one device at a time
    here.train()
    assert there.args.device == torch.device("remora", 0)
    assert {p.device.type for p in there.model.parameters()} == {"remora"}
    assert here.args.device == torch.device("cpu")
    assert curve(there) == curve(here)
    assert sum("grad_norm" in log for log in curve(there)) == 4
    for got, expected in zip(there.model.parameters(), here.model.parameters(), strict=True):
        assert torch.equal(got.detach().cpu(), expected.detach())


def test_predictions_and_evaluation_are_those_of_the_cpu(connected: ModuleType, tmp_path: Any) -> None:
    there, here = (_seen(trainer(tmp_path, cpu)) for cpu in (False, True))
    assert (there[0] == here[0]).all()
    assert there[1] == here[1]


def _seen(made: Trainer) -> tuple[Any, float]:
    return made.predict(Sentences(6)).predictions, made.evaluate()["eval_loss"]


def test_without_a_session_it_trains_where_it_always_did() -> None:
    program = """
import remora, transformers
arguments = transformers.TrainingArguments("unused")
assert arguments.device.type == "cpu", arguments.device
assert dict((name, ok) for name, ok, _ in remora.probes())["trainer-knows-remora"]
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)
