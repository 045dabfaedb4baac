"""Recurrent networks in parts: what a CPU computes step by step, where a device of our kind would be given fused cells.

PyTorch takes LSTM and GRU apart into kernels that only GPUs have, and expects the sizes of packed sequences on the
client. So the parts are made here, by PyTorch's own Python decompositions, whose results are those of a CPU. One
difference is left: a CPU trains an LSTM by oneDNN's kernel, which rounds otherwise.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from remora.device.parts import views_tracked
from remora.device.special import SPECIAL
from remora.errors import NotSupported

aten = torch.ops.aten


Hidden = tuple[torch.Tensor, ...]  # h, or h and c: each [B, H]
Cell = Callable[[torch.Tensor, Hidden, torch.Tensor, torch.Tensor | None], Hidden]


def _lstm(gates: torch.Tensor, hidden: Hidden, w_hh: torch.Tensor, b_hh: torch.Tensor | None) -> Hidden:
    """gates: the input's share [B, 4 H]. As ATen/native/RNN.cpp, LSTMCell, on a CPU."""
    h, c = hidden
    i, f, g, o = functional.linear(h, w_hh, b_hh).add_(gates).unsafe_chunk(4, 1)
    c = (f.sigmoid_() * c).add_(i.sigmoid_() * g.tanh_())
    return o.sigmoid_() * c.tanh(), c


def _gru(gates: torch.Tensor, hidden: Hidden, w_hh: torch.Tensor, b_hh: torch.Tensor | None) -> Hidden:
    """gates: the input's share [B, 3 H]. As ATen/native/RNN.cpp, GRUCell, on a CPU."""
    r_i, z_i, n_i = gates.unsafe_chunk(3, 1)
    r_h, z_h, n_h = functional.linear(hidden[0], w_hh, b_hh).unsafe_chunk(3, 1)
    r, z = r_h.add_(r_i).sigmoid_(), z_h.add_(z_i).sigmoid_()
    n = n_i.add(n_h.mul_(r)).tanh_()
    return ((hidden[0] - n).mul_(z).add_(n),)


def _simple(activation: Callable[[torch.Tensor], torch.Tensor]) -> Cell:
    return lambda gates, hidden, w_hh, b_hh: (
        activation(functional.linear(hidden[0], w_hh, b_hh).add_(gates)),
    )


def lstm_cell(input: Any, hidden: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Hidden:
    return _lstm(functional.linear(input, w_ih, b_ih), tuple(hidden), w_hh, b_hh)


def gru_cell(input: Any, hidden: Any, w_ih: Any, w_hh: Any, b_ih: Any = None, b_hh: Any = None) -> Any:
    return _gru(functional.linear(input, w_ih, b_ih), (hidden,), w_hh, b_hh)[0]


def _packed(cell: Cell) -> Callable[..., Any]:
    """An op on packed sequences. As ATen/native/RNN.cpp, PackedLayer and ReversedPackedLayer, on a CPU."""

    def run(
        data: torch.Tensor,
        batch_sizes: torch.Tensor,
        hx: Any,
        params: Sequence[torch.Tensor],
        has_biases: bool,
        num_layers: int,
        dropout: float,
        train: bool,
        bidirectional: bool,
    ) -> Any:
        first = list(zip(*hx, strict=True)) if isinstance(hx, (list, tuple)) else [(h,) for h in hx]
        ways = 2 if bidirectional else 1
        each = len(params) // (num_layers * ways)
        sizes, last = batch_sizes.tolist(), []
        for layer in range(num_layers):
            outputs = []
            for at in range(layer * ways, (layer + 1) * ways):
                out, hidden = _packed_layer(
                    cell, data, sizes, first[at], params[at * each :][:each], has_biases, bool(at % ways)
                )
                outputs.append(out)
                last.append(hidden)
            data = torch.cat(outputs, -1) if bidirectional else outputs[0]
            if dropout and train and layer < num_layers - 1:
                data = functional.dropout(data, dropout)
        return (data, *(torch.stack(hidden) for hidden in zip(*last, strict=True)))

    return run


def _packed_layer(
    cell: Cell,
    data: torch.Tensor,
    sizes: list[int],
    first: Hidden,
    params: Sequence[torch.Tensor],
    has_biases: bool,
    reverse: bool,
) -> tuple[torch.Tensor, Hidden]:
    if len(params) not in (2, 4) or (len(params) == 4) != has_biases:
        raise NotSupported("an LSTM with projections (proj_size) on packed sequences; pad them instead")
    w_ih, w_hh, b_ih, b_hh = params if has_biases else (*params, None, None)
    steps = functional.linear(data, w_ih, b_ih).split(sizes)
    n, outputs, ended = sizes[-1] if reverse else sizes[0], [], []
    hidden = tuple(part[:n] for part in first)
    for gates in reversed(steps) if reverse else steps:
        size = gates.shape[0]
        if size < n:
            ended.append(tuple(part[size:] for part in hidden))
            hidden = tuple(part[:size] for part in hidden)
        elif size > n:
            hidden = tuple(torch.cat((part, new[n:size])) for part, new in zip(hidden, first, strict=True))
        n = size
        hidden = cell(gates, hidden, w_hh, b_hh)
        outputs.append(hidden[0])
    ended.append(hidden)
    final = tuple(torch.cat(parts[::-1]) for parts in zip(*ended, strict=True)) if len(ended) > 1 else hidden
    return torch.cat(outputs[::-1] if reverse else outputs), final


def pack(input: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As ATen/native/PackedSequence.cpp: the data [N, ...] here or there, the batch sizes [T] on the CPU."""
    wanted = lengths.tolist()
    if batch_first:
        input = input.transpose(0, 1)
    n = input.shape[1]
    if len(wanted) != n:
        raise RuntimeError(
            f"Expected `len(lengths)` to be equal to batch_size, but got {len(wanted)} (batch_size={n})"
        )
    if any(after > before for before, after in itertools.pairwise(wanted)):
        raise RuntimeError(
            "`lengths` array must be sorted in decreasing order when `enforce_sorted` is True. You can pass "
            "`enforce_sorted=False` to pack_padded_sequence and/or pack_sequence to sidestep this requirement if you "
            "do not need ONNX exportability."
        )
    if wanted and wanted[-1] <= 0:
        raise RuntimeError(
            "Length of all samples has to be greater than 0, but found an element in 'lengths' that is <= 0"
        )
    parts, sizes, done = [], [], 0
    for at, length in enumerate(reversed(wanted)):
        if length > done:
            size = n - at
            parts.append(input[done:length, :size].contiguous().view(-1, *input.shape[2:]))
            sizes += [size] * (length - done)
            done = length
    return torch.cat(parts), torch.tensor(sizes, dtype=torch.int64)


def _decomposed(op: Any) -> Callable[..., Any]:
    def parts(*args: Any, **kwargs: Any) -> Any:
        import torch._decomp.decompositions  # noqa: F401  # registers them; slow to import

        results = op.decompose(*args, **kwargs)
        if op is aten.lstm.input:  # PyTorch 2.11 leaves a dimension of 1 in the states of a batch
            return results[0], *(state.squeeze(1) if state.dim() == 4 else state for state in results[1:])
        return results

    return parts


def transposed_batch_wants_gradients(*args: Any) -> bool:
    """Then a CPU folds the batch, which is not contiguous, into one product even if no gradients are recorded."""
    params, batch_first = args[2], args[8]
    return bool(batch_first) and any(param.requires_grad for param in params)


WITH_GRADIENT = {
    op: _decomposed(op) for op in (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
}
# What never stays whole: the parts need numbers that are on the client.
IN_PARTS: dict[Any, Callable[..., Any]] = {
    aten.lstm.data: _packed(_lstm),
    aten.gru.data: _packed(_gru),
    aten.rnn_tanh.data: _packed(_simple(torch.tanh)),
    aten.rnn_relu.data: _packed(_simple(torch.relu)),
    aten.lstm_cell.default: lstm_cell,
    aten.gru_cell.default: gru_cell,
    aten._pack_padded_sequence.default: pack,
}


def register_recurrent(library: Any) -> None:
    for op, parts in IN_PARTS.items():
        for key in ("AutogradPrivateUse1", "PrivateUse1"):
            library.impl(op.name(), parts, key)
        SPECIAL[op] = _called_with(parts)  # under inference_mode they come there first


def _called_with(parts: Callable[..., Any]) -> Callable[[Any, Any, Any], Any]:
    def special(func: Any, args: Any, kwargs: Any) -> Any:
        with views_tracked():
            return parts(*args, **kwargs)

    return special
