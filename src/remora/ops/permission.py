"""What an executor runs for a client that it does not trust with its host, and the table of it for Hello.

The rules read the schema: arguments must be plain values, tensors and known enumerations. What a schema does
not tell is in `_REFUSED`, with the reason. This bounds what an op can reach (files, host memory, process-wide
state); it does not make kernels safe against hostile index tensors, for which the worker is its own process.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

import torch
from blake3 import blake3
from torch._ops import OpOverload

from remora.ops.schema import digest, op_name, resolve

# Types that carry a value and nothing else; lists and optionals of them are allowed too.
_PLAIN = frozenset({"Tensor", "int", "float", "bool", "number", "complex", "Generator", "Device", "str"})

# String arguments that choose among a fixed set of words, or only enter an error message.
_ENUMERATIONS = frozenset(
    {"UPLO", "activation", "algorithm", "api_name", "approximate", "assert_msg", "driver", "equation"}
    | {"indexing", "interpolation", "mode", "norm", "ord", "p", "pad_mode", "padding", "padding_side"}
    | {"reduce", "rounding_mode", "side"}
)

# Base names that the executor refuses whatever their schema, as whole-name patterns by reason.
_REFUSED: dict[str, str] = {
    "page-locks host memory": r"_?pin_memory|is_pinned",
    "touches the host": r"_print|from_file|record_stream",
    "makes a view whose bounds nothing checks": r"_reshape_alias",
    "trusts offsets that nothing checks": r"_?nested_\w+|_jagged_\w+|_padded_dense_to_jagged\w*",
    "works on sparse layouts, whose indices nothing checks": (
        r"\w*sparse\w*|_?coalesced?_?|_?indices|_?values|c?(row|col)_indices|_cslt_\w+"
        r"|_nnz|_spdiags|_spsolve|_dim[IV]|_rowwise_prune"
    ),
    "takes tensors that hold packed host pointers": (
        r"(fbgemm|quantized)_\w+|_?wrapped_\w+|_saturate_weight_to_fp16"
    ),
    "belongs to the quantized engine's own tensor types": (
        r"q_\w+|qscheme|int_repr|dequantize|quantize_per_\w+|_make_per_\w+_quantized_tensor|_?empty_\w*quantized"
    ),
    "works on layouts private to a host library": r"to_mkldnn\w*|_mkldnn_\w+|mkldnn_(linear|reorder|max|adaptive)\w*",
    "sets state of the whole process": r"_cufft_\w+",
    "rebinds the storages of its inputs without saying so": r"_cudnn_rnn_flatten_weight",
    "autograd belongs to the client": (
        r"_backward|get_gradients|retain_grad|retains_grad|requires_grad_|set_data|_version|output_nr|is_leaf"
    ),
    "forward-mode state belongs to the client": r"_(enter|exit)_dual_level|_(make|unpack)_dual|_fw_primal",
    "batching levels belong to the client": r"_(add|remove)_batch_dim|_test_functorch_\w+",
    "is private to another device": r"_propagate_xla\w+|_copy_from\w*|_lstm_mps|_mps_\w+|is_vulkan\w+",
    "exists only for PyTorch's own tests": r"_test_\w+|_foobar",
}

_REFUSED_NAME = [(re.compile(pattern), reason) for reason, pattern in _REFUSED.items()]
_VERDICTS: dict[OpOverload, str | None] = {}
_namespaces: set[str] = set()  # of this process, an executor's worker


CUSTOM_OPERATORS = (
    "Custom operators run where the executor has them: install the module that defines them there, "
    "and start it with `remora serve --ops MODULE`"
)


def allow_namespaces(names: Collection[str]) -> None:
    """Allows all ops of these namespaces in this process: whoever runs the executor vouches for them."""
    _namespaces.update(names)


def allowed(op: OpOverload, namespaces: Collection[str] = ()) -> bool:
    """Whether an executor may run `op`; `namespaces` are those that its operator allows besides aten."""
    return refusal(op, namespaces) is None


def refusal(op: OpOverload, namespaces: Collection[str] = ()) -> str | None:
    """Why an executor refuses to run `op`, or None."""
    if op.namespace in namespaces or op.namespace in _namespaces:
        return None
    if op.namespace != "aten":
        return f"namespace {op.namespace} is not one that this executor allows. {CUSTOM_OPERATORS}"
    if op not in _VERDICTS:
        _VERDICTS[op] = _judge(op)
    return _VERDICTS[op]


def op_table(namespaces: Collection[str] = ()) -> dict[str, str]:
    """Name to schema digest of every op that this PyTorch has and the executor allows."""
    ops = (op for op in _all_ops({"aten", *namespaces, *_namespaces}) if allowed(op, namespaces))
    return {op_name(op): digest(op) for op in sorted(ops, key=op_name)}


def table_digest(table: dict[str, str]) -> str:
    """16 hex digits that name an op table, so that equal sides need not exchange it."""
    text = "\n".join(f"{name} {schema}" for name, schema in sorted(table.items()))
    return blake3(text.encode()).hexdigest(length=8)


def _judge(op: OpOverload) -> str | None:
    base = op._schema.name.split("::")[1]
    for pattern, reason in _REFUSED_NAME:
        if pattern.fullmatch(base):
            return reason
    for argument in op._schema.arguments:
        kind = _element(str(argument.type))
        if kind not in _PLAIN:
            return f"takes a {kind} as {argument.name}"
        if kind == "str" and argument.name not in _ENUMERATIONS:
            return f"takes free text as {argument.name}"
    for result in op._schema.returns:
        kind = _element(str(result.type))
        if kind not in _PLAIN:
            return f"returns a {kind}"
    return None


def _element(kind: str) -> str:
    """`Optional[List[Tensor]]` -> `Tensor`."""
    while match := re.fullmatch(r"(?:Optional|List)\[(.*)\]", kind):
        kind = match[1]
    return kind


def _all_ops(namespaces: Collection[str]) -> Iterator[OpOverload]:
    for qualified in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = qualified.partition("::")
        if namespace in namespaces:
            base, _, overload = rest.partition(".")
            yield resolve(f"{namespace}.{base}.{overload or 'default'}")
