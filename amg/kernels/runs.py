"""Run lengths of a mask that is known inside a window, without the image around it."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


def run_lengths(bits_WH: NDArray[np.uint8], x0: int, y0: int, height: int, width: int) -> NDArray[np.uint32]:
    """Column-major run lengths, zeros first, of an image that is zero outside the window at (x0, y0)."""
    changes = np.empty(_count_changes(bits_WH) + 1, np.int64)
    n = _find_changes(bits_WH, x0, y0, height, changes)
    changes[n] = height * width
    lengths = np.diff(changes[: n + 1], prepend=0)
    return (lengths[:-1] if n and lengths[-1] == 0 else lengths).astype(np.uint32)


def bits(runs_R: NDArray[np.uint32], x0: int, y0: int, x1: int, y1: int, height: int) -> NDArray[np.uint8]:
    """The pixels (x1 - x0, y1 - y0) of a box, from the run lengths of an image whose other pixels are zero."""
    found = np.zeros((x1 - x0, y1 - y0), np.uint8)
    _fill(runs_R.astype(np.int64), x0, y0, height, found)
    return found


@numba.njit(nogil=True, cache=True)
def _fill(lengths, x0, y0, height, bits):  # type: ignore[no-untyped-def]
    start = np.int64(0)
    for r in range(len(lengths)):
        end = start + lengths[r]
        while r % 2 == 1 and start < end:
            column, row = start // height, start % height
            last = min(row + end - start, height)
            for j in range(row, last):
                bits[column - x0, j - y0] = 1
            start += last - row
        start = end


@numba.njit(nogil=True, cache=True)
def _count_changes(bits):  # type: ignore[no-untyped-def]
    """At most so many places where the value changes along the columns."""
    n = 0
    for i in range(bits.shape[0]):
        value = 0
        for j in range(bits.shape[1]):
            if bits[i, j] != value:
                value = bits[i, j]
                n += 1
        n += value
    return n


@numba.njit(nogil=True, cache=True)
def _find_changes(bits, x0, y0, height, changes):  # type: ignore[no-untyped-def]
    n = 0
    value = 0
    for i in range(bits.shape[0]):
        start = (x0 + i) * height + y0
        if value and not (y0 == 0 and bits.shape[1] == height and bits[i, 0]):
            changes[n] = start - height + bits.shape[1]
            n += 1
            value = 0
        for j in range(bits.shape[1]):
            if bits[i, j] != value:
                value = bits[i, j]
                changes[n] = start + j
                n += 1
    if value:
        changes[n] = (x0 + bits.shape[0] - 1) * height + y0 + bits.shape[1]
        n += 1
    return n
