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

from amg.kernels.simd import (
    COLUMNS,
    ROWS,
    add_products_of_rows,
    combine,
    combine_twice,
    gelu_and_3_dots,
    gelu_and_dot,
    normalise_and_gelu,
    product,
    shares_of_tokens,
    weigh,
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
"""About so many tokens are upscaled at once: what they become fits into the second cache."""


def whole_rows(n: int) -> int:
    """`n` rows and as many unused ones as the matrix products want."""
    return -(-n // ROWS) * ROWS


def tile_size(grid: int) -> int:
    """How many tokens of an image of `grid` x `grid` make a tile, whole rows; 0 where they cannot be cut into tiles."""
    size = min(grid * grid, 512)
    fits = size % grid == 0 and (grid * grid) % size == 0
    return size if fits and drawn_size(size, grid) else 0


@numba.njit(nogil=True, cache=True)
def drawn_size(size, grid):  # type: ignore[no-untyped-def]
    """How many tokens of a tile are upscaled at once: whole rows, about DRAWN; 0 where that cannot be."""
    rows = max(1, min(size, DRAWN) // grid)
    while rows < size // grid and (rows * grid % COLUMNS or size % (rows * grid)):
        rows += 1
    return rows * grid if rows * grid % COLUMNS == 0 and size % (rows * grid) == 0 else 0


_F = np.float32
_EXACT = {"nogil": True, "cache": True, "fastmath": {"contract"}, "error_model": "numpy"}


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
def _answer(scores_hXN, p, tokens, factors, tile, first, n):  # type: ignore[no-untyped-def]
    """A prompt's factors from row `first` on: the shares of all tokens but the last, head by head, and a 1."""
    heads, rows, pitch = scores_hXN.shape
    at = ((tile * factors.shape[1] + p) * factors.shape[2] + first) * pitch
    for h in range(heads):
        start = (h * rows + p * tokens) * pitch
        shares_of_tokens(scores_hXN, start, pitch, tokens, factors, at + h * (tokens - 1) * pitch, pitch, n)
    constant = factors[tile, p, first + heads * (tokens - 1)]
    for i in range(n):
        constant[i] = _F(1)


@numba.njit(**_EXACT)
def _in_common(cross_hXN, p, tokens, given, out, n):  # type: ignore[no-untyped-def]
    """What the constant factor's vector has in common with the image: the last tokens' of all heads, and the bias."""
    for i in range(n):
        out[i] = given[i]
    for h in range(cross_hXN.shape[0]):
        line = cross_hXN[h, p * tokens + tokens - 1]
        for i in range(n):
            out[i] += line[i]


@numba.njit(**_EXACT)
def _take_note(here, most_BR, sums_BR, seen_BRF, seen_hXc, p, h, t, first_tile):  # type: ignore[no-untyped-def]
    """The greatest score so far, of softmax over all tiles one after the other; `here` is this tile's.

    Where it grows, what was summed up is scaled down.
    """
    tokens = seen_hXc.shape[1] // len(seen_BRF)
    x = h * tokens + t
    if first_tile:
        most_BR[p, x] = here
    elif here > most_BR[p, x]:
        factor = _F(math.exp(most_BR[p, x] - here))
        most_BR[p, x] = here
        sums_BR[p, x] *= factor
        seen_BRF[p, x] *= factor
        seen_hXc[h, p * tokens + t] *= factor
    return most_BR[p, x]


@numba.njit(**_EXACT)
def first_pass(  # type: ignore[no-untyped-def]
    image, k1, v1, q2, mix_BXF, n, channels, eps, factors, most_BR, sums_BR, seen_BRF, seen_hXc, a_hXN, b_hXN, c_hXN,
    y_YN, e_RN, work_WN,
):  # fmt: skip
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
    columns = seen_BRF.shape[2]
    r1, common, ones = work_WN[0], work_WN[1], work_WN[2]
    ones[:] = _F(1)
    inverse = _F(1) / _F(channels)
    for tile in range(tiles):
        _each_head(k1, image, tile, ASK1, a_hXN, n)
        for p in range(prompts):
            _answer(a_hXN, p, tokens, factors, tile, 0, n)
        _each_head(q2, image, tile, KEY2, a_hXN, n)
        _each_head(v1, image, tile, CROSS1, b_hXN, n)
        _each_head(q2, image, tile, PLACED_KEY2, c_hXN, n)
        for p in range(prompts):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            product(mix_BXF, p * mix_BXF.shape[1] * f, f, factors, at, pitch, y_YN, 0, pitch, mix_BXF.shape[1], n, f)
            _in_common(b_hXN, p, tokens, image[tile, single + CONSTANT1], common, n)
            square, own = image[tile, single + SQUARE1], y_YN[r + f - 1]
            for i in range(n):
                r1[i] = square[i] + _F(2) * common[i] + own[i]
            for h in range(heads):
                for t in range(tokens - 1):
                    x = h * (tokens - 1) + t
                    share, cross, own = factors[tile, p, x], b_hXN[h, p * tokens + t], y_YN[r + x]
                    for i in range(n):
                        r1[i] += share[i] * (_F(2) * cross[i] + own[i])
            for i in range(n):
                r1[i] = _F(1) / math.sqrt(r1[i] * inverse + eps)
            for x in range(f):
                share = factors[tile, p, x]
                for i in range(n):
                    share[i] *= r1[i]
            for h in range(heads):
                for t in range(tokens):
                    x, line = h * tokens + t, (h * rows + p * tokens + t) * pitch
                    here = combine(a_hXN, line, y_YN, x * pitch, c_hXN, line, work_WN, 0, n)
                    top = _take_note(here, most_BR, sums_BR, seen_BRF, seen_hXc, p, h, t, tile == 0)
                    sums_BR[p, x] += weigh(a_hXN, line, top, work_WN, 2 * pitch, work_WN, 0, e_RN, x * pitch, n)
            add_products_of_rows(e_RN, 0, pitch, factors, at, pitch, seen_BRF, p * r * columns, columns, r, columns, n)
        _each_head_back(a_hXN, image, tile, VALUE2, seen_hXc, n)


@numba.njit(**_EXACT)
def second_pass(  # type: ignore[no-untyped-def]
    image, v1, k2, v2, q3, ask_BRF, mix1_BXF, mix2_BXF, n, channels, eps, factors, most_BR, sums_BR, seen_BRF, seen_hXc,
    a_hXN, b_hXN, c_hXN, d_hXN, y_YN, z_YN, e_RN, work_WN,
):  # fmt: skip
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
    columns = seen_BRF.shape[2]
    x1, x2 = mix1_BXF.shape[1], mix2_BXF.shape[1]
    r2, common, common2 = work_WN[0], work_WN[1], work_WN[2]
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
            _answer(a_hXN, p, tokens, factors, tile, f, n)
        _each_head(v1, image, tile, CROSS2, a_hXN, n)
        _each_head(v2, image, tile, CROSS3, b_hXN, n)
        _each_head(q3, image, tile, KEY3, c_hXN, n)
        _each_head(q3, image, tile, PLACED_KEY3, d_hXN, n)
        for p in range(prompts):
            at = (tile * prompts + p) * factors.shape[2] * pitch
            product(mix1_BXF, p * x1 * f, f, factors, at, pitch, y_YN, 0, pitch, x1, n, f)
            product(mix2_BXF, p * x2 * f, f, factors, at + f * pitch, pitch, z_YN, 0, pitch, x2, n, f)
            _in_common(a_hXN, p, tokens, image[tile, single + CONSTANT2], common, n)
            _in_common(b_hXN, p, tokens, image[tile, single + CONSTANT3], common2, n)
            r1, square = factors[tile, p, f - 1], image[tile, single + SQUARE2]
            own, both, own2 = y_YN[r + f - 1], y_YN[r + 2 * f - 1], z_YN[r + f - 1]
            for i in range(n):
                r2[i] = r1[i] * (square[i] + _F(2) * common[i]) + own[i] + _F(2) * common2[i]
            for i in range(n):
                r2[i] = r2[i] * r1[i] + both[i] + own2[i]
            for h in range(heads):
                for t in range(tokens - 1):
                    x = h * (tokens - 1) + t
                    share, cross, own = factors[tile, p, x], a_hXN[h, p * tokens + t], y_YN[r + x]
                    for i in range(n):
                        r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + own[i])
                    share, cross, both = factors[tile, p, f + x], b_hXN[h, p * tokens + t], y_YN[r + f + x]
                    own2 = z_YN[r + x]
                    for i in range(n):
                        r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + both[i] + own2[i])
            deviation = factors[tile, p, 2 * f]
            for i in range(n):
                deviation[i] = math.sqrt(r2[i] * inverse + eps)
                r2[i] = _F(1) / deviation[i]
            for h in range(heads):
                for t in range(tokens):
                    x, line = h * tokens + t, (h * rows + p * tokens + t) * pitch
                    here = combine_twice(
                        c_hXN, line, y_YN, x * pitch, z_YN, x * pitch, d_hXN, line, factors, at + (f - 1) * pitch,
                        work_WN, 0, n,
                    )  # fmt: skip
                    top = _take_note(here, most_BR, sums_BR, seen_BRF, seen_hXc, p, h, t, tile == 0)
                    sums_BR[p, x] += weigh(
                        c_hXN, line, top, work_WN, 0, factors, at + (f - 1) * pitch, e_RN, x * pitch, n
                    )
            add_products_of_rows(e_RN, 0, pitch, factors, at, pitch, seen_BRF, p * r * columns, columns, r, columns, n)
        _each_head_back(c_hXN, image, tile, VALUE3, seen_hXc, n)


@numba.njit(**_EXACT)
def draw(  # type: ignore[no-untyped-def]
    image, conv1_BXF, norm_weight, norm_bias, norm_eps, conv2_XU, conv2_bias, masks_PMX, n, grid, factors, logits_PMLL,
    y_YN, z_YN, drawn_XMN,
):  # fmt: skip
    """Mask logits (P, M, 4G, 4G) of the first P prompts, from their factors.

    conv1: (B, 4U, 2F+1), conv2: (4V, U), masks: (P, M, V).
    """
    tiles, prompts = factors.shape[:2]
    f = conv1_BXF.shape[2]
    pitch = image.shape[2]
    first = (f - 1) // 2
    wide = conv1_BXF.shape[1]
    inner = conv2_XU.shape[1]
    outer = masks_PMX.shape[2]
    step = drawn_size(n, grid)
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
                        row, column = 2 * (part // 2) + corner // 2, 2 * (part % 2) + corner % 2
                        _dots(z_YN, corner * outer, conv2_bias, masks_PMX, p, step, drawn_XMN, 4 * row + column)
                _put_in_place(drawn_XMN, tile * n + begin, step, grid, logits_PMLL, p)


@numba.njit(**_EXACT)
def _dots(z_YN, row, bias, masks_PMX, p, n, drawn_XMN, place):  # type: ignore[no-untyped-def]
    """The masks' weights times GELU of the channels: one pixel of each token, at one of its 16 places."""
    n_masks, channels = masks_PMX.shape[1:]
    pitch = drawn_XMN.shape[2]
    start, own, out = row * z_YN.shape[1], p * n_masks * channels, place * n_masks * pitch
    if n_masks == 3:
        gelu_and_3_dots(
            z_YN, start, z_YN.shape[1], bias, masks_PMX, own, channels, drawn_XMN, out, pitch, channels, n
        )  # fmt: skip
        return
    for m in range(n_masks):
        gelu_and_dot(
            z_YN, start, z_YN.shape[1], bias, masks_PMX, own + m * channels, channels, drawn_XMN, out + m * pitch,
            pitch, channels, n,
        )  # fmt: skip


@numba.njit(**_EXACT)
def _put_in_place(drawn_XMN, first, n, grid, logits_PMLL, p):  # type: ignore[no-untyped-def]
    """The 16 pixels of each of `n` tokens, whole lines at a time."""
    for m in range(drawn_XMN.shape[1]):
        for row in range(n // grid):
            for dy in range(4):
                line = logits_PMLL[p, m, 4 * (first // grid + row) + dy]
                a, b = drawn_XMN[4 * dy, m], drawn_XMN[4 * dy + 1, m]
                c, d = drawn_XMN[4 * dy + 2, m], drawn_XMN[4 * dy + 3, m]
                for i in range(grid):
                    token = row * grid + i
                    line[4 * i], line[4 * i + 1], line[4 * i + 2], line[4 * i + 3] = (
                        a[token],
                        b[token],
                        c[token],
                        d[token],
                    )
