"""Scores of all masks from their logits in two kernels: the twin of `amg.kernels.torch_resample.score`.

The first sorts the blocks of every mask (see `amg.kernels.resample`): those that clear the thresholds are counted by
area, the others are written to a list of the mask. The second goes through the lists, a block for each lane, and
evaluates its pixels as the reference does. A list has room for all blocks of its mask, so nothing is ever asked back:
the host does not wait. Counts are sums and boxes extremes of integers; in which order they come changes nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amg.kernels.resample import LOGITS_SIDE, ROUNDING, Axis
from amg.kernels.torch_resample import SUBNORMAL, Taps, on_device, rounded

MASKS_AT_ONCE = 512
"""Masks that share the room for lists: 134 MB at the most."""
BAND = 32
"""Rows of blocks that one program of the first kernel sorts."""
PARTS = 8
"""Programs of the second kernel for each mask."""
LANES = 128
"""Blocks that one of them evaluates at a time."""

# Kernels are compiled for no particular sizes (`do_not_specialize`), or each photo's would compile its own.

SIDE = tl.constexpr(LOGITS_SIDE)
SLACK = tl.constexpr(float(ROUNDING))
FLOOR = tl.constexpr(SUBNORMAL)


def score(logits_CLL: Tensor, x: Axis, y: Axis, *, low: float, middle: float, high: float) -> tuple[Tensor, Tensor]:
    """Counts (C, 3) above three thresholds (`low <= middle <= high`) and half-open boxes (C, 4) at `middle`, int64.

    In the crop's pixels, for all C masks; a mask without pixels has a box of zeros. The logits are float32 and finite.
    """
    c, device = len(logits_CLL), logits_CLL.device
    taps_x, taps_y = on_device(x, device), on_device(y, device)
    count_C3 = torch.zeros((c, 3), dtype=torch.int64, device=device)
    box_C4 = torch.zeros((c, 4), dtype=torch.int64, device=device)
    box_C4[:, 0], box_C4[:, 1] = taps_x.length, taps_y.length
    room = taps_x.blocks * taps_y.blocks
    listed_CB = torch.empty((min(c, MASKS_AT_ONCE), room), dtype=torch.int32, device=device)
    thresholds = rounded(low, middle, high)
    for begin in range(0, c, MASKS_AT_ONCE):
        span = slice(begin, begin + MASKS_AT_ONCE)
        _score(logits_CLL[span].contiguous(), listed_CB, taps_x, taps_y, thresholds, count_C3[span], box_C4[span])
    return count_C3, torch.where(count_C3[:, 1:2] > 0, box_C4, 0)


def _score(
    logits_CLL: Tensor,
    listed_CB: Tensor,
    x: Taps,
    y: Taps,
    thresholds: tuple[float, ...],
    count_C3: Tensor,
    box_C4: Tensor,
) -> None:
    c = len(logits_CLL)
    length_C = torch.zeros(c, dtype=torch.int32, device=logits_CLL.device)
    shared = (logits_CLL, listed_CB, listed_CB.shape[1], length_C, count_C3, box_C4, x.start_B, y.start_B)
    taps = *(x.weight_6N, x.step_N, x.length, x.widest), *(y.weight_6N, y.step_N, y.length, y.widest)
    sizes = x.blocks, y.blocks, x.length, y.length
    with torch.cuda.device_of(logits_CLL):  # Triton starts its programs on the current device
        _sort_blocks[c, triton.cdiv(y.blocks, BAND)](*shared, *sizes, *thresholds, BAND=BAND, num_warps=4)
        _evaluate_blocks[c, PARTS](*shared, *taps, *thresholds, LANES=LANES, PARTS=PARTS, num_warps=LANES // 32)


@triton.jit
def _smallest_and_largest(row_pointer, row, c):
    """Of three logits in a row from each of the columns `c` on; the last row and column are repeated."""
    row_pointer += tl.minimum(row, SIDE - 1) * SIDE
    v0 = tl.load(row_pointer + c)
    v1 = tl.load(row_pointer + tl.minimum(c + 1, SIDE - 1))
    v2 = tl.load(row_pointer + tl.minimum(c + 2, SIDE - 1))
    return tl.minimum(v0, tl.minimum(v1, v2)), tl.maximum(v0, tl.maximum(v1, v2))


@triton.jit(do_not_specialize=["room", "columns", "rows", "width", "height"])
def _sort_blocks(
    logits, listed, room, length, count, box, x_start, y_start, columns, rows, width, height, low, middle, high,
    BAND: tl.constexpr,
):  # fmt: skip
    """One mask and BAND rows of its blocks: count the sure ones, list the others."""
    mask = tl.program_id(0).to(tl.int64)
    first_row = tl.program_id(1) * BAND
    logits += mask * SIDE * SIDE
    listed += mask * room
    c = tl.arange(0, SIDE)
    is_column = c < columns
    xs = tl.load(x_start + c, mask=is_column, other=0)
    xe = tl.load(x_start + c + 1, mask=is_column, other=0)
    wide = xe - xs
    low_columns = tl.zeros([SIDE], tl.int64)
    middle_columns = tl.zeros([SIDE], tl.int64)
    high_columns = tl.zeros([SIDE], tl.int64)
    y0 = tl.zeros([SIDE], tl.int64) + height
    y1 = tl.zeros([SIDE], tl.int64)
    least0, most0 = _smallest_and_largest(logits, first_row, c)
    least1, most1 = _smallest_and_largest(logits, first_row + 1, c)
    for row in range(first_row, tl.minimum(first_row + BAND, rows)):
        least2, most2 = _smallest_and_largest(logits, row + 2, c)
        ys = tl.load(y_start + row)
        ye = tl.load(y_start + row + 1)
        if ys < ye:
            least = tl.minimum(least0, tl.minimum(least1, least2))
            most = tl.maximum(most0, tl.maximum(most1, most2))
            slack = tl.maximum(tl.abs(least), tl.abs(most)) * SLACK + FLOOR
            least -= slack
            most += slack
            area = wide * (ye - ys)
            surely = (least > low).to(tl.int32) + (least > middle).to(tl.int32) + (least > high).to(tl.int32)
            maybe = (most > low).to(tl.int32) + (most > middle).to(tl.int32) + (most > high).to(tl.int32)
            sure = (area > 0) & (surely == maybe)
            low_columns += tl.where(sure & (surely > 0), area, 0)
            middle_columns += tl.where(sure & (surely > 1), area, 0)
            high_columns += tl.where(sure & (surely > 2), area, 0)
            inside = sure & (surely > 1)
            y0 = tl.where(inside, tl.minimum(y0, ys), y0)
            y1 = tl.where(inside, tl.maximum(y1, ye), y1)
            unsure = ((area > 0) & (surely != maybe)).to(tl.int32)
            n = tl.sum(unsure)
            if n > 0:
                at = tl.atomic_add(length + mask, n) + tl.cumsum(unsure, 0) - 1
                tl.store(listed + at, c + row * SIDE, mask=unsure > 0)
        least0, most0 = least1, most1
        least1, most1 = least2, most2
    x0 = tl.where(middle_columns > 0, xs, width)
    x1 = tl.where(middle_columns > 0, xe, 0)
    _add(count, box, mask, low_columns, middle_columns, high_columns, x0, y0, x1, y1)


@triton.jit
def _add(count, box, mask, low, middle, high, x0, y0, x1, y1):
    """What a program's lanes found, to what is known of the mask."""
    tl.atomic_add(count + mask * 3, tl.sum(low))
    tl.atomic_add(count + mask * 3 + 1, tl.sum(middle))
    tl.atomic_add(count + mask * 3 + 2, tl.sum(high))
    tl.atomic_min(box + mask * 4, tl.min(x0, 0))
    tl.atomic_min(box + mask * 4 + 1, tl.min(y0, 0))
    tl.atomic_max(box + mask * 4 + 2, tl.max(x1, 0))
    tl.atomic_max(box + mask * 4 + 3, tl.max(y1, 0))


@triton.jit
def load_taps(weight, step, n, at, mask):
    """The six weights and the step of the pixels `at` of an axis with `n` of them."""
    w0 = tl.load(weight + at, mask=mask, other=0.0)
    w1 = tl.load(weight + n + at, mask=mask, other=0.0)
    w2 = tl.load(weight + 2 * n + at, mask=mask, other=0.0)
    w3 = tl.load(weight + 3 * n + at, mask=mask, other=0.0)
    w4 = tl.load(weight + 4 * n + at, mask=mask, other=0.0)
    w5 = tl.load(weight + 5 * n + at, mask=mask, other=0.0)
    return w0, w1, w2, w3, w4, w5, tl.load(step + at, mask=mask, other=0) > 0


# `fma(w0, a, w1 * b)`: as the reference mixes two values. It is written out, since calls are slow in the interpreter.


@triton.jit
def two_taps(v0, v1, v2, w0, w1, w2, w3, step):
    """The two values of the middle step between which a pixel lies, from the three before them along the axis."""
    return tl.fma(w0, v0, w1 * v1), tl.fma(w2, tl.where(step, v1, v0), w3 * tl.where(step, v2, v1))


@triton.jit
def along_y(left0, left1, left2, right0, right1, right2, x4, x5, w0, w1, w2, w3, w4, w5, step):
    """A pixel, from what its column makes of three rows of logits: values to its left and to its right."""
    above_left, below_left = two_taps(left0, left1, left2, w0, w1, w2, w3, step)
    above_right, below_right = two_taps(right0, right1, right2, w0, w1, w2, w3, step)
    below = tl.fma(x4, below_left, x5 * below_right)
    return tl.fma(w4, tl.fma(x4, above_left, x5 * above_right), w5 * below)


@triton.jit
def load_3x3(logits, row, column, mask):
    """The 3x3 logits from (row, column) on; the last row and column are repeated."""
    r0 = logits + row * SIDE
    r1 = logits + tl.minimum(row + 1, SIDE - 1) * SIDE
    r2 = logits + tl.minimum(row + 2, SIDE - 1) * SIDE
    c1 = tl.minimum(column + 1, SIDE - 1)
    c2 = tl.minimum(column + 2, SIDE - 1)
    a0 = tl.load(r0 + column, mask=mask, other=0.0)
    a1 = tl.load(r0 + c1, mask=mask, other=0.0)
    a2 = tl.load(r0 + c2, mask=mask, other=0.0)
    b0 = tl.load(r1 + column, mask=mask, other=0.0)
    b1 = tl.load(r1 + c1, mask=mask, other=0.0)
    b2 = tl.load(r1 + c2, mask=mask, other=0.0)
    d0 = tl.load(r2 + column, mask=mask, other=0.0)
    d1 = tl.load(r2 + c1, mask=mask, other=0.0)
    d2 = tl.load(r2 + c2, mask=mask, other=0.0)
    return a0, a1, a2, b0, b1, b2, d0, d1, d2


@triton.jit(do_not_specialize=["room", "width", "widest_x", "height", "widest_y"])
def _evaluate_blocks(
    logits, listed, room, length, count, box, x_start, y_start,
    x_weight, x_step, width, widest_x, y_weight, y_step, height, widest_y, low, middle, high,
    LANES: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """One mask and every PARTS-th piece of its list: all pixels of its blocks, a block for each lane."""
    mask = tl.program_id(0).to(tl.int64)
    logits += mask * SIDE * SIDE
    listed += mask * room
    lanes = tl.arange(0, LANES)
    low_lanes = tl.zeros([LANES], tl.int64)
    middle_lanes = tl.zeros([LANES], tl.int64)
    high_lanes = tl.zeros([LANES], tl.int64)
    x0 = tl.zeros([LANES], tl.int64) + width
    y0 = tl.zeros([LANES], tl.int64) + height
    x1 = tl.zeros([LANES], tl.int64)
    y1 = tl.zeros([LANES], tl.int64)
    n = tl.load(length + mask)
    for begin in range(tl.program_id(1) * LANES, n, PARTS * LANES):
        live = begin + lanes < n
        block = tl.load(listed + begin + lanes, mask=live, other=0)
        row, column = block // SIDE, block % SIDE
        a0, a1, a2, b0, b1, b2, d0, d1, d2 = load_3x3(logits, row, column, live)
        xs = tl.load(x_start + column)
        xe = tl.load(x_start + column + 1)
        ys = tl.load(y_start + row)
        ye = tl.load(y_start + row + 1)
        for across in range(widest_x):
            i = xs + across
            here_x = live & (i < xe)
            u0, u1, u2, u3, x4, x5, x_steps = load_taps(x_weight, x_step, width, i, here_x)
            left0, right0 = two_taps(a0, a1, a2, u0, u1, u2, u3, x_steps)
            left1, right1 = two_taps(b0, b1, b2, u0, u1, u2, u3, x_steps)
            left2, right2 = two_taps(d0, d1, d2, u0, u1, u2, u3, x_steps)
            for down in range(widest_y):
                j = ys + down
                here = here_x & (j < ye)
                w0, w1, w2, w3, w4, w5, y_steps = load_taps(y_weight, y_step, height, j, here)
                value = along_y(left0, left1, left2, right0, right1, right2, x4, x5, w0, w1, w2, w3, w4, w5, y_steps)
                low_lanes += (here & (value > low)).to(tl.int64)
                inside = here & (value > middle)
                middle_lanes += inside.to(tl.int64)
                high_lanes += (here & (value > high)).to(tl.int64)
                x0 = tl.where(inside, tl.minimum(x0, i), x0)
                y0 = tl.where(inside, tl.minimum(y0, j), y0)
                x1 = tl.where(inside, tl.maximum(x1, i + 1), x1)
                y1 = tl.where(inside, tl.maximum(y1, j + 1), y1)
    _add(count, box, mask, low_lanes, middle_lanes, high_lanes, x0, y0, x1, y1)
