"""Run lengths of many masks where their logits are: `amg.kernels.resample.draw` and `amg.kernels.runs` in PyTorch.

The bits of several boxes lie one after the other, by columns, each column with a place more for the pixel that follows
it in the image. Then a run ends wherever a bit differs from the one before it, over all boxes at once.

Letters: K masks, R run lengths, Q changes of all masks, and those of `torch_resample`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from amg.kernels.resample import Axis
from amg.kernels.torch_resample import MASKS_AT_ONCE, Taps, Tiles, areas, classify, cut, on_device, rounded

BITS_AT_ONCE = 2**25
"""Pixels of boxes that are drawn at a time, one byte each."""


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
    the threshold outside of it (see `torch_resample.score`). `corner`: x0 and y0 of the crop in the image. `image`:
    height and width. The host waits for the boxes, and a few times for each BITS_AT_ONCE.
    """
    taps_x, taps_y = on_device(x, logits_KLL.device), on_device(y, logits_KLL.device)
    boxes, (threshold,) = box_K4.tolist(), rounded(threshold)
    found = []
    for first, end in _groups(boxes):
        bits, starts_K1 = _draw(logits_KLL[first:end], box_K4[first:end], taps_x, taps_y, threshold)
        _continue_columns(bits, boxes[first:end], image[0])
        place_Q = (bits[1:-1] != bits[:-2]).nonzero()[:, 0]
        mask_Q = torch.searchsorted(starts_K1, place_Q, right=True) - 1
        x0, y0, _, y1 = box_K4[first:end][mask_Q].unbind(1)
        column, row = _divide(place_Q - starts_K1[mask_Q], y1 - y0 + 1)
        position_Q = (x0 + corner[0] + column) * image[0] + y0 + corner[1] + row
        inside_Q = position_Q < image[0] * image[1]
        found.append((position_Q[inside_Q], mask_Q[inside_Q] + first))
    position_Q, mask_Q = (torch.cat(parts) for parts in zip(*found, strict=True)) if found else (box_K4[:0, 0],) * 2
    changes_K = torch.bincount(mask_Q, minlength=len(boxes))
    return lengths(position_Q, changes_K, pixels=image[0] * image[1])


def lengths(position_Q: Tensor, changes_K: Tensor, *, pixels: int) -> tuple[Tensor, Tensor]:
    """Run lengths and offsets (see `run_lengths`) of masks that change at these positions, mask after mask.

    `changes_K`: how many of the positions are each mask's. The host does not wait.
    """
    k, q = len(changes_K), len(position_Q)
    offsets_K1 = torch.zeros(k + 1, dtype=torch.int64, device=position_Q.device)
    torch.cumsum(changes_K + 1, 0, out=offsets_K1[1:])
    mask_Q = torch.repeat_interleave(torch.arange(k, device=position_Q.device), changes_K, output_size=q)
    end_R = torch.full((q + k,), pixels, dtype=torch.int64, device=position_Q.device)
    end_R[torch.arange(q, device=position_Q.device) + mask_Q] = position_Q
    start_R = end_R.roll(1)
    start_R[offsets_K1[:-1]] = 0
    return end_R - start_R, offsets_K1


def _groups(boxes: list[list[int]]) -> Iterator[tuple[int, int]]:
    """First and end of at most MASKS_AT_ONCE boxes whose bits are BITS_AT_ONCE or fewer, and of one at least."""
    first, bits = 0, 0
    for k, (x0, y0, x1, y1) in enumerate(boxes):
        size = (x1 - x0) * (y1 - y0 + 1)
        if k > first and (bits + size > BITS_AT_ONCE or k == first + MASKS_AT_ONCE):
            yield first, k
            first, bits = k, 0
        bits += size
    if boxes:
        yield first, len(boxes)


def _draw(logits_KLL: Tensor, box_K4: Tensor, x: Taps, y: Taps, threshold: float) -> tuple[Tensor, Tensor]:
    """The bits of K boxes between two zeros, by columns, with a zero after each; and where the boxes begin and end.

    The last of them is no pixel: what is not in a box is written there, and then it is a zero again.
    """
    x0, y0, x1, y1 = box_K4.unbind(1)
    starts_K1 = torch.zeros(len(box_K4) + 1, dtype=torch.int64, device=box_K4.device)
    torch.cumsum((x1 - x0) * (y1 - y0 + 1), 0, out=starts_K1[1:])
    bits = torch.zeros(int(starts_K1[-1]) + 2, dtype=torch.bool, device=box_K4.device)

    def put(tiles: Tiles, above_UYX: Tensor) -> None:
        left, top, right, bottom = (side[tiles.mask_U, None, None] for side in (x0, y0, x1, y1))
        column, row = tiles.x_UX[:, None, :], tiles.y_UY[:, :, None]
        inside = tiles.inside_UYX & (column >= left) & (column < right) & (row >= top) & (row < bottom)
        place = starts_K1[tiles.mask_U, None, None] + (column - left) * (bottom - top + 1) + row - top + 1
        place = torch.where(inside, place, len(bits) - 1)
        bits.scatter_(0, place.flatten(), above_UYX.expand_as(place).flatten())

    surely, maybe = classify(logits_KLL, x, y, (threshold,))
    surely, maybe = surely > 0, maybe > 0
    touched = _blocks_of(box_K4, x, y)
    above_U3, open_U3 = (surely & touched).nonzero(), (maybe & ~surely & touched).nonzero()
    for tiles in cut(logits_KLL, above_U3, x, y):
        put(tiles, bits.new_ones(()))
    undecided = [torch.zeros(0, dtype=torch.bool, device=bits.device)]
    for tiles in cut(logits_KLL, open_U3, x, y):
        value = tiles.nearly()
        undecided.append(tiles.undecided(value, (threshold,)))
        put(tiles, value > threshold)
    for tiles in cut(logits_KLL, open_U3[torch.cat(undecided)], x, y):
        put(tiles, tiles.exactly() > threshold)
    bits[-1] = False
    return bits, starts_K1


def _blocks_of(box_K4: Tensor, x: Taps, y: Taps) -> Tensor:
    """Which blocks have pixels in each box (K, blocks of y, blocks of x)."""
    x0, y0, x1, y1 = box_K4[:, :, None].unbind(1)
    columns = (x.start_B[:-1] < x1) & (x.start_B[1:] > x0)
    rows = (y.start_B[:-1] < y1) & (y.start_B[1:] > y0)
    return rows[:, :, None] & columns[:, None, :] & (areas(x, y) > 0)


def _continue_columns(bits: Tensor, boxes: list[list[int]], height: int) -> None:
    """After a column from the image's top to its bottom comes the first pixel of the next one."""
    start = 1
    for x0, y0, x1, y1 in boxes:
        end = start + (x1 - x0) * (y1 - y0 + 1)
        if y1 - y0 == height and x1 - x0 > 1:
            columns = bits[start:end].view(x1 - x0, height + 1)
            columns[:-1, -1] = columns[1:, 0]
        start = end


def _divide(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    quotient = a // b
    return quotient, a - quotient * b
