"""Drawing: from the kept logits of a candidate to the run lengths of its mask in the image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amg.geometry import Size
from amg.kernels import resample
from amg.kernels import runs as kernel
from amg.masks.score import Lens

Window = tuple[NDArray[np.uint8], int, int]
"""The pixels of a mask inside a box, transposed to (width, height), and the box's x0 and y0 in the image."""


def draw(
    logits_V: NDArray[np.float32],
    window_4: NDArray[np.int32],
    box_4: NDArray[np.int64],
    lens: Lens,
    *,
    threshold: float,
) -> Window:
    """The bits of one mask. `logits_V`: its window of the logits, row by row; `box_4`: half-open, in the image."""
    row, column, rows, columns = (int(v) for v in window_4)
    x0, y0 = int(box_4[0]), int(box_4[1])
    if rows == 0:
        return np.zeros((0, 0), np.uint8), 0, 0
    offset = np.array([lens.crop.box.x0, lens.crop.box.y0] * 2)
    bits = resample.draw(
        logits_V.reshape(rows, columns), (row, column), box_4 - offset, lens.x, lens.y, threshold=threshold
    )
    return bits, x0, y0


def window_of(runs_R: NDArray[np.uint32], box_4: NDArray[np.int64], image: Size) -> Window:
    """The bits of a mask in its half-open box, from its run lengths in the image; nothing of it lies outside."""
    x0, y0, x1, y1 = (int(v) for v in box_4)
    return kernel.bits(runs_R, x0, y0, x1, y1, image.height), x0, y0


def run_lengths(window: Window, image: Size) -> NDArray[np.uint32]:
    """Column-major run lengths of the mask in the image, beginning with the zeros."""
    bits, x0, y0 = window
    return kernel.run_lengths(bits, x0, y0, image.height, image.width)
