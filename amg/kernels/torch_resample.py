"""Scores of all masks where their logits are: the arithmetic of `amg.kernels.resample` in PyTorch, on any device.

Three looks, each at what the one before it left open. Blocks (see `resample`) whose 3x3 logits clear the thresholds are
counted by area. The pixels of the others are evaluated in float32, as sums of 3x3 weighted logits: that is not the
reference's order of operations, but no further from it than `ROUNDING`, so a value that clears the thresholds by this
much is on the right side of them. The few blocks with a pixel that does not are evaluated as the reference does it.

The host waits twice for each `MASKS_AT_ONCE` masks: for the number of blocks after the first and the second look.

Letters: C masks, N pixels of an axis, B its blocks (two of them: those of y, then those of x), U blocks of any masks
that are looked at more closely, Y and X the pixels of each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amg.kernels.resample import LOGITS_SIDE, ROUNDING, Axis

MASKS_AT_ONCE = 192
"""The masks of 64 points; what is held of them beside the logits takes some 400 MB."""
PIXELS_AT_ONCE = 2**22
"""Of blocks that are looked at closely: the third look takes 100 bytes each."""
SUBNORMAL = 2.0**-140
"""Numbers below 2**-126 lose a fixed amount, not a part of theirs."""


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """What the pixels of an axis take from the three logits that begin at their block, on a device.

    A pixel is `mix(w4, left, w5, right)` with `left = mix(w0, v[0], w1, v[1])` and
    `right = mix(w2, v[step], w3, v[step + 1])`. There w is its column of `weight_6N`, v are the logits from its block
    on (the last one repeated beyond the end), and `mix(w, a, u, b)` is `fma(w, a, u * b)`. Without rounding it is the
    sum of v times its column of `blend_3N`. `start_B` (int64, one more than there are blocks): where a block begins.
    """

    weight_6N: Tensor
    blend_3N: Tensor
    step_N: Tensor
    block_N: Tensor
    start_B: Tensor
    widest: int

    @property
    def length(self) -> int:
        return len(self.block_N)

    @property
    def blocks(self) -> int:
        return len(self.start_B) - 1

    @property
    def size_B(self) -> Tensor:
        """The pixels of each block."""
        return self.start_B.diff()


@lru_cache(maxsize=128)
def on_device(axis: Axis, device: torch.device) -> Taps:
    """The axis as it is used on a device; copied there when it is first asked for, and the host waits for the copy."""
    n, blocks = axis.length, int(axis.block_N[-1]) + 1
    first_N, second_N = axis.pixel_index_2N
    step_N = axis.middle_index_2S[0, second_N] - axis.block_N
    weight_6N = np.concatenate(
        [axis.middle_weight_2S[:, first_N], axis.middle_weight_2S[:, second_N], axis.pixel_weight_2N]
    )
    weight_9N = np.concatenate([weight_6N, _blend(weight_6N.astype(np.float64), step_N).astype(np.float32)])
    whole_3E = np.zeros((3, max(n, blocks + 1) // 2 * 2 + 2), np.int64)  # even rows: kernels like aligned pointers
    whole_3E[0, :n], whole_3E[1, :n], whole_3E[2, : blocks + 1] = step_N, axis.block_N, axis.start_B[: blocks + 1]
    weights, (steps, block, start) = torch.from_numpy(weight_9N).to(device), torch.from_numpy(whole_3E).to(device)
    widest = int(np.diff(axis.start_B).max())
    return Taps(weights[:6], weights[6:], steps[:n], block[:n], start[: blocks + 1], widest)


def _blend(w_6N: NDArray[np.float64], step_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the weights of both steps come to for the three logits."""
    stays = step_N == 0
    right_3N = np.where(stays, [w_6N[2], w_6N[3], 0 * w_6N[3]], [0 * w_6N[2], w_6N[2], w_6N[3]])
    left_3N = np.stack([w_6N[0], w_6N[1], np.zeros(len(step_N))])
    return w_6N[4] * left_3N + w_6N[5] * right_3N


def score(logits_CLL: Tensor, x: Axis, y: Axis, *, low: float, middle: float, high: float) -> tuple[Tensor, Tensor]:
    """Counts (C, 3) above three thresholds (`low <= middle <= high`) and half-open boxes (C, 4) at `middle`, int64.

    In the crop's pixels, for all C masks, on the device of the logits; a mask without pixels has a box of zeros. The
    logits are float32 and finite. The device needs float64, for a handful of pixels.
    """
    taps_x, taps_y = on_device(x, logits_CLL.device), on_device(y, logits_CLL.device)
    thresholds = rounded(low, middle, high)
    found = _Found.nothing(logits_CLL, taps_x, taps_y)
    if not len(logits_CLL):
        return found.count_C3, found.box_C4
    for logits, part in zip(logits_CLL.split(MASKS_AT_ONCE), found.split(MASKS_AT_ONCE), strict=True):
        surely, maybe = classify(logits, taps_x, taps_y, thresholds)
        part.add_sure(surely, surely == maybe, taps_x, taps_y)
        open_U3 = ((surely != maybe) & (areas(taps_x, taps_y) > 0)).nonzero()
        undecided = [torch.zeros(0, dtype=torch.bool, device=logits.device)]
        for tiles in cut(logits, open_U3, taps_x, taps_y):
            value = tiles.nearly()
            undecided.append(tiles.undecided(value, thresholds))
            part.add_pixels(tiles, value, thresholds, ~undecided[-1])
        for tiles in cut(logits, open_U3[torch.cat(undecided)], taps_x, taps_y):
            part.add_pixels(tiles, tiles.exactly(), thresholds, None)
    return found.count_C3, torch.where(found.count_C3[:, 1:2] > 0, found.box_C4, 0)


def rounded(*thresholds: float) -> tuple[float, ...]:
    """Thresholds as float32 has them."""
    return tuple(float(np.float32(t)) for t in thresholds)


def areas(x: Taps, y: Taps) -> Tensor:
    """The pixels of each block (blocks of y, blocks of x), int64."""
    return y.size_B[:, None] * x.size_B


def classify(logits_CLL: Tensor, x: Taps, y: Taps, thresholds: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """How many thresholds all pixels of each block are surely above, and how many some may be above, as uint8."""
    seen = logits_CLL[:, : y.blocks + 2, : x.blocks + 2]
    beyond = (0, x.blocks + 2 - seen.shape[2], 0, y.blocks + 2 - seen.shape[1])
    seen = F.pad(seen, beyond, mode="replicate") if any(beyond) else seen
    most = F.max_pool2d(seen, 3, stride=1)
    least = F.max_pool2d(-seen, 3, stride=1).neg_()
    slack = slack_of(torch.maximum(least.abs(), most.abs()))
    most += slack
    least -= slack
    surely = torch.zeros_like(most, dtype=torch.uint8)
    maybe = torch.zeros_like(surely)
    for threshold in thresholds:
        surely += least > threshold
        maybe += most > threshold
    return surely, maybe


def slack_of(largest: Tensor) -> Tensor:
    """How far rounding can move a value that is made of logits up to this size."""
    return largest * float(ROUNDING) + SUBNORMAL


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """Counts and boxes so far; where there is nothing yet a box begins at the end of the crop and ends at 0."""

    count_C3: Tensor
    box_C4: Tensor

    @classmethod
    def nothing(cls, logits_CLL: Tensor, x: Taps, y: Taps) -> _Found:
        c, device = len(logits_CLL), logits_CLL.device
        count_C3 = torch.zeros((c, 3), dtype=torch.int64, device=device)
        box_C4 = torch.zeros((c, 4), dtype=torch.int64, device=device)
        box_C4[:, 0], box_C4[:, 1] = x.length, y.length
        return cls(count_C3, box_C4)

    def split(self, n: int) -> Iterator[_Found]:
        return map(_Found, self.count_C3.split(n), self.box_C4.split(n))

    def add_sure(self, level_CBB: Tensor, sure_CBB: Tensor, x: Taps, y: Taps) -> None:
        """Count whole blocks, of which all pixels are above the first `level` thresholds, where that is `sure`."""
        area_BB = areas(x, y)
        for t in range(3):
            self.count_C3[:, t] += torch.where(sure_CBB & (level_CBB > t), area_BB, 0).sum((1, 2))
        inside_CBB = sure_CBB & (level_CBB > 1) & (area_BB > 0)
        sides = [(inside_CBB.any(1), x), (inside_CBB.any(2), y)]
        for axis, (any_CB, taps) in enumerate(sides):
            self._widen(axis, None, *_extent(any_CB, taps.start_B[:-1], taps.start_B[1:], taps.length))

    def add_pixels(
        self, tiles: Tiles, value_UYX: Tensor, thresholds: tuple[float, ...], which_U: Tensor | None
    ) -> None:
        """Count the pixels of some of the blocks, or of all."""
        above = [value_UYX > t for t in thresholds]
        counts_U3 = torch.stack([a.sum((1, 2)) for a in above], dim=1)
        inside = above[1]
        if which_U is not None:
            counts_U3 *= which_U[:, None]
            inside = inside & which_U[:, None, None]
        self.count_C3.index_add_(0, tiles.mask_U, counts_U3)
        for axis, (any_UN, at_UN, taps) in enumerate(
            [(inside.any(1), tiles.x_UX, tiles.x), (inside.any(2), tiles.y_UY, tiles.y)]
        ):
            self._widen(axis, tiles.mask_U, *_extent(any_UN, at_UN, at_UN + 1, taps.length))

    def _widen(self, axis: int, mask_U: Tensor | None, first_U: Tensor, end_U: Tensor) -> None:
        """Make the boxes of these masks (or of all, one each) reach from `first` to `end` at least."""
        if mask_U is None:
            mask_U = torch.arange(len(first_U), device=first_U.device)
        self.box_C4[:, axis].scatter_reduce_(0, mask_U, first_U, "amin")
        self.box_C4[:, axis + 2].scatter_reduce_(0, mask_U, end_U, "amax")


def _extent(any_UN: Tensor, first_UN: Tensor, end_UN: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return torch.where(any_UN, first_UN, length).amin(1), torch.where(any_UN, end_UN, 0).amax(1)


def cut(logits_CLL: Tensor, block_U3: Tensor, x: Taps, y: Taps) -> Iterator[Tiles]:
    """Blocks (mask, row, column) as tiles of pixels, in pieces of at most PIXELS_AT_ONCE (and one block at least)."""
    near = torch.arange(3, device=logits_CLL.device)
    for mask_U, row_U, column_U in map(
        torch.unbind, block_U3.T.split(max(1, PIXELS_AT_ONCE // (x.widest * y.widest)), 1)
    ):
        rows_U3 = (row_U[:, None] + near).clamp(max=LOGITS_SIDE - 1)
        columns_U3 = (column_U[:, None] + near).clamp(max=LOGITS_SIDE - 1)
        logits_U33 = logits_CLL[mask_U[:, None, None], rows_U3[:, :, None], columns_U3[:, None, :]]
        yield Tiles(logits_U33, mask_U, *_pixels(column_U, x), *_pixels(row_U, y), x, y)


def _pixels(block_U: Tensor, taps: Taps) -> tuple[Tensor, Tensor]:
    """The pixels of each block, as many as the widest has, and which of them are its own; the others are any pixels."""
    at = taps.start_B[block_U][:, None] + torch.arange(taps.widest, device=block_U.device)
    return at.clamp(max=taps.length - 1), at < taps.start_B[block_U + 1][:, None]


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """U blocks with their pixels `y_UY` and `x_UX`, of which `_inside` are theirs, and the logits under them."""

    logits_U33: Tensor
    mask_U: Tensor
    x_UX: Tensor
    x_inside_UX: Tensor
    y_UY: Tensor
    y_inside_UY: Tensor
    x: Taps
    y: Taps

    @property
    def inside_UYX(self) -> Tensor:
        return self.y_inside_UY[:, :, None] & self.x_inside_UX[:, None, :]

    def nearly(self) -> Tensor:
        """The pixels' values (U, Y, X) but for rounding: a few units in the last place of the largest logit.

        Pixels that are not the block's are -inf: not above anything and not near it.
        """
        x_3UX, y_3UY = self.x.blend_3N[:, self.x_UX], self.y.blend_3N[:, self.y_UY]
        rows_U3X = sum(x_3UX[k][:, None, :] * self.logits_U33[:, :, k, None] for k in range(3))
        value = y_3UY[0][:, :, None] * rows_U3X[:, None, 0]
        value.addcmul_(y_3UY[1][:, :, None], rows_U3X[:, None, 1])
        value.addcmul_(y_3UY[2][:, :, None], rows_U3X[:, None, 2])
        return value.masked_fill_(~self.inside_UYX, -torch.inf)

    def undecided(self, value_UYX: Tensor, thresholds: tuple[float, ...]) -> Tensor:
        """Which blocks have a pixel so near to a threshold that rounding could put it on the other side."""
        slack_U11 = slack_of(self.logits_U33.abs().amax((1, 2), keepdim=True))
        near = [((value_UYX - t).abs_() <= slack_U11).any(2).any(1) for t in thresholds]
        return torch.stack(near).any(0)

    def exactly(self) -> Tensor:
        """The pixels' values (U, Y, X) as the reference has them, bit for bit; -inf where they are not the block's."""
        x_6UX, y_6UY = self.x.weight_6N[:, self.x_UX], self.y.weight_6N[:, self.y_UY]
        x_step_UX, y_step_UY = self.x.step_N[self.x_UX] > 0, self.y.step_N[self.y_UY] > 0
        v_3U3 = self.logits_U33.unbind(2)
        left, right = _two_taps([v[:, :, None] for v in v_3U3], x_6UX[:, :, None, :], x_step_UX[:, None, :])
        y_6UY1, y_step_UY1 = y_6UY[..., None], y_step_UY[..., None]
        above_left, below_left = _two_taps([v[:, None] for v in left.unbind(1)], y_6UY1, y_step_UY1)
        above_right, below_right = _two_taps([v[:, None] for v in right.unbind(1)], y_6UY1, y_step_UY1)
        x_4, x_5 = x_6UX[4][:, None], x_6UX[5][:, None]
        above, below = _mix(x_4, above_left, x_5, above_right), _mix(x_4, below_left, x_5, below_right)
        return _mix(y_6UY1[4], above, y_6UY1[5], below).masked_fill_(~self.inside_UYX, -torch.inf)


def _two_taps(v: list[Tensor], weight_6: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """The two values of the middle step between which a pixel lies, from the three before them along the axis."""
    first = _mix(weight_6[0], v[0], weight_6[1], v[1])
    second = _mix(weight_6[2], torch.where(step, v[1], v[0]), weight_6[3], torch.where(step, v[2], v[1]))
    return first, second


def _mix(w0: Tensor, a: Tensor, w1: Tensor, b: Tensor) -> Tensor:
    """`fma(w0, a, w1 * b)` of float32, with one rounding of `w0 * a + (w1 * b)`.

    The product is exact in float64, the sum may not be: rounded to float64 and then to float32 it could come out one
    unit off. So what the sum lost is found (Knuth's two-sum), and a sum that lost something is moved to its neighbour
    with an odd last bit on that side (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums"), from which
    the second rounding goes where one rounding would have gone.
    """
    product, addend = w0.double() * a.double(), (w1 * b).double()
    total = product + addend
    part = total - product
    lost = (product - (total - part)) + (addend - part)
    bits = total.view(torch.int64)
    outward = torch.where((lost > 0) == (total > 0), 1, -1)
    bits = torch.where((lost != 0) & (bits & 1 == 0), bits + outward, bits)
    return bits.view(torch.float64).float()
