"""The kernels of loose.py for a GPU."""

# ruff: noqa: N803, N806
# mypy: ignore-errors
# Triton reads the functions' source, so what they take is not typed.

import math

import torch
import triton
import triton.language as tl

from remora.executor.worker.loose import WIDTH

# legend: B batch, H heads of keys, G heads of queries to each, N rows of a cache, D head dimension, S splits

SPLITS = 32  # of a cache: as many programs for each head share it
BLOCK = 32  # rows of a cache that a program looks at together
LEAST_GROUP = 16  # what the matrix unit takes
COLUMNS = 2048  # of a matrix that a program of `linear` looks at together
MOVED = 1024  # elements that a program of `append` moves
_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def append(new, row, dim):
    """As loose.Append."""
    shape = new.shape
    outer, step = math.prod(shape[:dim]), math.prod(shape[dim + 1 :])
    many = shape[dim] * step
    block = min(MOVED, triton.next_power_of_2(many))
    words = new.contiguous().view(_WORDS[new.element_size()])
    _append[(outer, triton.cdiv(many, block))](words, row, MANY=many, STEP=step, BLOCK=block)


def attend(query, new_keys, new_values, rows, scale=None):
    """As loose.Attention."""
    b, heads, _, d = query.shape
    h = new_keys.shape[1]
    group, pairs, width = heads // h, b * h, max(16, triton.next_power_of_2(d))
    query, new_keys, new_values = (
        t if t.stride(3) == 1 else t.contiguous() for t in (query, new_keys, new_values)
    )
    sums = torch.empty(pairs, SPLITS, group, width, dtype=torch.float32, device=query.device)
    tops = torch.empty(2, pairs, SPLITS, group, dtype=torch.float32, device=query.device)
    out = torch.empty(b, heads, 1, d, dtype=query.dtype, device=query.device)
    _attend_split[(pairs, SPLITS)](
        query,
        new_keys,
        new_values,
        rows,
        sums,
        tops[0],
        tops[1],
        d**-0.5 if scale is None else scale,
        *query.stride()[:2],
        *new_keys.stride()[:2],
        *new_values.stride()[:2],
        H=h,
        G=group,
        G_PADDED=max(LEAST_GROUP, triton.next_power_of_2(group)),
        D=d,
        D_PADDED=width,
        S=SPLITS,
        ROWS=BLOCK,
        WIDTH=WIDTH,
    )
    _join[(b * heads,)](sums, tops[0], tops[1], out, G=group, D=d, D_PADDED=width, S=SPLITS)
    return out


def linear(x, weight):
    """x [..., K] of one row, weight [N, K]; [..., N]."""
    n, k = weight.shape
    y = torch.empty(*x.shape[:-1], n, dtype=x.dtype, device=x.device)
    _one_row[(n,)](x, weight, y, k, COLUMNS=min(COLUMNS, triton.next_power_of_2(k)))
    return y


@triton.jit
def _append(new, row, MANY: tl.constexpr, STEP: tl.constexpr, BLOCK: tl.constexpr):
    """What is new of one row of matrices, as words, to behind what is there."""
    outer = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    cache = tl.load(row).to(tl.pointer_type(new.dtype.element_ty))
    behind = (outer * tl.load(row + 1) + tl.load(row + 2)) * STEP
    tl.store(cache + behind + at, tl.load(new + outer * MANY + at, mask=at < MANY), mask=at < MANY)


@triton.jit
def _attend_split(
    query, new_keys, new_values, rows, sums, tops, weights, scale,
    q_b, q_h, k_b, k_h, v_b, v_h,
    H: tl.constexpr, G: tl.constexpr, G_PADDED: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr,
    S: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """One head of keys, one split of its rows: softmax's sums so far. The split that ends the cache appends."""
    pair, split = tl.program_id(0), tl.program_id(1)
    b, h = pair // H, pair % H
    kind = tl.pointer_type(query.dtype.element_ty)
    keys = tl.load(rows).to(kind) + pair.to(tl.int64) * tl.load(rows + 1) * D
    values = tl.load(rows + WIDTH).to(kind) + pair.to(tl.int64) * tl.load(rows + WIDTH + 1) * D
    last = tl.load(rows + 2).to(tl.int32)  # where the new one comes
    share = tl.cdiv(tl.cdiv(last + 1, S), ROWS) * ROWS
    first = split * share
    end = tl.minimum(first + share, last + 1)

    d, g = tl.arange(0, D_PADDED), tl.arange(0, G_PADDED)
    of_head = d < D
    q_GD = tl.load(
        query + b * q_b + (h * G + g)[:, None] * q_h + d[None, :],
        mask=(g < G)[:, None] & of_head[None, :],
        other=0.0,
    )
    new_k_D = tl.load(new_keys + b * k_b + h * k_h + d, mask=of_head, other=0.0)
    new_v_D = tl.load(new_values + b * v_b + h * v_h + d, mask=of_head, other=0.0)
    mine = (first <= last) & (last < end)
    tl.store(keys + last.to(tl.int64) * D + d, new_k_D, mask=of_head & mine)
    tl.store(values + last.to(tl.int64) * D + d, new_v_D, mask=of_head & mine)

    top_G = tl.full([G_PADDED], float("-inf"), tl.float32)
    weight_G = tl.zeros([G_PADDED], tl.float32)
    sum_GD = tl.zeros([G_PADDED, D_PADDED], tl.float32)
    for start in range(first, end, ROWS):
        n = start + tl.arange(0, ROWS)
        there = (n < last)[:, None] & of_head[None, :]
        place = n.to(tl.int64)[:, None] * D + d[None, :]
        k_ND = tl.load(keys + place, mask=there, other=0.0)
        k_ND = tl.where((n == last)[:, None], new_k_D[None, :], k_ND)
        score_GN = tl.dot(q_GD, tl.trans(k_ND), input_precision="ieee") * scale
        score_GN = tl.where((n <= last)[None, :], score_GN, float("-inf"))
        higher_G = tl.maximum(top_G, tl.max(score_GN, 1))
        part_GN = tl.exp(score_GN - higher_G[:, None])
        less_G = tl.exp(top_G - higher_G)
        weight_G = weight_G * less_G + tl.sum(part_GN, 1)
        v_ND = tl.load(values + place, mask=there, other=0.0)
        v_ND = tl.where((n == last)[:, None], new_v_D[None, :], v_ND)
        sum_GD = sum_GD * less_G[:, None] + tl.dot(part_GN.to(v_ND.dtype), v_ND, input_precision="ieee")
        top_G = higher_G
    at = (pair * S + split) * G + g
    tl.store(tops + at, top_G, mask=g < G)
    tl.store(weights + at, weight_G, mask=g < G)
    tl.store(sums + at[:, None] * D_PADDED + d[None, :], sum_GD, mask=(g < G)[:, None])


@triton.jit
def _join(
    sums, tops, weights, out, G: tl.constexpr, D: tl.constexpr, D_PADDED: tl.constexpr, S: tl.constexpr
):  # fmt: skip
    """One head of queries: what its splits give together."""
    head = tl.program_id(0)
    at_S = ((head // G) * S + tl.arange(0, S)) * G + head % G
    d = tl.arange(0, D_PADDED)
    top_S = tl.load(tops + at_S)
    part_S = tl.exp(top_S - tl.max(top_S, 0))
    whole = tl.sum(part_S * tl.load(weights + at_S), 0)
    sums_SD = tl.load(sums + at_S[:, None] * D_PADDED + d[None, :])
    made_D = tl.sum(sums_SD * part_S[:, None], 0) / whole
    tl.store(out + head * D + d, made_D.to(out.dtype.element_ty), mask=d < D)


@triton.jit
def _one_row(x, weight, y, k, COLUMNS: tl.constexpr):
    """One element of a matrix times a row."""
    n = tl.program_id(0).to(tl.int64)
    sums = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, k, COLUMNS):
        at = start + tl.arange(0, COLUMNS)
        row = tl.load(weight + n * k + at, mask=at < k, other=0.0).to(tl.float32)
        sums += row * tl.load(x + at, mask=at < k, other=0.0).to(tl.float32)
    tl.store(y + n, tl.sum(sums, 0).to(y.dtype.element_ty))
