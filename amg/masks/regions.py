"""Small holes filled, small islands removed, with 8-connectivity, in no more of the image than the mask needs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amg.geometry import Size
from amg.kernels import regions
from amg.kernels.regions import Regions
from amg.masks.runs import Window


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """`changed`: a hole was filled or an island removed. `small`: every region was below the limit."""

    window: Window
    changed: bool
    small: bool


def clean(window: Window, image: Size, *, min_area: int) -> Cleaned:
    """Fill background regions below `min_area` pixels, then remove mask regions below it; the largest always stays.

    The window's bits are overwritten. Background regions that touch the image's border count as holes too, as in the
    reference (`remove_small_regions`), where the mask may thus grow beyond its box.
    """
    window, filled = _fill_holes(window, image, min_area)
    bits, x0, y0 = window
    found = regions.find(bits, 1)
    small_C = found.area_C < min_area
    if not small_C.any():
        return Cleaned(window, changed=filled, small=False)
    remove_C = small_C.copy()
    if small_C.all():
        remove_C[_first_largest(found, x0, y0)] = False
    regions.write(bits, found.run_R3[remove_C[found.region_R]], 0)
    return Cleaned(window, changed=True, small=bool(small_C.all()))


def _first_largest(found: Regions, x0: int, y0: int) -> int:
    """Among the largest regions the one that OpenCV numbers first: it reads the image by rows of 2x2 blocks."""
    ties = np.flatnonzero(found.area_C == found.area_C.max())
    runs = np.flatnonzero(np.isin(found.region_R, ties))
    columns, rows = found.run_R3[runs, 0], found.run_R3[runs, 1]
    first = np.lexsort(((columns + x0) // 2, (rows + y0) // 2))[0]
    return int(found.region_R[runs[first]])


def _fill_holes(window: Window, image: Size, min_area: int) -> tuple[Window, bool]:
    """The window, which is the whole image's where the mask grows beyond it, and whether a hole was filled."""
    bits = window[0]
    found = regions.find(bits, 0)
    beyond = _regions_beyond(found, window, image)
    if any(found.area_C[inside_C].sum() + outside < min_area for inside_C, outside in beyond):
        return _fill_holes(_whole(window, image), image, min_area)
    small_C = found.area_C < min_area
    for inside_C, _ in beyond:
        small_C[inside_C] = False
    regions.write(bits, found.run_R3[small_C[found.region_R]], 1)
    return window, bool(small_C.any())


def _regions_beyond(found: Regions, window: Window, image: Size) -> list[tuple[NDArray[np.int64], int]]:
    """What lies outside the window, in pieces that hang together: background regions that touch it, and its pixels.

    With something outside both beside and above or below, all of the outside hangs together; otherwise its two strips
    are apart.
    """
    bits, x0, y0 = window
    width, height = bits.shape
    column_R, first_R, behind_R = found.run_R3.T
    strips = [
        (column_R == 0, x0 * image.height),
        (column_R == width - 1, (image.width - x0 - width) * image.height),
        (first_R == 0, y0 * image.width),
        (behind_R == height, (image.height - y0 - height) * image.width),
    ]
    there = [(found.region_R[touches_R], pixels) for touches_R, pixels in strips if pixels]
    beside, across = any(pixels for _, pixels in strips[:2]), any(pixels for _, pixels in strips[2:])
    if beside and across:
        return [(np.unique(np.concatenate([region for region, _ in there])), image.pixels - bits.size)]
    return [(np.unique(region), pixels) for region, pixels in there]


def _whole(window: Window, image: Size) -> Window:
    bits, x0, y0 = window
    whole = np.zeros((image.width, image.height), np.uint8)
    whole[x0 : x0 + bits.shape[0], y0 : y0 + bits.shape[1]] = bits
    return whole, 0, 0


def bounding_box(window: Window) -> NDArray[np.int64]:
    """Half-open x0, y0, x1, y1 of the mask's pixels in the image; zeros when it has none."""
    bits, x0, y0 = window
    columns, rows = np.flatnonzero(bits.any(axis=1)), np.flatnonzero(bits.any(axis=0))
    if not len(columns):
        return np.zeros(4, np.int64)
    return np.array([x0 + columns[0], y0 + rows[0], x0 + columns[-1] + 1, y0 + rows[-1] + 1], np.int64)
