"""The experiment `train`: what it counts, and that its programs give local losses."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from remora.bench import networks, training
from remora.bench.harness import Report


@pytest.mark.parametrize("program", training.PROGRAMS, ids=lambda program: program.name)
def test_losses_are_local_and_a_step_costs_no_wait(
    connected: ModuleType, program: training.Program, capsys: pytest.CaptureFixture[str]
) -> None:
    assert training.losses(program.make("remora"), 3) == training.losses(program.make("cpu"), 3)
    report = Report("train")
    training.counts(report, program.name, program.make("remora"))
    assert len(report.bars) == 2
    assert report.ok, capsys.readouterr().err


def test_the_residual_network_is_a_resnet_18() -> None:
    model = networks.ResNet18()
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_689_512  # torchvision's count
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 64, 64)).shape == (1, 1000)
