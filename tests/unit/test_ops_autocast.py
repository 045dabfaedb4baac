"""The lists of autocast against those of this PyTorch's dispatcher."""

from __future__ import annotations

import pytest
import torch

from remora.ops.autocast import COME_APART, LISTED, POLICIES, WITH_DTYPE
from remora.ops.composites import COMPOSITES

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


# Composites whose parts are in no list: nothing is cast in them, on either device.
CAST_NOWHERE = {
    "cpu": {
        "bilinear",
        "layer_norm",
        "rms_norm",
        "group_norm",
        "softmax.int",
        "log_softmax.int",
        "cosine_similarity",
    }
    | {"upsample_nearest2d.vec", "upsample_bilinear2d.vec", "upsample_bicubic2d.vec"}
    | COME_APART,
    "cuda": {"max_pool3d", "linalg_eigvalsh", "linalg_svdvals"},
}
NEVER_CAST = {"max_pool1d", "max_pool2d", "adaptive_avg_pool2d", "repeat_interleave.self_int"}
NEVER_CAST |= {"native_channel_shuffle", "silu_backward", "mish_backward"}


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_every_composite_that_is_kept_whole_has_its_policy(kind: str) -> None:
    """A new one has to be thought about: its parts may be cast where it, as a whole, would not be."""
    whole = {name.removeprefix("aten.").removesuffix(".default") for name in COMPOSITES}
    assert whole - set(POLICIES[kind]) <= CAST_NOWHERE[kind] | NEVER_CAST
