"""What the schema says of an op, on ops whose answer is known; and names from a peer find only real ops."""

from __future__ import annotations

import pytest
import torch

from remora.ops.permission import op_table
from remora.ops.schema import OpTraits, digest, op_name, resolve, traits


def of(name: str) -> OpTraits:
    return traits(resolve(f"aten.{name}"))


def test_every_allowed_name_resolves_to_an_op_of_that_name() -> None:
    for name in op_table():
        assert op_name(resolve(name)) == name == traits(resolve(name)).name


@pytest.mark.parametrize(
    "name",
    [
        "aten.append.t",  # TorchScript's, not the dispatcher's
        "aten.__class__.mro",
        "aten.add.__init__",
        "aten.add.default",
        "aten.nothing.default",
        "load_library.x.y",
        "_ops.OpOverload.x",
        "aten.add",
        "aten.add.Tensor.out",
        "",
    ],
)
def test_names_that_are_no_op_are_a_lookup_error(name: str) -> None:
    with pytest.raises(LookupError, match=r"no op named|not an op name"):
        resolve(name)


def test_digest_differs_between_overloads_and_is_stable() -> None:
    assert digest(resolve("aten.relu.default")) == digest(torch.ops.aten.relu.default)
    assert digest(resolve("aten.add.Tensor")) != digest(resolve("aten.add.Scalar"))
    assert len(bytes.fromhex(digest(resolve("aten.add.Tensor")))) == 8


@pytest.mark.parametrize(
    ("name", "mutates"),
    [
        ("add.Tensor", ()),
        ("add_.Tensor", (0,)),
        ("add.out", ("out",)),
        ("sort.values", ("values", "indices")),
        ("_foreach_add_.Scalar", (0,)),
        ("_fused_adamw_.default", (0, 1, 2, 3, 4)),
        ("rrelu_with_noise.default", (1,)),
        ("native_batch_norm.default", (3, 4)),  # its schema does not say so
    ],
)
def test_written_arguments(name: str, mutates: tuple[int | str, ...]) -> None:
    assert of(name).mutates == mutates


def test_statistics_are_written_only_when_training() -> None:
    call = [torch.ones(2, 3), None, None, torch.zeros(3), torch.ones(3), True, 0.1, 1e-5]
    norm = of("native_batch_norm.default")
    for training in (True, False):
        before = [call[i].clone() for i in (3, 4)]
        call[5] = training
        torch.ops.aten.native_batch_norm.default(*call)
        changed = tuple(i for i, old in zip((3, 4), before, strict=True) if not torch.equal(call[i], old))
        assert norm.writes(call) == changed == ((3, 4) if training else ())


@pytest.mark.parametrize(
    ("name", "views", "may_alias"),
    [
        ("view.default", ((0, 0),), False),
        ("split.Tensor", ((0, 0),), False),
        ("unbind.int", ((0, 0),), False),
        ("_unsafe_view.default", ((0, 0),), False),  # its schema does not say so
        ("chunk.default", ((0, 0),), True),
        ("reshape.default", ((0, 0),), True),
        ("contiguous.default", ((0, 0),), True),
        ("to.dtype", ((0, 0),), True),
        ("flatten.using_ints", ((0, 0),), True),
        ("dropout.default", (), True),
        ("clone.default", (), False),
        ("add.Tensor", (), False),
        ("linear.default", (), False),
    ],
)
def test_outputs_that_alias_an_argument(
    name: str, views: tuple[tuple[int, int], ...], may_alias: bool
) -> None:
    assert (of(name).views, of(name).may_alias) == (views, may_alias)


def test_in_place_ops_return_what_they_wrote() -> None:
    assert of("add_.Tensor").in_place
    assert not of("add.out").in_place
    assert of("add.out").written == ((0, "out"),)
    assert of("sort.values").written == ((0, "values"), (1, "indices"))
    assert not of("_foreach_add_.Scalar").in_place  # it returns nothing


@pytest.mark.parametrize(
    ("name", "args", "draws"),
    [
        ("add.Tensor", (), False),
        ("normal_.default", (), True),
        ("bernoulli.p", (), True),
        ("multinomial.default", (), True),
        ("dropout.default", (None, 0.5, True), True),
        ("dropout.default", (None, 0.5, False), False),
        ("scaled_dot_product_attention.default", (None, None, None), False),
        ("scaled_dot_product_attention.default", (None, None, None, None, 0.1), True),
        ("lstm.input", (None, [], [], True, 2, 0.5, True, False, True), True),
        ("lstm.input", (None, [], [], True, 2, 0.0, True, False, True), False),
        ("lstm.input", (None, [], [], True, 2, 0.5, False, False, True), False),
    ],
)
def test_calls_that_draw_random_numbers(name: str, args: tuple[object, ...], draws: bool) -> None:
    assert of(name).draws(args) is draws
    assert not (draws and of(name).pure)


def test_shapes_that_depend_on_contents() -> None:
    dynamic = [
        "nonzero.default",
        "masked_select.default",
        "_unique2.default",
        "item.default",
        "equal.default",
    ]
    assert all(of(name).dynamic_shape for name in [*dynamic, "repeat_interleave.Tensor", "index.Tensor"])
    assert not any(of(name).dynamic_shape for name in ("add.Tensor", "topk.default", "index_put.default"))


def test_writes_of_metadata() -> None:
    names = [
        "t_",
        "squeeze_",
        "unsqueeze_",
        "transpose_",
        "swapaxes_",
        "resize_",
        "set_",
        "as_strided_",
        "detach_",
    ]
    assert all(of(f"{name}.default").metadata_only_write for name in names)
    assert of("set_.source_Tensor").metadata_only_write
    assert not any(of(name).metadata_only_write for name in ("add_.Tensor", "copy_.default", "zero_.default"))


def test_returns_and_devices() -> None:
    assert of("equal.default").returns_scalar
    assert not of("equal.default").returns_tensor
    assert of("item.default").returns_scalar
    assert (of("max.dim").n_returns, of("max.dim").returns_tensor) == (2, True)
    assert of("empty.memory_format").device_arg == "device"
    assert of("to.device").device_arg == 1
    assert of("add.Tensor").device_arg is None
