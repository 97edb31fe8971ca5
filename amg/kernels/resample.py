"""Score and draw masks straight from 256x256 logits, with the reference's two-step resampling and no full-size mask.

The reference resizes logits to 1024x1024, cuts the padding off and resizes to the crop, both bilinear in float32. A
pixel therefore depends on 2x2 values of the first step and on at most 3x3 logits. All pixels that begin at the same
logit form a block; where the 3x3 logits under a block clear the thresholds by more than rounding can move a value, its
pixels are counted by area, and only the other blocks are evaluated, with the arithmetic of
`torch.nn.functional.interpolate` on contiguous float32: x first, then y; `fma(w0, a, w1 * b)`; the source index is
`fma(scale, i + 0.5, -0.5)`, clamped at 0 and at the last value.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numba
import numpy as np
from numba import types
from numba.core.typing.templates import Signature
from numba.extending import intrinsic
from numpy.typing import NDArray

LOGITS_SIDE = 256
MODEL_SIDE = 1024
ROUNDING = np.float32(4e-6)
"""Two bilinear steps leave [min, max] by at most a few units in the last place of the largest value."""


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """How one axis of a crop depends on the logits.

    Pixel `i` is `fma(pixel_weight_2N[0, i], v[pixel_index_2N[0, i]], pixel_weight_2N[1, i] * v[pixel_index_2N[1, i]])`
    of the middle step `v`, whose entries are made of the logits in the same way. `start_B` (LOGITS_SIDE + 1): the
    pixels of block b are `start_B[b]` up to `start_B[b + 1]`.
    """

    middle_index_2S: NDArray[np.int64]
    middle_weight_2S: NDArray[np.float32]
    pixel_index_2N: NDArray[np.int64]
    pixel_weight_2N: NDArray[np.float32]
    block_N: NDArray[np.int64]
    start_B: NDArray[np.int64]

    @property
    def length(self) -> int:
        return self.pixel_index_2N.shape[1]

    @property
    def needed(self) -> int:
        """So many logits, from the first, are looked at."""
        return min(int(self.block_N[-1]) + 3, LOGITS_SIDE)


@lru_cache(maxsize=256)
def plan_axis(length: int, resized: int) -> Axis:
    """The axis of a crop with `length` pixels that took `resized` pixels of the model's square; nobody writes to it."""
    middle_index, middle_weight = _bilinear(LOGITS_SIDE, MODEL_SIDE)
    pixel_index, pixel_weight = _bilinear(resized, length)
    block = middle_index[0, pixel_index[0]]
    assert (middle_index[1, pixel_index[1]] <= block + 2).all()
    start = np.searchsorted(block, np.arange(LOGITS_SIDE + 1))
    return Axis(middle_index, middle_weight, pixel_index, pixel_weight, block, start)


def _bilinear(n_in: int, n_out: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Indices and float32 weights (2, n_out) of torch's bilinear resize of one axis, `align_corners=False`.

    The products fit in float64, so rounding its result once gives what a float32 fma gives.
    """
    scale = np.float64(np.float32(n_in) / np.float32(n_out))
    source = np.maximum((scale * (np.arange(n_out) + 0.5) - 0.5).astype(np.float32), np.float32(0))
    first = np.minimum(source.astype(np.int64), n_in - 1)
    second = np.minimum(first + 1, n_in - 1)
    weight = np.clip(source - first.astype(np.float32), np.float32(0), np.float32(1)).astype(np.float32)
    return np.stack([first, second]), np.stack([np.float32(1) - weight, weight])


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """`count_K3`: pixels above low, middle and high threshold; `box_K4`: half-open, in the crop, zeros when empty."""

    count_K3: NDArray[np.int64]
    box_K4: NDArray[np.int64]


def score(
    logits_CLL: NDArray[np.float32],
    which_K: NDArray[np.int64],
    x: Axis,
    y: Axis,
    *,
    low: float,
    middle: float,
    high: float,
) -> Scores:
    """Counts at three thresholds (`low <= middle <= high`) and the box at `middle`, in the crop's pixels, of K masks.

    `which_K` says which of the C masks to look at.
    """
    count = np.zeros((len(which_K), 3), np.int64)
    box = np.zeros((len(which_K), 4), np.int64)
    thresholds = np.array([low, middle, high], np.float32)
    _score(np.ascontiguousarray(logits_CLL), which_K, thresholds, *_arrays(x), *_arrays(y), count, box)
    return Scores(count, box)


def windows(box_K4: NDArray[np.int64], x: Axis, y: Axis) -> NDArray[np.int32]:
    """Row, column, rows and columns of the logits that the pixels of half-open boxes depend on; no rows if empty."""
    x0, y0, x1, y1 = np.where((box_K4[:, 2] > box_K4[:, 0])[:, None], box_K4, [0, 0, 1, 1]).T
    row, column = y.block_N[y0], x.block_N[x0]
    rows = np.minimum(y.block_N[y1 - 1] + 2, LOGITS_SIDE - 1) - row + 1
    columns = np.minimum(x.block_N[x1 - 1] + 2, LOGITS_SIDE - 1) - column + 1
    found_K4 = np.stack([row, column, rows, columns], axis=1)
    return np.where((box_K4[:, 2] > box_K4[:, 0])[:, None], found_K4, 0).astype(np.int32)


def draw(
    window_RC: NDArray[np.float32],
    origin: tuple[int, int],
    box: NDArray[np.int64],
    x: Axis,
    y: Axis,
    *,
    threshold: float,
) -> NDArray[np.uint8]:
    """The pixels of `box` (x0, y0, x1, y1 in the crop) as (width, height) uint8, from its window of the logits.

    Transposed, since run lengths go down the columns.
    """
    x0, y0, x1, y1 = (int(v) for v in box)
    bits = np.zeros((x1 - x0, y1 - y0), np.uint8)
    _draw(
        np.ascontiguousarray(window_RC),
        origin[0],
        origin[1],
        np.float32(threshold),
        *_arrays(x),
        *_arrays(y),
        x0,
        y0,
        bits,
    )
    return bits


def _arrays(
    axis: Axis,
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    return axis.middle_index_2S, axis.middle_weight_2S, axis.pixel_index_2N, axis.pixel_weight_2N, axis.start_B


@intrinsic
def _fma(typing_context, a, b, c):  # type: ignore[no-untyped-def]  # numba calls it with its own types
    def code(context, builder, signature: Signature, arguments):  # type: ignore[no-untyped-def]
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), code


@numba.njit(nogil=True, cache=True)
def _mix(w0, a, w1, b):  # type: ignore[no-untyped-def]
    return _fma(w0, a, w1 * b)


@numba.njit(nogil=True, cache=True)
def _middle(logits, top, bottom, column0, c, wt, wb, mxi, mxw):  # type: ignore[no-untyped-def]
    """A value of the middle step, in column `c`."""
    a0, a1 = mxi[0, c] - column0, mxi[1, c] - column0
    u0, u1 = mxw[0, c], mxw[1, c]
    above = _mix(u0, logits[top, a0], u1, logits[top, a1])
    return _mix(wt, above, wb, _mix(u0, logits[bottom, a0], u1, logits[bottom, a1]))


@numba.njit(nogil=True, cache=True)
def _evaluate(logits, row0, column0, mxi, mxw, pxi, pxw, xa, xb, myi, myw, pyi, pyw, ya, yb, middle, patch):  # type: ignore[no-untyped-def]
    """Write the pixels [ya, yb) x [xa, xb) to `patch`; `logits` begins at row0, column0; `middle` is scratch."""
    first_row, last_row = pyi[0, ya], pyi[1, yb - 1]
    for r in range(first_row, last_row + 1):
        top, bottom = myi[0, r] - row0, myi[1, r] - row0
        wt, wb = myw[0, r], myw[1, r]
        previous = np.int64(-1)
        following = np.int64(-1)
        left_value = np.float32(0)
        right_value = np.float32(0)
        for i in range(xa, xb):
            c0, c1 = pxi[0, i], pxi[1, i]
            if c0 != previous:
                if c0 == following:
                    left_value = right_value
                else:
                    left_value = _middle(logits, top, bottom, column0, c0, wt, wb, mxi, mxw)
                right_value = _middle(logits, top, bottom, column0, c1, wt, wb, mxi, mxw)
                previous, following = c0, c1
            middle[r - first_row, i - xa] = _mix(pxw[0, i], left_value, pxw[1, i], right_value)
    for j in range(ya, yb):
        r0, r1 = pyi[0, j] - first_row, pyi[1, j] - first_row
        w0, w1 = pyw[0, j], pyw[1, j]
        for i in range(xb - xa):
            patch[j - ya, i] = _mix(w0, middle[r0, i], w1, middle[r1, i])


@numba.njit(nogil=True, cache=True)
def _widest(start):  # type: ignore[no-untyped-def]
    widest = 1
    for b in range(len(start) - 1):
        widest = max(widest, start[b + 1] - start[b])
    return widest


@numba.njit(nogil=True, cache=True)
def _blocks(start, length):  # type: ignore[no-untyped-def]
    """How many blocks there are before the end of the axis."""
    blocks = 0
    while start[blocks] < length:
        blocks += 1
    return blocks


@numba.njit(nogil=True, cache=True)
def _range_3x3(logits, rows, columns, lowest, highest, low_row, high_row):  # type: ignore[no-untyped-def]
    """Least and greatest of the 3x3 logits that begin at each cell (fewer at the far edges)."""
    n_rows, n_columns = logits.shape
    for r in range(rows):
        r1, r2 = min(r + 1, n_rows - 1), min(r + 2, n_rows - 1)
        for c in range(n_columns):
            a, b, d = logits[r, c], logits[r1, c], logits[r2, c]
            low_row[c] = min(a, min(b, d))
            high_row[c] = max(a, max(b, d))
        low_row[n_columns] = low_row[n_columns + 1] = low_row[n_columns - 1]
        high_row[n_columns] = high_row[n_columns + 1] = high_row[n_columns - 1]
        for c in range(columns):
            lowest[r, c] = min(low_row[c], min(low_row[c + 1], low_row[c + 2]))
            highest[r, c] = max(high_row[c], max(high_row[c + 1], high_row[c + 2]))


UNSURE = 4
"""Not all pixels of a block are on the same side of every threshold; else it is the number of thresholds below them."""


@numba.njit(nogil=True, cache=True)
def _classify(logits, r, columns, thresholds, low_row, high_row, codes):  # type: ignore[no-untyped-def]
    """How many thresholds the blocks of a row are above, or UNSURE, from the 3x3 logits under each."""
    n_rows, n_columns = len(logits), min(logits.shape[1], columns + 2)
    first, second, third = logits[r], logits[min(r + 1, n_rows - 1)], logits[min(r + 2, n_rows - 1)]
    for c in range(n_columns):
        a, b, d = first[c], second[c], third[c]
        low_row[c] = min(a, min(b, d))
        high_row[c] = max(a, max(b, d))
    low_row[n_columns] = low_row[n_columns + 1] = low_row[n_columns - 1]
    high_row[n_columns] = high_row[n_columns + 1] = high_row[n_columns - 1]
    t_low, t_mid, t_high = thresholds
    for c in range(columns):
        least = min(low_row[c], min(low_row[c + 1], low_row[c + 2]))
        most = max(high_row[c], max(high_row[c + 1], high_row[c + 2]))
        slack = ROUNDING * max(abs(least), abs(most))
        least, most = least - slack, most + slack
        surely = np.int32(least > t_low) + np.int32(least > t_mid) + np.int32(least > t_high)
        maybe = np.int32(most > t_low) + np.int32(most > t_mid) + np.int32(most > t_high)
        codes[c] = surely if surely == maybe else np.int32(UNSURE)


@numba.njit(nogil=True, cache=True)
def _widths_above(codes, widths, columns):  # type: ignore[no-untyped-def]
    """The pixels of a row that are surely above each threshold."""
    low = mid = high = np.int32(0)
    for c in range(columns):
        code, width = codes[c], widths[c]
        sure = code != UNSURE
        low += width if sure and code >= 1 else np.int32(0)
        mid += width if sure and code >= 2 else np.int32(0)
        high += width if sure and code >= 3 else np.int32(0)
    return np.int64(low), np.int64(mid), np.int64(high)


@numba.njit(nogil=True, cache=True)
def _widen(extent, x0, y0, x1, y1):  # type: ignore[no-untyped-def]
    extent[0], extent[1] = min(extent[0], x0), min(extent[1], y0)
    extent[2], extent[3] = max(extent[2], x1), max(extent[3], y1)


@numba.njit(nogil=True, cache=True)
def _count_sure(logits, thresholds, xs, ys, widths, low_row, high_row, codes, counts, extent):  # type: ignore[no-untyped-def]
    """Classify all blocks; count the pixels of the sure ones and widen the mask's extent (x0, y0, x1, y1) by them."""
    rows, columns = codes.shape
    for r in range(rows):
        lines = ys[r + 1] - ys[r]
        if lines == 0:
            continue
        _classify(logits, r, columns, thresholds, low_row, high_row, codes[r])
        low, mid, high = _widths_above(codes[r], widths, columns)
        counts[0] += lines * low
        counts[1] += lines * mid
        counts[2] += lines * high
        if mid:
            first, last = 0, columns - 1
            while codes[r, first] == UNSURE or codes[r, first] < 2 or widths[first] == 0:
                first += 1
            while codes[r, last] == UNSURE or codes[r, last] < 2 or widths[last] == 0:
                last -= 1
            _widen(extent, xs[first], ys[r], xs[last + 1], ys[r + 1])


@numba.njit(nogil=True, cache=True)
def _count_line(line, n, thresholds, xa, y, counts, extent):  # type: ignore[no-untyped-def]
    """The same for `n` pixels, one by one."""
    t_low, t_mid, t_high = thresholds
    low = mid = high = np.int32(0)
    for i in range(n):
        low += np.int32(line[i] > t_low)
        mid += np.int32(line[i] > t_mid)
        high += np.int32(line[i] > t_high)
    counts[0] += low
    counts[1] += mid
    counts[2] += high
    if mid:
        first, last = 0, n - 1
        while line[first] <= t_mid:
            first += 1
        while line[last] <= t_mid:
            last -= 1
        _widen(extent, xa + first, y, xa + last + 1, y + 1)


@numba.njit(nogil=True, cache=True)
def _score(logits_CLL, which_K, thresholds, mxi, mxw, pxi, pxw, xs, myi, myw, pyi, pyw, ys, count, box):  # type: ignore[no-untyped-def]
    width, height = pxi.shape[1], pyi.shape[1]
    columns, rows = _blocks(xs, width), _blocks(ys, height)
    codes = np.empty((rows, columns), np.int32)
    widths = (xs[1 : columns + 1] - xs[:columns]).astype(np.int32)
    side = logits_CLL.shape[1]
    low_row, high_row = np.empty(side + 2, np.float32), np.empty(side + 2, np.float32)
    patch = np.empty((_widest(ys), width), np.float32)
    middle = np.empty((8 + _widest(ys), width), np.float32)
    extent = np.empty(4, np.int64)
    for k in range(len(which_K)):
        logits = logits_CLL[which_K[k]]
        extent[0], extent[1], extent[2], extent[3] = width, height, 0, 0
        _count_sure(logits, thresholds, xs, ys, widths, low_row, high_row, codes, count[k], extent)
        for r in range(rows):
            ya, yb = ys[r], ys[r + 1]
            c = 0
            while ya < yb and c < columns:
                if codes[r, c] != UNSURE or widths[c] == 0:
                    c += 1
                    continue
                xa = xs[c]
                while c < columns and codes[r, c] == UNSURE:
                    c += 1
                xb = xs[c]
                _evaluate(logits, 0, 0, mxi, mxw, pxi, pxw, xa, xb, myi, myw, pyi, pyw, ya, yb, middle, patch)
                for j in range(yb - ya):
                    _count_line(patch[j], xb - xa, thresholds, xa, ya + j, count[k], extent)
        if count[k, 1]:
            for i in range(4):  # `box[k] = extent` takes the compiler a second
                box[k, i] = extent[i]


@numba.njit(nogil=True, cache=True)
def _draw(logits, row0, column0, threshold, mxi, mxw, pxi, pxw, xs, myi, myw, pyi, pyw, ys, x0, y0, bits):  # type: ignore[no-untyped-def]
    n_rows, n_columns = logits.shape
    x_end, y_end = x0 + bits.shape[0], y0 + bits.shape[1]
    patch = np.empty((_widest(ys), _widest(xs)), np.float32)
    middle = np.empty((8 + _widest(ys), _widest(xs)), np.float32)
    lowest, highest = np.empty((n_rows, n_columns), np.float32), np.empty((n_rows, n_columns), np.float32)
    low_row, high_row = np.empty(n_columns + 2, np.float32), np.empty(n_columns + 2, np.float32)
    _range_3x3(logits, n_rows, n_columns, lowest, highest, low_row, high_row)
    for r in range(n_rows):
        ya, yb = max(ys[row0 + r], y0), min(ys[row0 + r + 1], y_end)
        if ya >= yb:
            continue
        for c in range(n_columns):
            xa, xb = max(xs[column0 + c], x0), min(xs[column0 + c + 1], x_end)
            if xa >= xb:
                continue
            least, most = lowest[r, c], highest[r, c]
            slack = ROUNDING * max(abs(least), abs(most))
            if most + slack <= threshold:
                continue
            if least - slack > threshold:
                for i in range(xa - x0, xb - x0):
                    for j in range(ya - y0, yb - y0):
                        bits[i, j] = 1
                continue
            _evaluate(logits, row0, column0, mxi, mxw, pxi, pxw, xa, xb, myi, myw, pyi, pyw, ya, yb, middle, patch)
            for i in range(xb - xa):
                for j in range(yb - ya):
                    bits[xa + i - x0, ya + j - y0] = patch[j, i] > threshold
