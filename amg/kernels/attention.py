"""Attention over a square of tokens with decomposed relative positions, without the matrix of scores or of biases.

The scores of some queries with the keys of some rows of the square are made, turned into weights and used while they
are in the cache, as in FlashAttention (arXiv 2205.14135); what a query adds for a key's row and for its column are two
short vectors of the query, added on the way.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from amg.kernels.products import product
from amg.kernels.simd import LANES, ROWS
from amg.kernels.softmax import add_distances, exponentials

QUERIES = 32
"""Queries that are worked on at once."""

KEYS = 512
"""Keys at once, at most: whole rows of the square."""

PAD = 16
"""Unused numbers at the end of a row: at a distance of a power of two rows would share a few places of the cache."""

_F = np.float32


def fits(side: int, channels: int) -> bool:
    """Whether a square of so many tokens a side, with so many channels a head, can be attended to here."""
    return side % LANES == 0 and (side * side) % QUERIES == 0 and QUERIES % ROWS == 0 and channels % LANES == 0


@numba.njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def attend(qkv_T3hc, head, keys_cT, rows_Ts, columns_Ts, out_Thc):  # type: ignore[no-untyped-def]
    """One head: softmax(q k / sqrt(c) + rows[y of the key] + columns[x of the key]) v.

    keys: (c, T or longer), the head's keys once more with their tokens side by side. rows, columns: (T, s), what each
    query adds for each row and column of the square. out: (T, h, c), of which the head's part is written.
    """
    tokens, _, heads, c = qkv_T3hc.shape
    side = rows_Ts.shape[1]
    pitch, q, v = 3 * heads * c, head * c, (2 * heads + head) * c
    lines = max(1, min(KEYS // side, side))
    while side % lines:
        lines -= 1
    keys = lines * side
    scale = _F(1.0 / math.sqrt(c))
    scores, part = np.empty((QUERIES, keys), np.float32), np.empty((QUERIES, c), np.float32)
    found = np.empty((QUERIES, c), np.float32)
    top, total = np.empty(QUERIES, np.float32), np.empty(QUERIES, np.float32)
    for begin in range(0, tokens, QUERIES):
        for line in range(0, side, lines):
            first = line * side
            product(
                qkv_T3hc, begin * pitch + q, pitch, keys_cT, first, keys_cT.shape[1], scores, 0, keys, QUERIES, keys, c
            )
            for i in range(QUERIES):
                row = (begin + i) * side
                here = add_distances(scores, i * keys, scale, rows_Ts, row + line, columns_Ts, row, lines, side)
                if line == 0:
                    top[i], total[i] = here, _F(0)
                    found[i] = _F(0)
                elif here > top[i]:
                    factor = _F(math.exp(top[i] - here))
                    top[i] = here
                    total[i] *= factor
                    found[i] *= factor
                total[i] += exponentials(scores, i * keys, top[i], keys)
            product(scores, 0, keys, qkv_T3hc, first * pitch + v, pitch, part, 0, c, QUERIES, c, keys)
            for i in range(QUERIES):
                for k in range(c):
                    found[i, k] += part[i, k]
        for i in range(QUERIES):
            for k in range(c):
                out_Thc[begin + i, head, k] = found[i, k] / total[i]
