"""A tile of image tokens after one or two blocks, for one prompt; `decoder.py` says what for, and has the letters."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from amg.kernels.gpu.decoder import ImageTokens, Told1, Told2


def shared_arguments(image: ImageTokens, told1: Told1, told2: Told2 | None) -> tuple[Any, ...]:
    """The arguments of `keys_tile` that are the same for all programs, in their order."""
    once = (image.ask_IC, image.base_ID, image.position_ID, told1.k_PTC, told1.told_PRD)
    norm1 = (told1.norm.weight, told1.norm.bias, told1.norm.eps)
    if told2 is None:
        return *once, *norm1, None, None, None, None, None, None, 0.0
    twice = (told2.ask_PRD, told2.bias_PR, told2.told_PRD, told2.out_D)
    return *once, *norm1, *twice, told2.norm.weight, told2.norm.bias, told2.norm.eps


def padded_tokens(tokens: int) -> int:
    """Tokens of a prompt in a kernel, whose shapes are powers of two; the last ones have no share."""
    return triton.next_power_of_2(tokens)


@triton.jit
def load_rows(rows_PRD, p, R, RP: tl.constexpr, D: tl.constexpr):
    """A prompt's rows (RP, D), zeros below the last."""
    r_R, d_D = tl.arange(0, RP), tl.arange(0, D)
    return tl.load(rows_PRD + (p * R + r_R)[:, None] * D + d_D[None, :], mask=(r_R < R)[:, None], other=0.0)


@triton.jit
def load_tokens(tokens_ID, i_N, here_N, D: tl.constexpr):
    """Image tokens (N, D) of these places, zeros where there is none."""
    d_D = tl.arange(0, D)
    return tl.load(tokens_ID + i_N[:, None] * D + d_D[None, :], mask=here_N[:, None], other=0.0)


@triton.jit
def normed(x_NX, weight_X, bias_X, eps, X: tl.constexpr):
    """Layer norm over the channels in float32."""
    x_X = tl.arange(0, X)
    centered_NX = x_NX - (tl.sum(x_NX, 1) / X)[:, None]
    scale_N = tl.rsqrt(tl.sum(centered_NX * centered_NX, 1) / X + eps)
    return centered_NX * scale_N[:, None] * tl.load(weight_X + x_X)[None, :] + tl.load(bias_X + x_X)[None, :]


@triton.jit
def _shares(scores_NR, R, TOKENS: tl.constexpr, HEADS: tl.constexpr):
    """Softmax over the tokens of each head; rows lie token by token, so most of it stays within a thread."""
    N: tl.constexpr = scores_NR.shape[0]
    scores_NR = tl.where((tl.arange(0, TOKENS * HEADS) < R)[None, :], scores_NR, -float("inf"))
    scores_NTh = tl.reshape(scores_NR, (N, TOKENS, HEADS))
    weights_NTh = tl.exp(scores_NTh - tl.max(scores_NTh, 1)[:, None, :])
    shares_NTh = weights_NTh / tl.sum(weights_NTh, 1)[:, None, :]
    return tl.reshape(shares_NTh, (N, TOKENS * HEADS))


@triton.jit
def _keys1(
    ask_IC,
    base_ID,
    k_PTC,
    told_PRD,
    weight_D,
    bias_D,
    eps,
    p,
    i_N,
    here_N,
    R,
    rows_again,
    again,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """The image tokens (N, D) after block 1, float32. Of a row's key only the channels of its head are not zero."""
    RP: tl.constexpr = TOKENS * HEADS
    r_R, c_C = tl.arange(0, RP), tl.arange(0, C)
    own_RC = (c_C // (C // HEADS))[None, :] == (r_R % HEADS)[:, None]
    k_RC = tl.load(
        k_PTC + rows_again + (p * (R // HEADS) + r_R // HEADS)[:, None] * C + c_C[None, :],
        mask=own_RC & (r_R < R)[:, None],
        other=0.0,
    )
    ask_NC = load_tokens(ask_IC, i_N, here_N, C)
    shares_NR = _shares(tl.dot(ask_NC, tl.trans(k_RC), input_precision=PRODUCTS), R, TOKENS, HEADS)
    told_RD = load_rows(told_PRD + rows_again, p, R, RP, D)
    base_ND = load_tokens(base_ID, i_N, here_N, D).to(tl.float32)
    keys_ND = tl.dot(shares_NR.to(told_RD.dtype), told_RD, acc=base_ND, input_precision=PRODUCTS)
    return normed(keys_ND, weight_D + again, bias_D + again, eps, D)


@triton.jit
def _keys2(
    keys_ND,
    position_ID,
    ask_PRD,
    bias_PR,
    told_PRD,
    out_D,
    weight_D,
    bias_D,
    eps,
    p,
    i_N,
    here_N,
    R,
    rows_again,
    again,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    D: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """The image tokens after block 2 from those after block 1, float32."""
    RP: tl.constexpr = TOKENS * HEADS
    r_R, d_D = tl.arange(0, RP), tl.arange(0, D)
    ask_RD = load_rows(ask_PRD + rows_again, p, R, RP, D)
    placed_ND = keys_ND + load_tokens(position_ID, i_N, here_N, D).to(tl.float32)
    scores_NR = tl.dot(placed_ND.to(ask_RD.dtype), tl.trans(ask_RD), input_precision=PRODUCTS)
    added_R = tl.load(bias_PR + p * R + r_R, mask=r_R < R, other=0.0)
    shares_NR = _shares(scores_NR + added_R[None, :], R, TOKENS, HEADS)
    told_RD = load_rows(told_PRD + rows_again, p, R, RP, D)
    base_ND = keys_ND + tl.load(out_D + again + d_D)[None, :]
    keys_ND = tl.dot(shares_NR.to(told_RD.dtype), told_RD, acc=base_ND, input_precision=PRODUCTS)
    return normed(keys_ND, weight_D + again, bias_D + again, eps, D)


@triton.jit
def keys_tile(
    ask_IC,
    base_ID,
    position_ID,
    k1_PTC,
    told1_PRD,
    weight1_D,
    bias1_D,
    eps1,
    ask2_PRD,
    bias2_PR,
    told2_PRD,
    out2_D,
    weight2_D,
    norm2_D,
    eps2,
    p,
    i_N,
    here_N,
    R,
    rows_again,
    again,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """The image tokens (N, D) of the places `i_N` after one or two blocks, for prompt `p`, float32.

    `rows_again` and `again` are zeros added to the addresses of the prompt's rows and of the vectors: with one that a
    compiler cannot know, in a loop, it loads them for each tile, and does not keep them in registers for all.
    """
    keys_ND = _keys1(
        ask_IC, base_ID, k1_PTC, told1_PRD, weight1_D, bias1_D, eps1, p, i_N, here_N, R, rows_again, again,
        TOKENS, HEADS, C, D, PRODUCTS,
    )  # fmt: skip
    if BLOCKS == 2:
        keys_ND = _keys2(
            keys_ND, position_ID, ask2_PRD, bias2_PR, told2_PRD, out2_D, weight2_D, norm2_D, eps2, p, i_N, here_N, R,
            rows_again, again, TOKENS, HEADS, D, PRODUCTS,
        )  # fmt: skip
    return keys_ND
