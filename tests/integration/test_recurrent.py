"""Recurrent networks, trained and not, padded and packed: outputs and gradients as on the CPU."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from agreement import agrees, assert_agree, randn
from torch import nn
from torch.nn.utils import rnn
from torch.utils._pytree import tree_leaves

KINDS = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "tanh": nn.RNNCell}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "deep, both ways": {"num_layers": 2, "bidirectional": True},
    "batch first, no bias": {"batch_first": True, "bias": False},
}


def _trained(model: nn.Module, outputs: Any, *inputs: torch.Tensor) -> Any:
    sum(out.pow(2).sum() for out in tree_leaves(outputs) if isinstance(out, torch.Tensor)).backward()
    return outputs, [parameter.grad for parameter in model.parameters()], [tensor.grad for tensor in inputs]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["gru", "tanh"])
def test_training_and_inference(connected: ModuleType, kind: str, shape: str) -> None:
    def program(device: str) -> Any:
        model, x = KINDS[kind](5, 6, **SHAPES[shape]).to(device), randn(device, 4, 3, 5)
        trained = _trained(model, model(x), x)
        with torch.inference_mode():
            ahead = [leaf.clone() for leaf in tree_leaves(model(x))]
        with torch.no_grad():
            return trained, model(x), ahead

    assert_agree(program)


@pytest.mark.parametrize("shape", SHAPES)
def test_lstm_in_inference(connected: ModuleType, shape: str) -> None:
    def program(device: str) -> Any:
        model, x = nn.LSTM(5, 6, **SHAPES[shape]).to(device), randn(device, 4, 3, 5)
        with torch.no_grad():
            return model(x)

    assert_agree(program)


def test_training_of_an_lstm(connected: ModuleType) -> None:
    """Not bit for bit: a CPU trains it by oneDNN's kernel, which trusts a workspace that no client may make."""

    def program(device: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        model, x = nn.LSTM(5, 6, num_layers=2, bidirectional=True).to(device), randn(device, 4, 3, 5)
        return [leaf.detach().cpu() for leaf in tree_leaves(_trained(model, model(x), x))]

    for got, expected in zip(program("remora"), program("cpu"), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences(connected: ModuleType, kind: str, shape: str) -> None:
    def program(device: str) -> Any:
        model = KINDS[kind](5, 6, **SHAPES[shape]).to(device)
        x = randn(device, 3, 4, 5)
        first = SHAPES[shape].get("batch_first", False)
        packed = rnn.pack_padded_sequence(
            x if first else x.transpose(0, 1), torch.tensor([4, 2, 3]), first, enforce_sorted=False
        )
        out, hidden = model(packed)
        padded, lengths = rnn.pad_packed_sequence(out, first, total_length=5)
        return _trained(model, (padded, hidden), x), lengths, out.batch_sizes

    assert_agree(program)


@pytest.mark.parametrize("kind", CELLS)
def test_cells(connected: ModuleType, kind: str) -> None:
    def program(device: str) -> Any:
        cell, hidden = CELLS[kind](5, 6).to(device), None
        for _ in range(3):
            hidden = cell(randn(device, 2, 5, grad=False), hidden)
        with torch.inference_mode():
            ahead = tree_leaves(cell(randn(device, 2, 5, grad=False), hidden))
        return _trained(cell, hidden), [leaf.clone() for leaf in ahead]

    assert_agree(program)


@agrees
def test_sequences_are_packed_and_padded(device: str) -> Any:
    sequences = [randn(device, n, 2) for n in (4, 2, 3)]
    packed = rnn.pack_sequence(sequences, enforce_sorted=False)
    padded = rnn.pad_sequence(sequences, batch_first=True)
    apart = rnn.unpad_sequence(padded, torch.tensor([4, 2, 3]), batch_first=True)
    return padded, packed.data, packed.batch_sizes, apart, rnn.unpack_sequence(packed)


def test_a_packed_step_blocks_never(connected: ModuleType) -> None:
    model = nn.GRU(5, 6).to("remora")
    steps = torch.optim.SGD(model.parameters(), lr=0.1)

    def turn() -> None:
        steps.zero_grad()
        packed = rnn.pack_padded_sequence(torch.randn(4, 3, 5).to("remora"), torch.tensor([4, 3, 2]))
        model(packed)[0].data.sum().backward()
        steps.step()

    turn()
    before = connected.stats()
    turn()
    assert (connected.stats() - before).round_trips == 0
