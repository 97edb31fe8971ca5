"""How the image tokens lie while the factored mask decoder works on them: in tiles, a row for each number of a token.

Tokens are side by side, `n` in a tile. Rows are `PAD` longer than that: at a distance of a power of two they would all
fall into the same few places of the cache.
"""

from __future__ import annotations

import numba
import numpy as np

from amg.kernels.simd import COLUMNS, ROWS

PAD = 16
"""Unused numbers at the end of a row: a cache line of 64 bytes."""

# The blocks of C rows of an image's tiles, in this order; after them the rows that become the first convolution's
# output, then the five single rows. NumPy's integers: of Python's Numba would compile a function for each number.
BLOCKS, SINGLES = 12, 5
ASK1, CROSS1, KEY2, PLACED_KEY2, VALUE2 = np.arange(5)
ASK2, PLACED_ASK2, CROSS2, CROSS3, KEY3, PLACED_KEY3, VALUE3 = np.arange(5, BLOCKS)
SQUARE1, CONSTANT1, SQUARE2, CONSTANT2, CONSTANT3 = np.arange(SINGLES)

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


@numba.njit(nogil=True, cache=True)
def single(image, tile, number):  # type: ignore[no-untyped-def]
    """One of the single rows."""
    return image[tile, image.shape[1] - SINGLES + number]
