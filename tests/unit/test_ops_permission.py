"""What an executor refuses, and that ordinary programs use nothing of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from remora.ops.permission import allowed, op_table, refusal, table_digest
from remora.ops.schema import digest, resolve


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("from_file.default", "host"),
        ("_print.default", "host"),
        ("record_stream.default", "host"),
        ("pin_memory.default", "page-locks"),
        ("_pin_memory.default", "page-locks"),
        ("set_.source_Storage", "own shape or storage"),
        ("set_.source_Tensor", "own shape or storage"),
        ("resize_.default", "own shape or storage"),
        ("resize.default", "own shape or storage"),
        ("t_.default", "own shape or storage"),
        ("_efficientzerotensor.default", "own shape or storage"),
        ("mkldnn_rnn_layer.default", "indices"),
        ("_reshape_alias.default", "bounds"),
        ("_nested_view_from_buffer.default", "offsets"),
        ("_sparse_coo_tensor_unsafe.default", "sparse"),
        ("fbgemm_linear_int8_weight.default", "pointers"),
        ("quantize_per_tensor.default", "quantized"),
        ("to_mkldnn.default", "host library"),
        ("_cufft_set_plan_cache_max_size.default", "whole process"),
        ("_backward.default", "autograd"),
        ("_test_string_default.default", "tests"),
        ("get_gradients.default", "autograd"),
    ],
)
def test_refused_with_its_reason(name: str, reason: str) -> None:
    op = resolve(f"aten.{name}")
    assert reason in (refusal(op) or "")
    assert not allowed(op)


def test_reshape_alias_is_refused_because_it_reads_out_of_bounds() -> None:
    assert torch.ops.aten._reshape_alias(torch.zeros(1), [1000], [1]).shape == (1000,)


def test_no_allowed_op_takes_free_text_a_storage_or_a_stream() -> None:
    kinds = {
        (str(argument.type), argument.name)
        for name in op_table()
        for argument in resolve(name)._schema.arguments
    }
    assert not {kind for kind, _ in kinds if "Storage" in kind or "Stream" in kind or "__torch__" in kind}
    assert not {name for kind, name in kinds if "str" in kind} & {"filename", "s", "path", "file"}


@pytest.mark.parametrize(
    "name",
    [
        "_softmax.default",
        "_log_softmax_backward_data.default",
        "_scaled_dot_product_flash_attention.default",
        "_scaled_dot_product_efficient_attention_backward.default",
        "_scaled_dot_product_cudnn_attention.default",
        "_foreach_addcdiv_.Scalar",
        "_fused_adam_.default",
        "_fused_adamw_.tensor_lr",
        "_amp_foreach_non_finite_check_and_unscale_.default",
        "_cudnn_rnn.default",
        "_thnn_fused_lstm_cell.default",
        "gelu.default",
        "div.Tensor_mode",
        "scatter_reduce.two",
        "linalg_qr.default",
        "item.default",
        "as_strided.default",
    ],
)
def test_allowed(name: str) -> None:
    assert refusal(resolve(f"aten.{name}")) is None


def test_other_namespaces_only_if_the_operator_allows_them() -> None:
    library = torch.library.Library("remora_test_ops", "DEF")
    library.define("double(Tensor x) -> Tensor")
    op = resolve("remora_test_ops.double.default")
    assert "remora_test_ops" in (refusal(op) or "")
    assert allowed(op, {"remora_test_ops"})
    assert "remora_test_ops.double.default" in op_table({"remora_test_ops"})
    library._destroy()


def test_of_our_own_namespace_only_what_is_ours() -> None:
    library = torch.library.Library("remora", "FRAGMENT")
    library.define("sneaked_in(Tensor x) -> Tensor")
    assert allowed(resolve("remora.resized.default"))
    assert not allowed(resolve("remora.sneaked_in.default"))
    assert "remora.resized.default" in op_table()
    library._destroy()


def test_op_table_lists_only_allowed_ops_with_their_digests() -> None:
    table = op_table()
    assert len(table) > 2000
    assert table["aten.add.Tensor"] == digest(resolve("aten.add.Tensor"))
    assert "aten.from_file.default" not in table
    assert table_digest(table) == table_digest(dict(reversed(table.items())))
    assert table_digest(table) != table_digest({**table, "aten.add.Tensor": "0" * 16})


CPU_ONLY = ("mkldnn_rnn_layer", "mkldnn_rnn_layer_backward")


class Refused(TorchDispatchMode):
    """Collects the refused ops that a program runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # profiler's take no tensor: the client runs them itself; the CPU's own LSTM never leaves the CPU
        if op.namespace != "profiler" and op._opname not in CPU_ONLY and not allowed(op):
            self.names.add(str(op))
        return op(*args, **(kwargs or {}))


class Everyday(nn.Module):
    """Text, pictures and sequences through common layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 16)
        self.decoder = nn.TransformerEncoderLayer(
            16, 2, 32, activation="gelu", batch_first=True, norm_first=True
        )
        self.picture = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.project = nn.Linear(36, 16)
        self.steps = nn.LSTM(16, 16, 2, dropout=0.1, batch_first=True)
        self.norm = nn.RMSNorm(16)

    def forward(self, tokens: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.project(self.picture(picture))[:, None], self.embed(tokens)], 1)
        x, _ = self.steps(self.decoder(x))
        return self.norm(x) @ self.embed.weight.T


@pytest.mark.parametrize("optimizer", ["adamw_foreach", "adamw_fused", "sgd", "adagrad", "rmsprop"])
def test_a_training_step_uses_only_allowed_ops(optimizer: str) -> None:
    model = Everyday()
    step = {
        "adamw_foreach": lambda p: torch.optim.AdamW(p, foreach=True),
        "adamw_fused": lambda p: torch.optim.AdamW(p, fused=True),
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }[optimizer](model.parameters())
    tokens = torch.arange(10).reshape(2, 5)
    with Refused() as refused:
        logits = model(tokens, torch.randn(2, 3, 8, 8))
        loss = nn.functional.cross_entropy(logits[:, 1:].flatten(0, 1), tokens.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        step.step()
        step.zero_grad()
        torch.multinomial(logits[:, -1].softmax(-1), 1).tolist()
    assert refused.names == set()
