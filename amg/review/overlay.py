"""The masks of an image as one transparent layer of colours, drawn at any scale from their run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amg.geometry import Size
from amg.review.colours import choose_colours, lighten

FILL_ALPHA = 0.46
EDGE_ALPHA = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class DrawnMask:
    """One mask as run lengths (column-major, zeros first) over the image, and its area in pixels of the image."""

    runs_R: NDArray[np.uint32]
    area: int


def scale_to_fit(size: Size, max_side: int) -> Size:
    """The size with its longest side at most `max_side`; images are never enlarged."""
    scale = min(1.0, max_side / max(size.height, size.width))
    return Size(max(1, round(size.height * scale)), max(1, round(size.width * scale)))


def paint(
    masks: Sequence[DrawnMask], size: Size, shown: Size, *, colours_K3: NDArray[np.float64] | None = None
) -> NDArray[np.uint8]:
    """The layer as `rgba_HWC` of the size `shown`: largest mask first, thin outlines, clear where there is no mask.

    `colours_K3` are the masks' colours, RGB of 0 to 255; without them neighbours get colours far from each other.
    """
    labels_HW = np.zeros((shown.height, shown.width), np.int32)
    order_K = sorted(range(len(masks)), key=lambda k: -masks[k].area)
    for label, k in enumerate(order_K, start=1):
        labels_HW[sample(masks[k].runs_R, size, shown)] = label
    if colours_K3 is None:
        colours_L3 = choose_colours(labels_HW, len(masks))
    else:
        colours_L3 = np.concatenate([np.zeros((1, 3)), colours_K3[order_K]])  # L: labels, 0 is no mask
    edge_HW = edges(labels_HW)
    rgba_HWC = np.zeros((*labels_HW.shape, 4), np.uint8)
    rgba_HWC[..., :3] = np.where(edge_HW[..., None], lighten(colours_L3)[labels_HW], colours_L3[labels_HW])
    rgba_HWC[..., 3] = np.where(edge_HW, round(EDGE_ALPHA * 255), round(FILL_ALPHA * 255))
    rgba_HWC[labels_HW == 0] = 0
    return rgba_HWC


def sample(runs_R: NDArray[np.uint32], size: Size, shown: Size) -> NDArray[np.bool_]:
    """The mask at the centres of the pixels of `shown`, without ever drawing it at its own size."""
    mask_HW = np.zeros((shown.height, shown.width), np.bool_)
    if len(runs_R) < 2:
        return mask_HW
    rows_H = ((np.arange(shown.height) + 0.5) * size.height / shown.height).astype(np.int64)
    columns_W = ((np.arange(shown.width) + 0.5) * size.width / shown.width).astype(np.int64)
    ends_R = np.cumsum(runs_R, dtype=np.int64)
    end_of_last = ends_R[len(ends_R) // 2 * 2 - 1]
    left, right = np.searchsorted(columns_W, (ends_R[0] // size.height, -(-end_of_last // size.height)))
    positions_WH = columns_W[left:right, None] * size.height + rows_H
    run_WH = np.searchsorted(ends_R, positions_WH.ravel(), side="right").reshape(positions_WH.shape)
    mask_HW[:, left:right] = run_WH.T % 2 == 1
    return mask_HW


def edges(labels_HW: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Pixels of a mask whose right or lower neighbour belongs to another one, or to none."""
    edge_HW = np.zeros(labels_HW.shape, np.bool_)
    edge_HW[:, :-1] |= labels_HW[:, :-1] != labels_HW[:, 1:]
    edge_HW[:-1, :] |= labels_HW[:-1, :] != labels_HW[1:, :]
    # A border towards no mask is drawn on the mask's side whichever side that is.
    edge_HW[:, 1:] |= (labels_HW[:, :-1] == 0) & (labels_HW[:, 1:] != 0)
    edge_HW[1:, :] |= (labels_HW[:-1, :] == 0) & (labels_HW[1:, :] != 0)
    return edge_HW & (labels_HW > 0)


def blend(pixels_HWC: NDArray[np.uint8], rgba_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The picture with the layer laid over it."""
    alpha_HW1 = rgba_HWC[..., 3:] / np.float32(255)
    return np.rint(pixels_HWC * (1 - alpha_HW1) + rgba_HWC[..., :3] * alpha_HW1).astype(np.uint8)
