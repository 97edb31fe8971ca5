"""Attention over a square of tokens with decomposed relative positions, without the matrix of scores or of biases.

One program takes some queries of one head and goes over all keys in tiles, as in FlashAttention-2 (arXiv 2307.08691).
What a query adds for a key's row and for its column are two short vectors of the query (`relative_positions` makes
them, one small product each); a row's number is the same for all keys of the row, so where a tile is one row of the
square it is added to the tile's maximum instead of to every score, and the numbers of the columns, the same for every
row, stay in registers. Where a tile is not one row, the row and the column of each key come from the key's own index.

A head of 80 channels is taken as 64 and 16: shapes are powers of two, and 128 would be 60 % more arithmetic. The
exponentials are powers of two, with log2(e) in the factors.

Letters as in `amg/sam/vit.py`; in the kernel Q queries of a program, K keys of a step, F and R the first channels of a
head and the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E = tl.constexpr(math.log2(math.e))
LARGEST_ROW = 64
"""Keys in a tile that is one row, at most: its scores and the numbers of its columns both lie in registers."""


@dataclass(frozen=True, slots=True)
class Tiles:
    """Queries of a program, keys of a step, warps of a program, steps whose keys and values are fetched ahead."""

    queries: int
    keys: int
    warps: int
    stages: int


def tiles_for(dtype: torch.dtype, side: int) -> Tiles:
    """A fixed choice, so that the first image does not wait for a search.

    64 queries for each four warps are what a matrix instruction of Hopper takes. With two-byte numbers and heads of 80
    a program of 128 has 170 registers a thread and 80 KB of shared memory, alone on its multiprocessor; of programs of
    64 there would be three, but they would read every key twice as often. Four-byte numbers take twice the memory, and
    registers for their split products: half the queries, one step ahead. Where a tile is not a row, the biases of all
    its scores are fetched: smaller tiles. Counted by the compiler for sm_90; no choice here was timed.
    """
    row = LARGEST_ROW >= side >= 16 and side & (side - 1) == 0
    if dtype == torch.float32:
        return Tiles(64, side if row else 32, 4, 2)
    return Tiles(min(128, side * side), side, 8, 3) if row else Tiles(64, 64, 4, 2)


def attend(
    q_BhTc: Tensor, k_BhTc: Tensor, v_BhTc: Tensor, rows_BhTs: Tensor, columns_BhTs: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale q k + rows[y of the key] + columns[x of the key]) v as (B, T, h, c), T = s*s.

    float32, bfloat16 or float16, the last dimension of each tensor without gaps. Sums, softmax and biases are float32;
    float32 products are three of TF32, which loses nothing but float32's last bits. Without gradients.
    """
    return _operator(q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs, scale)


@torch.library.custom_op("amg::attend", mutates_args=())
def _operator(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    """`attend` as PyTorch's compiler sees it: one step that it does not look into."""
    return launch(q, k, v, rows, columns, scale=scale)


@_operator.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor, scale: float) -> Tensor:
    b, heads, tokens, channels = q.shape
    return q.new_empty(b, tokens, heads, channels)


def launch(
    q_BhTc: Tensor,
    k_BhTc: Tensor,
    v_BhTc: Tensor,
    rows_BhTs: Tensor,
    columns_BhTs: Tensor,
    *,
    scale: float,
    tiles: Tiles | None = None,
) -> Tensor:
    """`attend` with tiles of one's own."""
    b, heads, tokens, channels = q_BhTc.shape
    side = rows_BhTs.shape[-1]
    squares, distances = (q_BhTc, k_BhTc, v_BhTc), (rows_BhTs, columns_BhTs)
    assert side * side == tokens, f"{tokens} tokens; wanted a square of side {side}"
    assert all(x.shape == q_BhTc.shape and x.dtype == q_BhTc.dtype for x in squares)
    assert all(x.shape == (b, heads, tokens, side) for x in distances)
    assert all(x.stride(-1) == 1 for x in (*squares, *distances)), "the last dimension must have no gaps"
    assert all(x.stride(2) * tokens < 2**31 for x in (*squares, *distances)), "offsets in an image are 32 bits"
    out_BThc = q_BhTc.new_empty(b, tokens, heads, channels)
    tiles = tiles or tiles_for(q_BhTc.dtype, side)
    by_head = (*squares, *distances, out_BThc.transpose(1, 2))
    with torch.cuda.device_of(q_BhTc):  # Triton starts its programs on the current device
        _attend[(triton.cdiv(tokens, tiles.queries), b * heads)](
            *by_head,
            *[stride for x in by_head for stride in x.stride()[:3]],
            heads,
            scale * LOG2E.value,
            **shapes_of(side, channels, tiles),
            num_warps=tiles.warps,
            num_stages=tiles.stages,
        )
    return out_BThc


def shapes_of(side: int, channels: int, tiles: Tiles) -> dict[str, int]:
    """What the kernel is compiled for, beside the tensors' type."""
    first = max(16, 1 << (channels.bit_length() - 1))
    return {
        "SIDE": side,
        "CHANNELS": channels,
        "FIRST": first,
        "REST": max(16, triton.next_power_of_2(channels - first)) if channels > first else 0,
        "QUERIES": tiles.queries,
        "KEYS": tiles.keys,
        "TILE_IS_ROW": tiles.keys == side and side * side % tiles.queries == 0,
    }


@triton.jit
def _attend(
    q, k, v, rows, columns, out,
    q_image, q_head, q_token,
    k_image, k_head, k_token,
    v_image, v_head, v_token,
    row_image, row_head, row_token,
    column_image, column_head, column_token,
    out_image, out_head, out_token,
    heads, scale,
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
    FIRST: tl.constexpr,
    REST: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    TILE_IS_ROW: tl.constexpr,
):  # fmt: skip
    """`attend` for one head and some queries; `scale` has log2(e) in it."""
    image, head = (tl.program_id(1) // heads).to(tl.int64), (tl.program_id(1) % heads).to(tl.int64)
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    rows += image * row_image + head * row_head
    columns += image * column_image + head * column_head
    out += image * out_image + head * out_head

    tokens: tl.constexpr = SIDE * SIDE
    query_Q = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    first_QF = _read(q, query_Q, tokens, q_token, 0, FIRST, CHANNELS, TILE_IS_ROW)
    found_QF = tl.zeros([QUERIES, FIRST], tl.float32)
    if REST > 0:
        rest_QR = _read(q, query_Q, tokens, q_token, FIRST, REST, CHANNELS, TILE_IS_ROW)
        found_QR = tl.zeros([QUERIES, REST], tl.float32)
    if TILE_IS_ROW:
        columns_QK = LOG2E * _read(columns, query_Q, tokens, column_token, 0, KEYS, SIDE, True).to(tl.float32)
    top_Q = tl.full([QUERIES], -float("inf"), tl.float32)
    total_Q = tl.zeros([QUERIES], tl.float32)

    for begin in range(0, tokens, KEYS):
        key_K = begin + tl.arange(0, KEYS)
        key_KF = _read(k, key_K, tokens, k_token, 0, FIRST, CHANNELS, TILE_IS_ROW)
        scores_QK = tl.dot(first_QF, tl.trans(key_KF), input_precision="tf32x3")
        if REST > 0:
            key_KR = _read(k, key_K, tokens, k_token, FIRST, REST, CHANNELS, TILE_IS_ROW)
            scores_QK = tl.dot(rest_QR, tl.trans(key_KR), scores_QK, input_precision="tf32x3")

        if TILE_IS_ROW:
            scores_QK = scores_QK * scale + columns_QK
            row_Q = LOG2E * tl.load(rows + query_Q * row_token + begin // SIDE).to(tl.float32)
            above_Q = tl.maximum(top_Q, tl.max(scores_QK, 1) + row_Q)
            weights_QK = tl.exp2(scores_QK - (above_Q - row_Q)[:, None])
        else:
            inside_QK = (query_Q < tokens)[:, None] & (key_K < tokens)[None, :]
            row_QK = tl.load(rows + query_Q[:, None] * row_token + (key_K // SIDE)[None, :], inside_QK, 0.0)
            column_QK = tl.load(columns + query_Q[:, None] * column_token + (key_K % SIDE)[None, :], inside_QK, 0.0)
            scores_QK = scores_QK * scale + LOG2E * (row_QK.to(tl.float32) + column_QK.to(tl.float32))
            scores_QK = tl.where((key_K < tokens)[None, :], scores_QK, -float("inf"))
            above_Q = tl.maximum(top_Q, tl.max(scores_QK, 1))
            weights_QK = tl.exp2(scores_QK - above_Q[:, None])

        less_Q = tl.exp2(top_Q - above_Q)
        top_Q = above_Q
        total_Q = total_Q * less_Q + tl.sum(weights_QK, 1)
        value_KF = _read(v, key_K, tokens, v_token, 0, FIRST, CHANNELS, TILE_IS_ROW)
        weights_QK = weights_QK.to(value_KF.dtype)
        found_QF = tl.dot(weights_QK, value_KF, found_QF * less_Q[:, None], input_precision="tf32x3")
        if REST > 0:
            value_KR = _read(v, key_K, tokens, v_token, FIRST, REST, CHANNELS, TILE_IS_ROW)
            found_QR = tl.dot(weights_QK, value_KR, found_QR * less_Q[:, None], input_precision="tf32x3")

    _write(out, query_Q, tokens, out_token, found_QF / total_Q[:, None], 0, FIRST, CHANNELS)
    if REST > 0:
        _write(out, query_Q, tokens, out_token, found_QR / total_Q[:, None], FIRST, REST, CHANNELS)


@triton.jit
def _read(
    base, token_T, tokens, pitch, BEGIN: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, INSIDE: tl.constexpr
):
    """WIDTH numbers of each token from BEGIN on, zeros for those that are not there; INSIDE: all tokens are."""
    channel_W = BEGIN + tl.arange(0, WIDTH)
    at_TW = base + token_T[:, None] * pitch + channel_W[None, :]
    if INSIDE and BEGIN + WIDTH <= CHANNELS:
        numbers_TW = tl.load(at_TW)
    else:
        numbers_TW = tl.load(at_TW, (token_T < tokens)[:, None] & (channel_W < CHANNELS)[None, :], 0.0)
    return numbers_TW


@triton.jit
def _write(base, token_T, tokens, pitch, numbers_TW, BEGIN: tl.constexpr, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    channel_W = BEGIN + tl.arange(0, WIDTH)
    at_TW = base + token_T[:, None] * pitch + channel_W[None, :]
    inside_TW = (token_T < tokens)[:, None] & (channel_W < CHANNELS)[None, :]
    tl.store(at_TW, numbers_TW.to(base.dtype.element_ty), inside_TW)
