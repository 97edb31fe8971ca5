"""The last pass of the mask decoder: image tokens after block 2 become pixels of logits, and nothing else is stored.

A token becomes 4 x 4 pixels: the first transposed convolution makes 2 x 2 vectors of it, each of those the second one
2 x 2 again, and a mask's weights make a number of each. Both convolutions (kernel 2, stride 2) are products whose
outputs lie side by side; the masks' weights, repeated along a diagonal, are a third product that gives all masks of
four pixels at once. `decoder.py` says how a program is laid out; letters as there, and: U channels between the
convolutions, V = 4 * U2 outputs of the second one, X its pixels and the masks.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amg.kernels.gpu.decoder import Convolutions, Drawn, ImageTokens, Launch, Told1, Told2
from amg.kernels.gpu.keys import keys_tile, normed, padded_tokens, shared_arguments


def draw(
    image: ImageTokens,
    told1: Told1,
    told2: Told2,
    upscaling: Convolutions,
    masks_PMU: Tensor,
    heads: int,
    launch: Launch,
    drawn: Drawn,
    *,
    logits_PMLL: Tensor,
) -> None:
    """Write the logits, float32, of the tokens to be drawn; the others stay as they are."""
    p, r, d = told1.told_PRD.shape
    m, u2 = masks_PMU.shape[1:]
    count = drawn.lines * drawn.columns
    with torch.cuda.device_of(logits_PMLL):  # Triton starts its programs on the current device
        _draw[(p, triton.cdiv(count, launch.draw_tile))](
            *shared_arguments(image, told1, told2),
            upscaling.weight1_DX,
            upscaling.bias1_U,
            upscaling.norm.weight,
            upscaling.norm.bias,
            upscaling.norm.eps,
            upscaling.weight2_UV,
            upscaling.bias2_V,
            masks_PMU,
            logits_PMLL,
            drawn.grid,
            drawn.columns,
            count,
            r,
            m,
            TOKENS=padded_tokens(r // heads),
            HEADS=heads,
            C=image.ask_IC.shape[1],
            D=d,
            U1=len(upscaling.bias1_U),
            U2=u2,
            X=max(16, triton.next_power_of_2(4 * m)),
            TILE=launch.draw_tile,
            PRODUCTS=launch.products,
            num_warps=launch.warps,
            num_stages=1,
        )


@triton.jit
def _gelu(x):
    """GELU as it is defined, with the error function."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _masks(masks_PMU, p, M, U: tl.constexpr, X: tl.constexpr, type: tl.constexpr):
    """The masks' weights (4U, X): a block of U rows for each pixel, of which column m*4 + pixel is not zero."""
    v_V, x_X = tl.arange(0, 4 * U), tl.arange(0, X)
    own_VX = (v_V // U)[:, None] == (x_X % 4)[None, :]
    place_VX = p * M * U + (x_X // 4)[None, :] * U + (v_V % U)[:, None]
    return tl.load(masks_PMU + place_VX, mask=own_VX & (x_X // 4 < M)[None, :], other=0.0).to(type)


@triton.jit
def _draw(
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
    up1_DX,
    up_bias1_U,
    up_weight_U,
    up_norm_U,
    up_eps,
    up2_UV,
    up_bias2_V,
    masks_PMU,
    logits_PMLL,
    grid,
    columns,
    drawn,
    R,
    M,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    C: tl.constexpr,
    D: tl.constexpr,
    U1: tl.constexpr,
    U2: tl.constexpr,
    X: tl.constexpr,
    TILE: tl.constexpr,
    PRODUCTS: tl.constexpr,
):
    """The logits of one tile of the drawn tokens."""
    p = tl.program_id(0).to(tl.int64)
    n_N = tl.program_id(1) * TILE + tl.arange(0, TILE)
    here_N = n_N < drawn
    line_N, column_N = n_N // columns, n_N % columns
    keys_ND = keys_tile(
        ask_IC, base_ID, position_ID, k1_PTC, told1_PRD, weight1_D, bias1_D, eps1,
        ask2_PRD, bias2_PR, told2_PRD, out2_D, weight2_D, norm2_D, eps2,
        p, line_N * grid + column_N, here_N, R, 0, 0, 2, TOKENS, HEADS, C, D, PRODUCTS,
    )  # fmt: skip
    keys_ND = keys_ND.to(up1_DX.dtype.element_ty)

    d_D, u_U, v_V, x_X = tl.arange(0, D), tl.arange(0, U1), tl.arange(0, 4 * U2), tl.arange(0, X)
    masks_VX = _masks(masks_PMU, p, M, U2, X, keys_ND.dtype)
    up2_UV_here = tl.load(up2_UV + u_U[:, None] * (4 * U2) + v_V[None, :])
    bias1_U, bias2_V = tl.load(up_bias1_U + u_U), tl.load(up_bias2_V + v_V)
    side = 4 * grid
    row_NX = 4 * line_N[:, None] + (x_X % 4 // 2)[None, :]
    column_NX = 4 * column_N[:, None] + (x_X % 2)[None, :]
    place_NX = (p * M + (x_X // 4)[None, :]) * side * side + row_NX * side + column_NX
    there_NX = here_N[:, None] & (x_X // 4 < M)[None, :]
    for quarter in range(4):
        weight_DU = tl.load(up1_DX + d_D[:, None] * (4 * U1) + quarter * U1 + u_U[None, :])
        x_NU = tl.dot(keys_ND, weight_DU, input_precision=PRODUCTS) + bias1_U[None, :]
        x_NU = _gelu(normed(x_NU, up_weight_U, up_norm_U, up_eps, U1))
        y_NV = tl.dot(x_NU.to(keys_ND.dtype), up2_UV_here, input_precision=PRODUCTS) + bias2_V[None, :]
        logits_NX = tl.dot(_gelu(y_NV).to(keys_ND.dtype), masks_VX, input_precision=PRODUCTS)
        tl.store(logits_PMLL + place_NX + (quarter // 2 * side + quarter % 2) * 2, logits_NX, mask=there_NX)
