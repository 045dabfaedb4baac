"""The lists of autocast against those of this PyTorch's dispatcher."""

from __future__ import annotations

import pytest
import torch

from remora.ops.autocast import LISTED, WITH_DTYPE

# With named dimensions, for which newer versions have no op.
MAY_MISS = {"prod.dim_Dimname", "index_copy.dimname"}
NEWEST = (2, 13)  # older versions have fewer entries


@pytest.mark.parametrize(("kind", "key"), [("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")])
def test_the_lists_are_pytorchs(kind: str, key: str) -> None:
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")]
    theirs = {
        n.removeprefix("aten::") for n in names if torch._C._dispatch_has_kernel_for_dispatch_key(n, key)
    }
    assert theirs - set(LISTED[kind]) == set()
    if tuple(map(int, torch.__version__.split(".")[:2])) >= NEWEST:
        assert set(LISTED[kind]) - theirs - MAY_MISS == set()


def test_overloads_with_a_dtype_exist() -> None:
    for name in WITH_DTYPE.values():
        assert getattr(torch.ops.aten.norm, name.partition(".")[2])._schema.arguments[-1].name == "dtype"
