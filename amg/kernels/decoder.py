"""The passes over the image tokens in which the factored mask decoder decodes a few prompts (`sam/factored.py`).

The first two of three; the last is in `upscale`, and how the image tokens lie stands in `tiles`. Letters: B prompts of
a chunk, T tokens of a prompt, h heads, c channels of a head, R = h*T, and F = h*(T-1)+1 factors: the softmax over T
tokens has T-1 free numbers a head, and a constant.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from amg.kernels.products import add_products_of_rows, product
from amg.kernels.softmax import combine, combine_twice, shares_of_tokens, weigh
from amg.kernels.tiles import (
    ASK1,
    ASK2,
    CONSTANT1,
    CONSTANT2,
    CONSTANT3,
    CROSS1,
    CROSS2,
    CROSS3,
    KEY2,
    KEY3,
    PLACED_ASK2,
    PLACED_KEY2,
    PLACED_KEY3,
    SQUARE1,
    SQUARE2,
    VALUE2,
    VALUE3,
    single,
)

Array = NDArray[np.float32]
_F = np.float32
_EXACT: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"contract"}, "error_model": "numpy"}


class Sums(NamedTuple):
    """Of an attention over all tiles: greatest scores, sums of weights, factors seen, channels seen (h, B*T, c)."""

    most_BR: Array
    total_BR: Array
    seen_BRF: Array
    seen_hXc: Array


class Scratch(NamedTuple):
    """Room for one tile: scores and products of all prompts (h, B*T, N), a prompt's weights, single rows."""

    a_hXN: Array
    b_hXN: Array
    c_hXN: Array
    d_hXN: Array
    weights_RN: Array
    rows_WN: Array


@numba.njit(**_EXACT)
def first_pass(  # type: ignore[no-untyped-def]
    image, k1, v1, q2, mix_BXF, n, channels, eps, factors, sums, scratch, mixed_YN
):
    """The first block's answers to the image as factors, and what the second block's tokens see in it.

    k1, v1, q2: (h, B*T, c), v1 as differences to the last token's, which stays. mix: for each prompt the factors'
    coefficients of R scores, then of F squares. factors: (tiles, B, rows, n + PAD), of which the first F are written.
    """
    prompts = factors.shape[1]
    tokens = k1.shape[1] // prompts
    _fill(scratch.rows_WN[2], _F(1))
    for tile in range(len(factors)):
        _each_head(k1, image, tile, ASK1, scratch.a_hXN, n)
        for p in range(prompts):
            _answer(scratch.a_hXN, p, tokens, factors, tile, 0, n)
        _each_head(q2, image, tile, KEY2, scratch.a_hXN, n)
        _each_head(v1, image, tile, CROSS1, scratch.b_hXN, n)
        _each_head(q2, image, tile, PLACED_KEY2, scratch.c_hXN, n)
        for p in range(prompts):
            _mix(mix_BXF, p, factors, tile, 0, mixed_YN, n)
            _first_deviation(image, tile, p, tokens, factors, scratch, mixed_YN, n, channels, eps)
            _look_once(tile, p, tokens, factors, sums, scratch, mixed_YN, n)
        _each_head_back(scratch.a_hXN, image, tile, VALUE2, sums.seen_hXc, n)


@numba.njit(**_EXACT)
def second_pass(  # type: ignore[no-untyped-def]
    image, v1, k2, v2, q3, ask_BRF, mix1_BXF, mix2_BXF, n, channels, eps, factors, sums, scratch, mixed1_YN, mixed2_YN
):
    """The second block's answers as factors F to 2F, row 2F the image tokens' deviation; what the last tokens see.

    ask: the first factors' coefficients of the second block's scores. mix1: those of R scores of the last attention, of
    F squares, of F products with the second factors. mix2: the second factors', of R scores, of F squares.
    """
    prompts = factors.shape[1]
    heads, rows, _ = k2.shape
    tokens = rows // prompts
    f = heads * (tokens - 1) + 1
    for tile in range(len(factors)):
        _each_head(k2, image, tile, ASK2, scratch.a_hXN, n)
        _each_head(k2, image, tile, PLACED_ASK2, scratch.b_hXN, n)
        for p in range(prompts):
            _mix(ask_BRF, p, factors, tile, 0, mixed1_YN, n)
            _ask_again(p, tokens, factors[tile, p, f - 1], scratch, mixed1_YN, n)
            _answer(scratch.a_hXN, p, tokens, factors, tile, f, n)
        _each_head(v1, image, tile, CROSS2, scratch.a_hXN, n)
        _each_head(v2, image, tile, CROSS3, scratch.b_hXN, n)
        _each_head(q3, image, tile, KEY3, scratch.c_hXN, n)
        _each_head(q3, image, tile, PLACED_KEY3, scratch.d_hXN, n)
        for p in range(prompts):
            _mix(mix1_BXF, p, factors, tile, 0, mixed1_YN, n)
            _mix(mix2_BXF, p, factors, tile, f, mixed2_YN, n)
            _second_deviation(image, tile, p, tokens, factors, scratch, mixed1_YN, mixed2_YN, n, channels, eps)
            _look_twice(tile, p, tokens, factors, sums, scratch, mixed1_YN, mixed2_YN, n)
        _each_head_back(scratch.c_hXN, image, tile, VALUE3, sums.seen_hXc, n)


@numba.njit(**_EXACT)
def _each_head(left_hXc, image, tile, block, out_hXN, n):  # type: ignore[no-untyped-def]
    """For each head, the rows of `left` times the head's rows of a block of the image."""
    heads, rows, c = left_hXc.shape
    pitch = image.shape[2]
    for h in range(heads):
        at = _rows_of_head(image, tile, block, heads, c, h)
        product(left_hXc, h * rows * c, c, image, at, pitch, out_hXN, h * rows * pitch, pitch, rows, n, c)


@numba.njit(**_EXACT)
def _each_head_back(left_hXN, image, tile, block, out_hXc, n):  # type: ignore[no-untyped-def]
    """For each head, add to `out` the products of the rows of `left` with the head's rows of a block of the image."""
    heads, rows, c = out_hXc.shape
    pitch = image.shape[2]
    for h in range(heads):
        at = _rows_of_head(image, tile, block, heads, c, h)
        add_products_of_rows(left_hXN, h * rows * pitch, pitch, image, at, pitch, out_hXc, h * rows * c, c, rows, c, n)


@numba.njit(**_EXACT)
def _rows_of_head(image, tile, block, heads, c, h):  # type: ignore[no-untyped-def]
    """Where a head's rows of a block begin."""
    return (tile * image.shape[1] + (block * heads + h) * c) * image.shape[2]


@numba.njit(**_EXACT)
def _first_factor(factors, tile, p):  # type: ignore[no-untyped-def]
    """Where a prompt's factors begin."""
    return (tile * factors.shape[1] + p) * factors.shape[2] * factors.shape[3]


@numba.njit(**_EXACT)
def _mix(mix_BXF, p, factors, tile, first, out_YN, n):  # type: ignore[no-untyped-def]
    """A prompt's coefficients times its factors from row `first` on."""
    _, x, f = mix_BXF.shape
    pitch = factors.shape[3]
    at = _first_factor(factors, tile, p) + first * pitch
    product(mix_BXF, p * x * f, f, factors, at, pitch, out_YN, 0, pitch, x, n, f)


@numba.njit(**_EXACT)
def _answer(scores_hXN, p, tokens, factors, tile, first, n):  # type: ignore[no-untyped-def]
    """A prompt's factors from row `first` on: the shares of all tokens but the last, head by head, and a 1."""
    heads, rows, pitch = scores_hXN.shape
    at = _first_factor(factors, tile, p) + first * pitch
    for h in range(heads):
        start = (h * rows + p * tokens) * pitch
        shares_of_tokens(scores_hXN, start, pitch, tokens, factors, at + h * (tokens - 1) * pitch, pitch, n)
    _fill(factors[tile, p, first + heads * (tokens - 1)], _F(1))


@numba.njit(**_EXACT)
def _first_deviation(image, tile, p, tokens, factors, scratch, mixed_YN, n, channels, eps):  # type: ignore[no-untyped-def]
    """The inverse deviation of each image token after the first block, in the first row; its factors times that."""
    b_hXN, rows_WN = scratch.b_hXN, scratch.rows_WN
    heads = len(b_hXN)
    f, r = heads * (tokens - 1) + 1, heads * tokens
    r1, common, inverse = rows_WN[0], rows_WN[1], _F(1) / _F(channels)
    _in_common(b_hXN, p, tokens, single(image, tile, CONSTANT1), common, n)
    square, own = single(image, tile, SQUARE1), mixed_YN[r + f - 1]
    for i in range(n):
        r1[i] = square[i] + _F(2) * common[i] + own[i]
    for h in range(heads):
        for t in range(tokens - 1):
            x = h * (tokens - 1) + t
            share, cross, own = factors[tile, p, x], b_hXN[h, p * tokens + t], mixed_YN[r + x]
            for i in range(n):
                r1[i] += share[i] * (_F(2) * cross[i] + own[i])
    for i in range(n):
        r1[i] = _F(1) / math.sqrt(r1[i] * inverse + eps)
    for x in range(f):
        share = factors[tile, p, x]
        for i in range(n):
            share[i] *= r1[i]


@numba.njit(**_EXACT)
def _second_deviation(  # type: ignore[no-untyped-def]
    image, tile, p, tokens, factors, scratch, mixed1_YN, mixed2_YN, n, channels, eps
):
    """The deviation of each image token after the second block, behind the factors; its inverse in the first row."""
    a_hXN, b_hXN, rows_WN = scratch.a_hXN, scratch.b_hXN, scratch.rows_WN
    heads = len(a_hXN)
    f, r = heads * (tokens - 1) + 1, heads * tokens
    r1, r2, common, common2 = factors[tile, p, f - 1], rows_WN[0], rows_WN[1], rows_WN[2]
    _in_common(a_hXN, p, tokens, single(image, tile, CONSTANT2), common, n)
    _in_common(b_hXN, p, tokens, single(image, tile, CONSTANT3), common2, n)
    square, own = single(image, tile, SQUARE2), mixed1_YN[r + f - 1]
    both, own2 = mixed1_YN[r + 2 * f - 1], mixed2_YN[r + f - 1]
    for i in range(n):
        r2[i] = r1[i] * (square[i] + _F(2) * common[i]) + own[i] + _F(2) * common2[i]
    for i in range(n):
        r2[i] = r2[i] * r1[i] + both[i] + own2[i]
    for h in range(heads):
        for t in range(tokens - 1):
            x = h * (tokens - 1) + t
            share, cross, own = factors[tile, p, x], a_hXN[h, p * tokens + t], mixed1_YN[r + x]
            for i in range(n):
                r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + own[i])
            share, cross = factors[tile, p, f + x], b_hXN[h, p * tokens + t]
            both, own2 = mixed1_YN[r + f + x], mixed2_YN[r + x]
            for i in range(n):
                r2[i] += share[i] * (_F(2) * r1[i] * cross[i] + both[i] + own2[i])
    deviation, inverse = factors[tile, p, 2 * f], _F(1) / _F(channels)
    for i in range(n):
        deviation[i] = math.sqrt(r2[i] * inverse + eps)
        r2[i] = _F(1) / deviation[i]


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
def _ask_again(p, tokens, r1, scratch, mixed_YN, n):  # type: ignore[no-untyped-def]
    """The second block's scores of a prompt: the image's, divided by its deviation, the factors', and the places'."""
    for h in range(len(scratch.a_hXN)):
        for t in range(tokens):
            score, placed = scratch.a_hXN[h, p * tokens + t], scratch.b_hXN[h, p * tokens + t]
            mixed = mixed_YN[h * tokens + t]
            for i in range(n):
                score[i] = score[i] * r1[i] + mixed[i] + placed[i]


@numba.njit(**_EXACT)
def _look_once(tile, p, tokens, factors, sums, scratch, mixed_YN, n):  # type: ignore[no-untyped-def]
    """What a prompt's tokens see in a tile after the first block; leaves the weights of the image's values in `a`."""
    a_hXN, rows_WN = scratch.a_hXN, scratch.rows_WN
    heads, rows, pitch = a_hXN.shape
    for h in range(heads):
        for t in range(tokens):
            x, line = h * tokens + t, (h * rows + p * tokens + t) * pitch
            here = combine(a_hXN, line, mixed_YN, x * pitch, scratch.c_hXN, line, rows_WN, 0, n)
            top = _take_note(here, sums, p, h, t, tile == 0)
            sums.total_BR[p, x] += weigh(
                a_hXN, line, top, rows_WN, 2 * pitch, rows_WN, 0, scratch.weights_RN, x * pitch, n
            )
    _add_factors_seen(scratch.weights_RN, factors, tile, p, sums.seen_BRF, n)


@numba.njit(**_EXACT)
def _look_twice(tile, p, tokens, factors, sums, scratch, mixed1_YN, mixed2_YN, n):  # type: ignore[no-untyped-def]
    """What a prompt's tokens see in a tile after the second block; leaves the weights of the image's values in `c`."""
    c_hXN, rows_WN = scratch.c_hXN, scratch.rows_WN
    heads, rows, pitch = c_hXN.shape
    r1 = _first_factor(factors, tile, p) + heads * (tokens - 1) * pitch
    for h in range(heads):
        for t in range(tokens):
            x, line = h * tokens + t, (h * rows + p * tokens + t) * pitch
            here = combine_twice(
                c_hXN, line, mixed1_YN, x * pitch, mixed2_YN, x * pitch, scratch.d_hXN, line, factors, r1, rows_WN, 0, n
            )
            top = _take_note(here, sums, p, h, t, tile == 0)
            sums.total_BR[p, x] += weigh(c_hXN, line, top, rows_WN, 0, factors, r1, scratch.weights_RN, x * pitch, n)
    _add_factors_seen(scratch.weights_RN, factors, tile, p, sums.seen_BRF, n)


@numba.njit(**_EXACT)
def _take_note(here, sums, p, h, t, first_tile):  # type: ignore[no-untyped-def]
    """The greatest score so far, of softmax over all tiles one after the other; `here` is this tile's.

    Where it grows, what was summed up is scaled down.
    """
    most_BR, seen_hXc = sums.most_BR, sums.seen_hXc
    tokens = seen_hXc.shape[1] // len(most_BR)
    x = h * tokens + t
    if first_tile:
        most_BR[p, x] = here
    elif here > most_BR[p, x]:
        factor = _F(math.exp(most_BR[p, x] - here))
        most_BR[p, x] = here
        sums.total_BR[p, x] *= factor
        _scale(sums.seen_BRF[p, x], factor)
        _scale(seen_hXc[h, p * tokens + t], factor)
    return most_BR[p, x]


@numba.njit(**_EXACT)
def _scale(row, factor):  # type: ignore[no-untyped-def]
    """As NumPy's `*=`, which takes the compiler seconds."""
    for i in range(len(row)):
        row[i] *= factor


@numba.njit(**_EXACT)
def _fill(row, value):  # type: ignore[no-untyped-def]
    for i in range(len(row)):
        row[i] = value


@numba.njit(**_EXACT)
def _add_factors_seen(weights_RN, factors, tile, p, seen_BRF, n):  # type: ignore[no-untyped-def]
    """The products of a prompt's weights with its factors."""
    _, r, columns = seen_BRF.shape
    pitch, at = factors.shape[3], _first_factor(factors, tile, p)
    add_products_of_rows(weights_RN, 0, pitch, factors, at, pitch, seen_BRF, p * r * columns, columns, r, columns, n)
