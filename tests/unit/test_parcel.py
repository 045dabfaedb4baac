"""Heads of parcels: what a peer may claim, and what is refused before anything is allocated for it."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from remora.errors import ProtocolError
from remora.executor.worker.packing import pack, unpack
from remora.ops.dtypes import BY_NAME
from remora.wire.codec import encode
from remora.wire.parcel import ELEMENT_NBYTES, Parcel, Part, decode_parcel, encode_parcel, padded

PART = Part((1, 0, 0), 0, "float32", (2, 3), (3, 1), 0)
PUSH = "00112233aabbccdd"


def parcel_of(*parts: Part, storages: tuple[int, ...] = (24,)) -> bytes:
    return encode(Parcel(PUSH, storages, parts or (PART,)))


def test_every_dtype_that_travels_has_its_size():
    assert {name: dtype.itemsize for name, dtype in BY_NAME.items()} == ELEMENT_NBYTES


def test_a_parcel_that_fits_is_taken():
    parcel = decode_parcel(parcel_of(), body_nbytes=32)
    assert (parcel.nbytes, parcel.body_nbytes, parcel.parts) == (24, 32, (PART,))
    empty = Part((2, 0, 0), 0, "float32", (0, 5), (5, 1), 7)  # PyTorch has such views
    assert decode_parcel(parcel_of(PART, empty)).parts[1] == empty


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"shape": (2, 4), "stride": (3, 1)}, "beyond its storage of 24 bytes"),
        ({"offset": 1}, "beyond its storage"),
        ({"stride": (4, 1)}, "beyond its storage"),
        ({"dtype": "float64"}, "beyond its storage"),
        ({"stride": (1,)}, "2 sizes with 1 strides"),
        ({"shape": (1 << 40, 1 << 40), "stride": (0, 0)}, "has more than"),
        ({"storage": 1}, "storage 1 of 1"),
        ({"dtype": "quint8"}, "no dtype 'quint8'"),
        ({"conjugate": True}, "cannot be conjugated"),
    ],
)
def test_a_view_that_is_none_is_refused(change, why):
    with pytest.raises(ProtocolError, match=why):
        decode_parcel(parcel_of(msgspec.structs.replace(PART, **change)))


@pytest.mark.parametrize(
    ("head", "body_nbytes", "why"),
    [
        (parcel_of(), 24, "24 bytes for storages of 32"),
        (parcel_of(PART, PART), None, "names a value twice"),
        (parcel_of(storages=(24, 0)), None, "a storage without a value"),
        (parcel_of(storages=(1 << 40, 1 << 40)), None, "the limit is"),
        (encode(Parcel(PUSH, (24,), ())), None, "malformed"),
        (encode(Parcel("../../etc", (24,), (PART,))), None, "malformed"),
        (parcel_of(msgspec.structs.replace(PART, stride=(-3, 1))), None, "malformed"),
        (parcel_of(msgspec.structs.replace(PART, shape=(1,) * 65, stride=(1,) * 65)), None, "malformed"),
        (b"\xc1", None, "malformed"),
        (bytes(2 << 20), None, "the limit is"),
    ],
)
def test_a_malformed_parcel_is_refused(head, body_nbytes, why):
    with pytest.raises(ProtocolError, match=why):
        decode_parcel(head, body_nbytes)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_else(head):
    with suppress(ProtocolError):
        decode_parcel(head)


# ---------------------------------------------------------------- there and back


def sent(tensors, whole=False):
    """What arrives, and how many bytes went."""
    names = [(1, row, 0) for row in range(len(tensors))]
    packed = pack(PUSH, names, tensors, whole)
    parcel = decode_parcel(encode_parcel(packed.parcel))
    body = torch.zeros(max(1, parcel.body_nbytes), dtype=torch.uint8)
    packed.into(body)
    storages, at = [], 0
    for nbytes in parcel.storages:
        storages.append(body[at : at + nbytes].clone())
        at += padded(nbytes)
    made = unpack(parcel, storages)
    return [made[name] for name in names], parcel.nbytes


def base():
    return torch.arange(10_000.0).reshape(100, 100)


@pytest.mark.parametrize(
    ("tensor", "nbytes"),
    [
        (base(), 40_000),
        (base().t(), 40_000),
        (base()[3:5], 800),
        (base()[:, :2], 800),
        (base()[:, :2].t(), 800),
        (base()[7, 9], 4),
        (base()[:1].expand(1000, 100), 400),
        (base()[:0], 0),
        (torch.empty(0, 3), 0),
        (base()[:, :2].to(torch.bfloat16), 400),
        (base()[:, ::2].bool()[:3], 150),
        (torch.randn(40, 40, dtype=torch.complex64)[:2].conj(), 640),
        (torch.randn(40, dtype=torch.complex128).conj().imag, 640),
        (torch.arange(4).to(torch.uint16), 8),
        (torch.randn(4, 4).to(torch.float8_e4m3fn), 16),
    ],
)
def test_a_lone_value_costs_what_it_holds(tensor, nbytes):
    (came,), went = sent([tensor])
    assert went <= nbytes + 16 or went <= 1.25 * nbytes + 256
    assert (came.dtype, came.shape) == (tensor.dtype, tensor.shape)
    assert (came.is_conj(), came.is_neg()) == (tensor.is_conj(), tensor.is_neg())
    assert came.reshape(-1).tolist() == tensor.reshape(-1).tolist()


def test_a_lone_view_keeps_the_order_of_its_dimensions():
    view = torch.zeros(8, 30, 40, 50)[:, 1:3, :5, :6].permute(2, 0, 3, 1)
    (came,), _ = sent([view])
    order = sorted(range(4), key=view.stride)
    assert sorted(range(4), key=came.stride) == order
    assert came.permute(*reversed(order)).is_contiguous()


def test_aliases_stay_aliases_and_others_do_not_become_ones():
    x, other = base(), torch.zeros(1000)
    (row, column, alone, bits), went = sent([x[50], x[:60, 3], other, x.view(torch.int32)[50]])
    assert went < 24_000 + 4_000 + 100
    row[3] = -1.0
    assert column[50] == -1.0
    assert bits[3] == torch.tensor(-1.0).view(torch.int32)
    assert len({t.untyped_storage()._cdata for t in (row, column, alone, bits)}) == 2


def test_whole_keeps_offset_stride_and_size_of_the_storage():
    view = base()[2:4, ::3]
    (came,), went = sent([view], whole=True)
    assert went == 40_000
    assert (came.storage_offset(), came.stride()) == (200, (100, 3))
    assert torch.equal(came.as_strided((2,), (1,), 5), torch.tensor([5.0, 6.0]))


def test_what_has_no_bytes_is_refused_by_name():
    with pytest.raises(TypeError, match=r"value \(1, 0, 0\), torch.sparse_coo"):
        sent([torch.eye(3).to_sparse()])


@given(st.data())
def test_random_views_of_random_storages(data):
    tensors = []
    for seed in range(data.draw(st.integers(1, 2))):
        whole = torch.arange(seed * 1000, seed * 1000 + 360).reshape(6, 5, 4, 3)
        for _ in range(data.draw(st.integers(1, 3))):
            view = whole
            for dim in range(4):
                start = data.draw(st.integers(0, view.shape[dim]))
                length = data.draw(st.integers(0, view.shape[dim] - start))
                view = view.narrow(dim, start, length)
            view = view.permute(*data.draw(st.permutations(range(4))))
            tensors.append(view[..., :: data.draw(st.integers(1, 2))])
    came, _ = sent(tensors, whole=data.draw(st.booleans()))
    for one, other in zip(came, tensors, strict=True):
        assert torch.equal(one, other)
    for i, one in enumerate(tensors):
        for j, other in enumerate(tensors):
            same = one.untyped_storage()._cdata == other.untyped_storage()._cdata
            assert (came[i].untyped_storage()._cdata == came[j].untyped_storage()._cdata) == same
