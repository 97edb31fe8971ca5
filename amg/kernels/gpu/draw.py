"""Run lengths of many masks from their logits: the twin of `amg.kernels.torch_runs.run_lengths`.

A lane goes down one column of a mask's box and evaluates each pixel as the reference does; no bits are stored. It does
so twice: first to count where the value changes, then, when it is known where its changes belong, to write them there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from amg.kernels.gpu.score import SIDE, along_y, load_3x3, load_taps, two_taps
from amg.kernels.resample import Axis
from amg.kernels.torch_resample import on_device, rounded
from amg.kernels.torch_runs import lengths

LANES = 32
"""Columns of one program."""


def run_lengths(
    logits_KLL: Tensor,
    box_K4: Tensor,
    x: Axis,
    y: Axis,
    *,
    threshold: float,
    corner: tuple[int, int],
    image: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """Run lengths of K masks of one crop, all in one tensor (R), and where each mask's begin and end (K + 1), int64.

    Column by column through the whole image, zeros first, as in COCO. `box_K4`: half-open, in the crop, no pixel above
    the threshold outside of it. `corner`: x0 and y0 of the crop in the image. `image`: height and width. The host waits
    once, for the number of changes.
    """
    k, device = len(logits_KLL), logits_KLL.device
    taps_x, taps_y = on_device(x, device), on_device(y, device)
    changes_KX = torch.zeros((k, taps_x.length), dtype=torch.int64, device=device)
    height, pixels = image[0], image[0] * image[1]
    shared = (
        *(logits_KLL.contiguous(), box_K4.contiguous()),
        *(taps_x.block_N, taps_x.weight_6N, taps_x.step_N, taps_x.length),
        *(taps_y.block_N, taps_y.weight_6N, taps_y.step_N, taps_y.length, taps_y.start_B),
        *(rounded(threshold)[0], *corner, height, pixels),
    )
    grid = k, triton.cdiv(taps_x.length, LANES)
    with torch.cuda.device_of(logits_KLL):  # Triton starts its programs on the current device
        if k:
            _walk[grid](*shared, changes_KX, changes_KX, WRITE=False, LANES=LANES, num_warps=LANES // 32)
        end_KX = changes_KX.flatten().cumsum(0).view_as(changes_KX)
        position_Q = torch.empty(int(end_KX[-1, -1]) if k else 0, dtype=torch.int64, device=device)
        if len(position_Q):
            first_KX = end_KX - changes_KX
            _walk[grid](*shared, first_KX, position_Q, WRITE=True, LANES=LANES, num_warps=LANES // 32)
    return lengths(position_Q, changes_KX.sum(1), pixels=pixels)


@triton.jit
def _three_rows(logits, row, block, u0, u1, u2, u3, step, mask):
    """What columns make of the three rows of logits from `row` on: values to their left, values to their right."""
    a0, a1, a2, b0, b1, b2, d0, d1, d2 = load_3x3(logits, row, block, mask)
    left0, right0 = two_taps(a0, a1, a2, u0, u1, u2, u3, step)
    left1, right1 = two_taps(b0, b1, b2, u0, u1, u2, u3, step)
    left2, right2 = two_taps(d0, d1, d2, u0, u1, u2, u3, step)
    return left0, left1, left2, right0, right1, right2


@triton.jit
def _pixel(logits, column, row, x_block, x_weight, x_step, width, y_block, y_weight, y_step, height, mask):
    """The pixels at these columns and one row."""
    u0, u1, u2, u3, x4, x5, x_steps = load_taps(x_weight, x_step, width, column, mask)
    block = tl.load(x_block + column, mask=mask, other=0)
    left0, left1, left2, right0, right1, right2 = _three_rows(
        logits, tl.load(y_block + row), block, u0, u1, u2, u3, x_steps, mask
    )
    w0, w1, w2, w3, w4, w5, y_steps = load_taps(y_weight, y_step, height, row, row >= 0)
    return along_y(left0, left1, left2, right0, right1, right2, x4, x5, w0, w1, w2, w3, w4, w5, y_steps)


@triton.jit(do_not_specialize=["width", "height", "corner_x", "corner_y", "image_height", "pixels"])
def _walk(
    logits, box, x_block, x_weight, x_step, width, y_block, y_weight, y_step, height, y_start,
    threshold, corner_x, corner_y, image_height, pixels, count, position,
    WRITE: tl.constexpr, LANES: tl.constexpr,
):  # fmt: skip
    """LANES columns of one mask's box: to `count` (masks, columns) how often each changes.

    Or, with WRITE, to `position` where it does, from the places on that `count` says.
    """
    mask = tl.program_id(0).to(tl.int64)
    x0, y0 = tl.load(box + mask * 4), tl.load(box + mask * 4 + 1)
    x1, y1 = tl.load(box + mask * 4 + 2), tl.load(box + mask * 4 + 3)
    first = x0 + tl.program_id(1) * LANES
    if (first >= x1) | (y0 >= y1):
        return
    logits += mask * SIDE * SIDE
    column = first + tl.arange(0, LANES)
    live = column < x1
    count += mask * width + column
    at = tl.zeros([LANES], tl.int64)
    if WRITE:
        at += tl.load(count, mask=live, other=0)

    was = tl.zeros([LANES], tl.int32)
    last = x0
    if y1 - y0 == image_height:  # the pixel before the column's first is the last one of the column before
        last = x1 - 1
        beside = live & (column > x0)
        value = _pixel(
            logits, column - 1, y1 - 1, x_block, x_weight, x_step, width, y_block, y_weight, y_step, height, beside
        )
        was = (beside & (value > threshold)).to(tl.int32)

    u0, u1, u2, u3, x4, x5, x_steps = load_taps(x_weight, x_step, width, column, live)
    block = tl.load(x_block + column, mask=live, other=0)
    top = (column + corner_x) * image_height + corner_y
    for row in range(tl.load(y_block + y0), tl.load(y_block + y1 - 1) + 1):
        ys = tl.maximum(tl.load(y_start + row), y0)
        ye = tl.minimum(tl.load(y_start + row + 1), y1)
        if ys < ye:
            left0, left1, left2, right0, right1, right2 = _three_rows(logits, row, block, u0, u1, u2, u3, x_steps, live)
            for j in range(ys, ye):
                w0, w1, w2, w3, w4, w5, y_steps = load_taps(y_weight, y_step, height, j, j < ye)
                value = along_y(left0, left1, left2, right0, right1, right2, x4, x5, w0, w1, w2, w3, w4, w5, y_steps)
                now = (live & (value > threshold)).to(tl.int32)
                changes = now != was
                if WRITE:
                    tl.store(position + at, top + j, mask=changes)
                at += changes.to(tl.int64)
                was = now

    end = top + y1  # where a run ends that reaches the box's bottom, unless the next column goes on with it
    ends = (was > 0) & (column >= last) & (end < pixels)
    if WRITE:
        tl.store(position + at, end, mask=ends)
    else:
        tl.store(count, at + ends.to(tl.int64), mask=live)
