"""Passes 1 and 2 of the mask decoder: what prompt tokens see in image tokens. Plan and letters are in `decoder.py`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amg.kernels.gpu.decoder import ImageTokens, Launch, Told1, Told2
from amg.kernels.gpu.keys import keys_tile, load_rows, load_tokens, padded_tokens, shared_arguments


def look(
    image: ImageTokens,
    told1: Told1,
    told2: Told2 | None,
    rows_PRD: Tensor,
    heads: int,
    launch: Launch,
    *,
    most_PRS: Tensor,
    total_PRS: Tensor,
    seen_PRSD: Tensor,
) -> None:
    """What each prompt's rows see in the image tokens after block 1, with `told2` after block 2; in parts.

    Of every span: a row's highest score, the sum of the exponentials of its scores less that one, and the sum of the
    image tokens times these. The three outputs are float32 and written whole.
    """
    p, r, d = rows_PRD.shape
    tokens = len(image.ask_IC)
    with torch.cuda.device_of(rows_PRD):  # Triton starts its programs on the current device
        _look[(p, triton.cdiv(tokens, launch.span))](
            *shared_arguments(image, told1, told2),
            rows_PRD,
            most_PRS,
            total_PRS,
            seen_PRSD,
            tokens,
            launch.span,
            0,
            r,
            BLOCKS=2 if told2 else 1,
            TOKENS=padded_tokens(r // heads),
            HEADS=heads,
            C=image.ask_IC.shape[1],
            D=d,
            TILE=launch.look_tile,
            HELD=launch.held,
            PRODUCTS=launch.products,
            num_warps=launch.warps,
            num_stages=1,  # nothing is read ahead: a tile's operands already fill the shared memory
        )


@triton.jit
def _look(
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
    rows_PRD,
    most_PRS,
    total_PRS,
    seen_PRSD,
    tokens,
    span,
    zero,
    R,
    BLOCKS: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    TILE: tl.constexpr,
    HELD: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """Softmax over the image tokens of one span, as it comes tile by tile; only the tokens' sum is kept (RP, D)."""
    RP: tl.constexpr = TOKENS * HEADS
    p, s = tl.program_id(0).to(tl.int64), tl.program_id(1)
    r_R, d_D = tl.arange(0, RP), tl.arange(0, D)
    most_R = tl.full((RP,), -float("inf"), tl.float32)
    total_R = tl.zeros((RP,), tl.float32)
    seen_RD = tl.zeros((RP, D), tl.float32)
    for first in range(s * span, tl.minimum(s * span + span, tokens), TILE):
        i_N = first + tl.arange(0, TILE)
        here_N = i_N < tokens
        again = first * zero
        rows_again = 0 if HELD else again
        keys_ND = keys_tile(
            ask_IC, base_ID, position_ID, k1_PTC, told1_PRD, weight1_D, bias1_D, eps1,
            ask2_PRD, bias2_PR, told2_PRD, out2_D, weight2_D, norm2_D, eps2,
            p, i_N, here_N, R, rows_again, again, BLOCKS, TOKENS, HEADS, C, D, PRODUCTS,
        )  # fmt: skip
        rows_RD = load_rows(rows_PRD + rows_again, p, R, RP, D)
        placed_ND = keys_ND + load_tokens(position_ID, i_N, here_N, D).to(tl.float32)
        scores_RN = tl.dot(rows_RD, tl.trans(placed_ND.to(rows_RD.dtype)), input_precision=PRODUCTS)
        scores_RN = tl.where(here_N[None, :], scores_RN, -float("inf"))
        higher_R = tl.maximum(most_R, tl.max(scores_RN, 1))
        weights_RN = tl.exp(scores_RN - higher_R[:, None])
        kept_R = tl.exp(most_R - higher_R)
        total_R = total_R * kept_R + tl.sum(weights_RN, 1)
        seen_RD = tl.dot(
            weights_RN.to(rows_RD.dtype),
            keys_ND.to(rows_RD.dtype),
            acc=seen_RD * kept_R[:, None],
            input_precision=PRODUCTS,
        )
        most_R = higher_R
    place_R = (p * R + r_R) * tl.num_programs(1) + s
    tl.store(most_PRS + place_R, most_R, mask=r_R < R)
    tl.store(total_PRS + place_R, total_R, mask=r_R < R)
    tl.store(seen_PRSD + place_R[:, None] * D + d_D[None, :], seen_RD, mask=(r_R < R)[:, None])
