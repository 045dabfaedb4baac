"""The list of factories is complete for the PyTorch that is installed."""

from __future__ import annotations

import torch

from remora.device.register import FACTORIES, makes_from_nothing

_OTHER_LAYOUTS = ("sparse", "quantized", "cudnn", "mkldnn", "nested", "_make_dep_token", "from_file")


def test_every_op_that_makes_a_tensor_from_nothing_is_listed() -> None:
    found = set()
    for full_name in torch._C._dispatch_get_all_op_names():
        if not full_name.startswith("aten::") or any(word in full_name for word in _OTHER_LAYOUTS):
            continue
        name, _, overload = full_name.removeprefix("aten::").partition(".")
        op = getattr(getattr(torch.ops.aten, name, None), overload or "default", None)
        if op is not None and makes_from_nothing(op):
            found.add(name)
    assert found == FACTORIES
