"""The last of the three passes over the image tokens: from a prompt's factors to its mask logits.

Letters as in `decoder.py`, and: U channels between the two convolutions, V channels that a mask's weights combine.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from amg.kernels.gelu import gelu_and_3_dots, gelu_and_dot, normalise_and_gelu
from amg.kernels.products import product
from amg.kernels.tiles import SINGLES, drawn_size

Array = NDArray[np.float32]
_EXACT: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"contract"}, "error_model": "numpy"}


class Upscaling(NamedTuple):
    """What follows the first convolution: layer norm over U, GELU, the second convolution (4V, U), GELU."""

    norm_weight_U: Array
    norm_bias_U: Array
    norm_eps: np.float32
    conv_XU: Array
    conv_bias_V: Array


class Canvas(NamedTuple):
    """Room for some tokens between the steps: after the first and the second convolution, and the 16 pixels of each."""

    first_YN: Array
    second_YN: Array
    drawn_XMN: Array


@numba.njit(**_EXACT)
def draw(  # type: ignore[no-untyped-def]
    image, conv_BXF, upscaling, masks_PMV, n, grid, by_columns, lines, factors, logits_PMLL, canvas
):
    """Mask logits (P, M, 4G, 4G) of the first P prompts, from their factors.

    conv: (B, 4U, 2F+1), the first convolution of the factors' vectors. The tokens lie row by row, or `by_columns`; of
    the G lines the first `lines` are drawn, and a few more where a step has several.
    """
    wide, f = conv_BXF.shape[1:]
    pitch, short = image.shape[2], canvas.first_YN.shape[1]
    step = drawn_size(n, grid)
    for tile in range(len(factors)):
        end = min(n, lines * grid - tile * n)
        for p in range(len(masks_PMV)):
            at = (tile * factors.shape[1] + p) * factors.shape[2] * pitch
            for begin in range(0, end, step):
                product(conv_BXF, p * wide * f, f, factors, at + begin, pitch, canvas.first_YN, 0, short, wide, step, f)
                for part in range(4):
                    _upscale(part, image, tile, factors, at + begin, f, begin, upscaling, canvas, step)
                    for corner in range(4):
                        row, column = 2 * (part // 2) + corner // 2, 2 * (part % 2) + corner % 2
                        _dots(canvas, corner, upscaling.conv_bias_V, masks_PMV, p, step, 4 * row + column)
                _put_in_place(canvas.drawn_XMN, (tile * n + begin) // grid, step, grid, by_columns, logits_PMLL, p)


@numba.njit(**_EXACT)
def _upscale(part, image, tile, factors, at, f, begin, upscaling, canvas, n):  # type: ignore[no-untyped-def]
    """One of the four places that the first convolution makes of a token, as the second convolution's outputs.

    `at`: where the prompt's factors are for these `n` tokens, of which `begin` are before them in the tile.
    """
    first_YN, second_YN = canvas.first_YN, canvas.second_YN
    pitch, short = image.shape[2], first_YN.shape[1]
    u = upscaling.conv_XU.shape[1]
    base = (tile * image.shape[1] + image.shape[1] - SINGLES - 4 * u + part * u) * pitch + begin
    normalise_and_gelu(
        first_YN, part * u * short, short, image, base, pitch, factors, at + ((f - 1) // 2 - 1) * pitch, factors,
        at + (f - 1) * pitch, upscaling.norm_weight_U, upscaling.norm_bias_U, upscaling.norm_eps, u, n,
    )  # fmt: skip
    rows = len(upscaling.conv_XU)
    product(upscaling.conv_XU, 0, u, first_YN, part * u * short, short, second_YN, 0, short, rows, n, u)


@numba.njit(**_EXACT)
def _dots(canvas, corner, bias, masks_PMV, p, n, place):  # type: ignore[no-untyped-def]
    """The masks' weights times GELU of a corner's channels: one pixel of each token, at one of its 16 places."""
    second_YN, drawn_XMN = canvas.second_YN, canvas.drawn_XMN
    masks, channels = masks_PMV.shape[1:]
    short, pitch = second_YN.shape[1], drawn_XMN.shape[2]
    start, own, out = corner * channels * short, p * masks * channels, place * masks * pitch
    if masks == 3:
        gelu_and_3_dots(second_YN, start, short, bias, masks_PMV, own, channels, drawn_XMN, out, pitch, channels, n)
        return
    for m in range(masks):
        gelu_and_dot(
            second_YN, start, short, bias, masks_PMV, own + m * channels, channels, drawn_XMN, out + m * pitch, pitch,
            channels, n,
        )  # fmt: skip


@numba.njit(**_EXACT)
def _put_in_place(drawn_XMN, first, n, grid, by_columns, logits_PMLL, p):  # type: ignore[no-untyped-def]
    """The 16 pixels of each of `n` tokens, which are whole lines of the grid from line `first` on."""
    for m in range(drawn_XMN.shape[1]):
        logits = logits_PMLL[p, m]
        for dy in range(4):
            a, b = drawn_XMN[4 * dy, m], drawn_XMN[4 * dy + 1, m]
            c, d = drawn_XMN[4 * dy + 2, m], drawn_XMN[4 * dy + 3, m]
            for line in range(n // grid):
                for i in range(grid):
                    row, column, token = first + line, i, line * grid + i
                    if by_columns:
                        row, column = column, row
                    pixels = logits[4 * row + dy]
                    pixels[4 * column] = a[token]
                    pixels[4 * column + 1] = b[token]
                    pixels[4 * column + 2] = c[token]
                    pixels[4 * column + 3] = d[token]
