"""The three passes over the image tokens in which the factored mask decoder decodes a few prompts (`sam/factored.py`).

Image tokens are in tiles of `n` tokens; a matrix of a tile has a row for each number of a token and tokens side by
side. Rows are `PAD` longer than that: at a distance of a power of two they would all fall into the same few places of
the cache. Letters: B prompts of a chunk, T tokens of a prompt, h heads, c channels of a head, R = h*T, and
F = h*(T-1)+1 factors: the softmax over T tokens has T-1 free numbers a head, and a constant.
"""

from __future__ import annotations

import math

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic

from amg.kernels.simd import (
    COLUMNS,
    ROWS,
    add_products_of_rows,
    gelu_and_3_dots,
    gelu_and_dot,
    normalise_and_gelu,
    product,
)

PAD = 16
"""Unused numbers at the end of a row: a cache line of 64 bytes."""

# The blocks of C rows of an image's tiles, in this order; after them the rows that become the first convolution's
# output, then the five single rows.
ASK1, CROSS1, KEY2, PLACED_KEY2, VALUE2 = 0, 1, 2, 3, 4
ASK2, PLACED_ASK2, CROSS2, CROSS3, KEY3, PLACED_KEY3, VALUE3 = 5, 6, 7, 8, 9, 10, 11
BLOCKS = 12
SQUARE1, CONSTANT1, SQUARE2, CONSTANT2, CONSTANT3 = 0, 1, 2, 3, 4
SINGLES = 5

DRAWN = 128
"""Tokens that are upscaled at once: what they become fits into the second cache."""


def whole_rows(n: int) -> int:
    """`n` rows and as many unused ones as the matrix products want."""
    return -(-n // ROWS) * ROWS


def tile_size(tokens: int) -> int:
    """How many of an image's tokens make a tile; 0 where they cannot be cut into tiles."""
    size = min(tokens, 512)
    return size if tokens % size == 0 and size % COLUMNS == 0 and size % min(size, DRAWN) == 0 else 0


@intrinsic
def _as_float(typing_context, bits):  # type: ignore[no-untyped-def]
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), code


_F = np.float32
_ROUND = _F(12582912.0)  # 1.5 * 2**23: adding it leaves a float32 without a fraction
_LOG2E = _F(1.4426950408889634)
_LN2 = _F(0.693359375)  # so few bits that its product with a whole number is exact
_LN2_REST = _F(0.00030613186637114595)  # what is missing, in powers of 2
_LEAST = _F(-87.0)


@numba.njit(nogil=True, cache=True, inline="always")
def _exp(x):  # type: ignore[no-untyped-def]
    """e**x for x <= 0, relative error 2e-7; 2**fraction by a polynomial that was fitted for the least largest error."""
    x = max(x, _LEAST)
    whole = (x * _LOG2E + _ROUND) - _ROUND
    f = (x - whole * _LN2) * _LOG2E + whole * _LN2_REST
    p = _F(0.0013399931213394526) + f * _F(0.00015345811244680635)
    p = _F(0.00961848895994292) + f * p
    p = _F(0.055503287769833994) + f * p
    p = _F(0.24022646890607866) + f * p
    p = _F(0.693147205737257) + f * p
    p = _F(1.0) + f * p
    return p * _as_float((np.int32(whole) + np.int32(127)) << np.int32(23))


_EXACT = {"nogil": True, "cache": True, "fastmath": {"contract"}, "error_model": "numpy"}
_SUMS = {"nogil": True, "cache": True, "fastmath": {"contract", "reassoc", "nnan", "nsz"}, "error_model": "numpy"}


@numba.njit(**_SUMS)
def _largest(row, n):  # type: ignore[no-untyped-def]
    most = row[0]
    for i in range(n):
        most = max(most, row[i])
    return most


@numba.njit(**_SUMS)
def _sum(row, n):  # type: ignore[no-untyped-def]
    total = _F(0)
    for i in range(n):
        total += row[i]
    return total


@numba.njit(**_EXACT)
def _each_head(left_hXc, image, tile, block, out_hXN, n):  # type: ignore[no-untyped-def]
    """For each head, the rows of `left` times the head's rows of a block of the image."""
    heads, rows, c = left_hXc.shape
    pitch = image.shape[2]
    start = (tile * image.shape[1] + block * heads * c) * pitch
    for h in range(heads):
        product(
            left_hXc, h * rows * c, c, image, start + h * c * pitch, pitch, out_hXN, h * rows * pitch, pitch, rows, n, c
        )


@numba.njit(**_EXACT)
def _each_head_back(left_hXN, image, tile, block, out_hXc, n):  # type: ignore[no-untyped-def]
    """For each head, add to `out` the products of the rows of `left` with the head's rows of a block of the image."""
    heads, rows, c = out_hXc.shape
    pitch = image.shape[2]
    start = (tile * image.shape[1] + block * heads * c) * pitch
    for h in range(heads):
        add_products_of_rows(
            left_hXN, h * rows * pitch, pitch, image, start + h * c * pitch, pitch, out_hXc, h * rows * c, c, rows, c, n
        )


@numba.njit(**_EXACT)
def _softmax_of_tokens(scores_hXN, first, tokens, out_FN, n, work_WN):  # type: ignore[no-untyped-def]
    """The shares of all tokens but the last, head by head, from the scores of rows `first` to `first + tokens`."""
    top, total = work_WN[0], work_WN[1]
    for h in range(scores_hXN.shape[0]):
        for i in range(n):
            top[i] = scores_hXN[h, first, i]
            total[i] = _F(0)
        for t in range(1, tokens):
            row = scores_hXN[h, first + t]
            for i in range(n):
                top[i] = max(top[i], row[i])
        for t in range(tokens - 1):
            row, out = scores_hXN[h, first + t], out_FN[h * (tokens - 1) + t]
            for i in range(n):
                value = _exp(row[i] - top[i])
                out[i] = value
                total[i] += value
        row = scores_hXN[h, first + tokens - 1]
        for i in range(n):
            total[i] = _F(1) / (total[i] + _exp(row[i] - top[i]))
        for t in range(tokens - 1):
            out = out_FN[h * (tokens - 1) + t]
            for i in range(n):
                out[i] *= total[i]


@numba.njit(**_EXACT)
def _constant(cross_hXN, row, given, out, n):  # type: ignore[no-untyped-def]
    """What the constant factor's vector has in common with the image: the last tokens' of all heads, and the bias."""
    for i in range(n):
        out[i] = given[i]
    for h in range(cross_hXN.shape[0]):
        line = cross_hXN[h, row]
        for i in range(n):
            out[i] += line[i]


@numba.njit(**_EXACT)
def _rescale(accumulated, factor):  # type: ignore[no-untyped-def]
    for j in range(len(accumulated)):
        accumulated[j] *= factor


@numba.njit(**_EXACT)
def _weigh(score, most, sums, x, row, first_tile, n):  # type: ignore[no-untyped-def]
    """Turn a row of scores into weights in place, as softmax over all tiles does one tile after the other.

    Returns what the sums of earlier tiles have to be multiplied with.
    """
    here = _largest(score, n)
    if first_tile or here > most[x, row]:
        factor = _F(0) if first_tile else _exp(most[x, row] - here)
        most[x, row] = here
    else:
        factor = _F(1)
    top = most[x, row]
    for i in range(n):
        score[i] = _exp(score[i] - top)
    sums[x, row] = sums[x, row] * factor + _sum(score, n)
    return factor


@numba.njit(**_EXACT)
def first_pass(  # type: ignore[no-untyped-def]
    image,
    k1,
    v1,
    q2,
    mix_BXF,
    n,
    channels,
    eps,
    factors,
    most_BR,
    sums_BR,
    seen_BRF,
    seen_hXc,
    a_hXN,
    b_hXN,
    y_YN,
    e_RN,
    work_WN,
):
    """The first block's answers to the image as factors, and what the second block's tokens see in it.

    k1, v1, q2: (h, B*T, c), v1 as differences to the last token's, which stays. mix: for each prompt the factors'
    coefficients of R scores, then of F squares. factors: (tiles, B, rows, n + PAD), of which the first F are written.
    """
    tiles, prompts = factors.shape[:2]
    heads, rows, _ = k1.shape
    tokens = rows // prompts
    f = heads * (tokens - 1) + 1
    r = heads * tokens
    pitch = image.shape[2]
    single = image.shape[1] - SINGLES
    r1, common = work_WN[2], work_WN[3]
    inverse = _F(1) / _F(channels)
    for tile in range(tiles):
        _each_head(k1, image, tile, ASK1, a_hXN, n)
        for p in range(prompts):
            _softmax_of_tokens(a_hXN, p * tokens, tokens, factors[tile, p], n, work_WN)
            for i in range(n):
                factors[tile, p, f - 1, i] = _F(1)
        _each_head(v1, image, tile, CROSS1, b_hXN, n)
        # the squares first, for all prompts: `b` is needed again
        for p in range(prompts):
            _constant(b_hXN, p * tokens + tokens - 1, image[tile, single + CONSTANT1], common, n)
            for i in range(n):
                b_hXN[0, p * tokens + tokens - 1, i] = common[i]
        _each_head(q2, image, tile, KEY2, a_hXN, n)
        for p in range(prompts):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            product(mix_BXF, p * mix_BXF.shape[1] * f, f, factors, at, pitch, y_YN, 0, pitch, mix_BXF.shape[1], n, f)
            square = image[tile, single + SQUARE1]
            for i in range(n):
                r1[i] = square[i]
            for h in range(heads):
                for t in range(tokens - 1):
                    share, cross, own = (
                        factors[tile, p, h * (tokens - 1) + t],
                        b_hXN[h, p * tokens + t],
                        y_YN[r + h * (tokens - 1) + t],
                    )
                    for i in range(n):
                        r1[i] += share[i] * (_F(2) * cross[i] + own[i])
            common_row, own = b_hXN[0, p * tokens + tokens - 1], y_YN[r + f - 1]
            for i in range(n):
                r1[i] = _F(1) / math.sqrt((r1[i] + _F(2) * common_row[i] + own[i]) * inverse + eps)
            for x in range(f):
                share = factors[tile, p, x]
                for i in range(n):
                    share[i] *= r1[i]
            for h in range(heads):
                for t in range(tokens):
                    score, mixed = a_hXN[h, p * tokens + t], y_YN[h * tokens + t]
                    for i in range(n):
                        score[i] = (score[i] + mixed[i]) * r1[i]
        _each_head(q2, image, tile, PLACED_KEY2, b_hXN, n)
        for p in range(prompts):
            r1_row = factors[tile, p, f - 1]
            for h in range(heads):
                for t in range(tokens):
                    x = h * tokens + t
                    score, placed, weight = a_hXN[h, p * tokens + t], b_hXN[h, p * tokens + t], e_RN[x]
                    for i in range(n):
                        weight[i] = score[i] + placed[i]
                    factor = _weigh(weight, most_BR, sums_BR, p, x, tile == 0, n)
                    if factor != _F(1):
                        _rescale(seen_BRF[p, x], factor)
                        _rescale(seen_hXc[h, p * tokens + t], factor)
                    for i in range(n):
                        score[i] = weight[i] * r1_row[i]
            at = (tile * prompts + p) * factors.shape[2] * pitch
            columns = seen_BRF.shape[2]
            add_products_of_rows(e_RN, 0, pitch, factors, at, pitch, seen_BRF, p * r * columns, columns, r, columns, n)
        _each_head_back(a_hXN, image, tile, VALUE2, seen_hXc, n)


@numba.njit(**_EXACT)
def second_pass(  # type: ignore[no-untyped-def]
    image,
    v1,
    k2,
    v2,
    q3,
    ask_BRF,
    mix1_BXF,
    mix2_BXF,
    n,
    channels,
    eps,
    factors,
    most_BR,
    sums_BR,
    seen_BRF,
    seen_hXc,
    a_hXN,
    b_hXN,
    c_hXN,
    d_hXN,
    y_YN,
    z_YN,
    e_RN,
    work_WN,
):
    """The second block's answers as factors F to 2F, row 2F the image tokens' deviation; what the last tokens see.

    ask: the first factors' coefficients of the second block's scores. mix1: those of R scores of the last attention, of
    F squares, of F products with the second factors. mix2: the second factors', of R scores, of F squares.
    """
    tiles, prompts = factors.shape[:2]
    heads, rows, _ = k2.shape
    tokens = rows // prompts
    f = heads * (tokens - 1) + 1
    r = heads * tokens
    pitch = image.shape[2]
    single = image.shape[1] - SINGLES
    r2, common, common2 = work_WN[2], work_WN[3], work_WN[4]
    inverse = _F(1) / _F(channels)
    for tile in range(tiles):
        _each_head(k2, image, tile, ASK2, a_hXN, n)
        _each_head(k2, image, tile, PLACED_ASK2, b_hXN, n)
        for p in range(prompts):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            product(ask_BRF, p * r * f, f, factors, at, pitch, y_YN, 0, pitch, r, n, f)
            r1 = factors[tile, p, f - 1]
            for h in range(heads):
                for t in range(tokens):
                    score, placed, mixed = a_hXN[h, p * tokens + t], b_hXN[h, p * tokens + t], y_YN[h * tokens + t]
                    for i in range(n):
                        score[i] = score[i] * r1[i] + mixed[i] + placed[i]
            _softmax_of_tokens(a_hXN, p * tokens, tokens, factors[tile, p, f:], n, work_WN)
            for i in range(n):
                factors[tile, p, 2 * f - 1, i] = _F(1)
        _each_head(v1, image, tile, CROSS2, a_hXN, n)
        _each_head(v2, image, tile, CROSS3, b_hXN, n)
        _each_head(q3, image, tile, KEY3, c_hXN, n)
        _each_head(q3, image, tile, PLACED_KEY3, d_hXN, n)
        for p in range(prompts):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            x1, x2 = mix1_BXF.shape[1], mix2_BXF.shape[1]
            product(mix1_BXF, p * x1 * f, f, factors, at, pitch, y_YN, 0, pitch, x1, n, f)
            product(mix2_BXF, p * x2 * f, f, factors, at + f * pitch, pitch, z_YN, 0, pitch, x2, n, f)
            last = p * tokens + tokens - 1
            _constant(a_hXN, last, image[tile, single + CONSTANT2], common, n)
            _constant(b_hXN, last, image[tile, single + CONSTANT3], common2, n)
            r1, square = factors[tile, p, f - 1], image[tile, single + SQUARE2]
            own, both, own2 = y_YN[r + f - 1], y_YN[r + 2 * f - 1], z_YN[r + f - 1]
            for i in range(n):
                r2[i] = (
                    r1[i] * (r1[i] * (square[i] + _F(2) * common[i]) + own[i] + _F(2) * common2[i]) + both[i] + own2[i]
                )
            for h in range(heads):
                for t in range(tokens - 1):
                    x = h * (tokens - 1) + t
                    share, cross, own = factors[tile, p, x], a_hXN[h, p * tokens + t], y_YN[r + x]
                    for i in range(n):
                        r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + own[i])
                    share, cross, both, own2 = (
                        factors[tile, p, f + x],
                        b_hXN[h, p * tokens + t],
                        y_YN[r + f + x],
                        z_YN[r + x],
                    )
                    for i in range(n):
                        r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + both[i] + own2[i])
            deviation = factors[tile, p, 2 * f]
            for i in range(n):
                deviation[i] = math.sqrt(r2[i] * inverse + eps)
                r2[i] = _F(1) / deviation[i]
            for h in range(heads):
                for t in range(tokens):
                    x = h * tokens + t
                    score, placed, weight = c_hXN[h, p * tokens + t], d_hXN[h, p * tokens + t], e_RN[x]
                    mixed, mixed2 = y_YN[x], z_YN[x]
                    for i in range(n):
                        weight[i] = r2[i] * (r1[i] * score[i] + mixed[i] + mixed2[i]) + placed[i]
                    factor = _weigh(weight, most_BR, sums_BR, p, x, tile == 0, n)
                    if factor != _F(1):
                        _rescale(seen_BRF[p, x], factor)
                        _rescale(seen_hXc[h, p * tokens + t], factor)
                    for i in range(n):
                        weight[i] *= r2[i]
                        score[i] = weight[i] * r1[i]
            columns = seen_BRF.shape[2]
            add_products_of_rows(e_RN, 0, pitch, factors, at, pitch, seen_BRF, p * r * columns, columns, r, columns, n)
        _each_head_back(c_hXN, image, tile, VALUE3, seen_hXc, n)


@numba.njit(**_EXACT)
def draw(  # type: ignore[no-untyped-def]
    image,
    conv1_BXF,
    norm_weight,
    norm_bias,
    norm_eps,
    conv2_XU,
    conv2_bias,
    masks_PMX,
    n,
    grid,
    factors,
    logits_PMLL,
    y_YN,
    z_YN,
    work_WN,
):
    """Mask logits (P, M, 4G, 4G) of the first P prompts, from their factors.

    conv1: (B, 4U, 2F+1), conv2: (4V, U), masks: (P, M, V).
    """
    tiles, prompts = factors.shape[:2]
    f = conv1_BXF.shape[2]
    pitch = image.shape[2]
    first = (f - 1) // 2
    wide = conv1_BXF.shape[1]
    inner = conv2_XU.shape[1]
    n_masks, outer = masks_PMX.shape[1:]
    step = min(n, DRAWN)
    short = y_YN.shape[1]
    for tile in range(tiles):
        base = (tile * image.shape[1] + image.shape[1] - SINGLES - wide) * pitch
        for p in range(len(masks_PMX)):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            for begin in range(0, n, step):
                product(conv1_BXF, p * wide * f, f, factors, at + begin, pitch, y_YN, 0, short, wide, step, f)
                for part in range(4):
                    normalise_and_gelu(
                        y_YN, part * inner * short, short, image, base + part * inner * pitch + begin, pitch, factors,
                        at + (first - 1) * pitch + begin, factors, at + (f - 1) * pitch + begin, norm_weight, norm_bias,
                        norm_eps, inner, step,
                    )  # fmt: skip
                    product(
                        conv2_XU, 0, inner, y_YN, part * inner * short, short, z_YN, 0, short, 4 * outer, step, inner
                    )
                    for corner in range(4):
                        _dots(z_YN, corner * outer, conv2_bias, masks_PMX, p, step, work_WN)
                        row, column = 2 * (part // 2) + corner // 2, 2 * (part % 2) + corner % 2
                        for m in range(n_masks):
                            _spread_out(work_WN[m], tile * n + begin, step, grid, row, column, logits_PMLL[p, m])


@numba.njit(**_EXACT)
def _dots(z_YN, row, bias, masks_PMX, p, n, work_WN):  # type: ignore[no-untyped-def]
    """The masks' weights times GELU of the channels, one row of the workspace a mask."""
    n_masks, channels = masks_PMX.shape[1:]
    pitch = work_WN.shape[1]
    start, own = row * z_YN.shape[1], p * n_masks * channels
    if n_masks == 3:
        gelu_and_3_dots(z_YN, start, z_YN.shape[1], bias, masks_PMX, own, channels, work_WN, 0, pitch, channels, n)
        return
    for m in range(n_masks):
        gelu_and_dot(
            z_YN, start, z_YN.shape[1], bias, masks_PMX, own + m * channels, channels, work_WN, m * pitch, pitch,
            channels, n,
        )  # fmt: skip


@numba.njit(**_EXACT)
def _spread_out(values, first, n, grid, row, column, out_LL):  # type: ignore[no-untyped-def]
    """One pixel of each image token, at `row` and `column` of its 4x4."""
    for i in range(n):
        out_LL[4 * ((first + i) // grid) + row, 4 * ((first + i) % grid) + column] = values[i]
