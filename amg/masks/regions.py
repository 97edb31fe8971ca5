"""Small holes filled, small islands removed, with 8-connectivity, in no more of the image than the mask needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from amg.geometry import Size
from amg.masks.runs import Window

_EIGHT = np.ones((3, 3), np.int8)


@dataclass(frozen=True, slots=True, eq=False)
class Cleaned:
    """`changed`: a hole was filled or an island removed. `small`: every region was below the limit."""

    window: Window
    changed: bool
    small: bool


def clean(window: Window, image: Size, *, min_area: int) -> Cleaned:
    """Fill background regions below `min_area` pixels, then remove mask regions below it; the largest always stays.

    Background regions that touch the image's border count as holes too, as in the reference
    (`remove_small_regions`), where the mask may thus grow beyond its box.
    """
    filled, holes = _fill_holes(window, image, min_area)
    bits, x0, y0 = filled
    labels, n = _label(bits)
    areas = np.bincount(labels.reshape(-1), minlength=n + 1)[1:]
    small = areas < min_area
    if n == 0 or not small.any():
        return Cleaned(filled, changed=holes, small=False)
    keep = np.zeros(n + 1, np.bool_)
    keep[1:] = ~small
    if small.all():
        keep[1 + _first_largest(labels, areas, x0, y0)] = True
    return Cleaned((keep[labels].astype(np.uint8), x0, y0), changed=True, small=bool(small.all()))


def _first_largest(labels: NDArray[np.int32], areas: NDArray[np.int64], x0: int, y0: int) -> int:
    """Among the largest regions the one that OpenCV numbers first: it reads the image by rows of 2x2 blocks."""
    ties = np.flatnonzero(areas == areas.max())
    if len(ties) == 1:
        return int(ties[0])
    columns, rows = np.nonzero(np.isin(labels, ties + 1))
    first = np.lexsort(((columns + x0) // 2, (rows + y0) // 2))[0]
    return int(labels[columns[first], rows[first]]) - 1


def _fill_holes(window: Window, image: Size, min_area: int) -> tuple[Window, bool]:
    bits, x0, y0 = _with_margin(window, image)
    labels, n = _label(bits == 0)
    areas = np.bincount(labels.reshape(-1), minlength=n + 1)
    for inside, outside in _regions_beyond(labels, x0, y0, image):
        areas[inside] += outside
        if areas[inside] < min_area:
            return _fill_holes(_whole(window, image), image, min_area)
    fill = areas < min_area
    fill[0] = True
    if not fill[1:].any():
        return window, False
    return (fill[labels].astype(np.uint8), x0, y0), True


def _label(bits: NDArray[Any]) -> tuple[NDArray[np.int32], int]:
    """Regions numbered from 1, 0 elsewhere, and how many."""
    return cast(tuple[NDArray[np.int32], int], ndimage.label(bits, _EIGHT))


def _with_margin(window: Window, image: Size) -> Window:
    """One pixel of background around the box, where the image goes on, so that what lies outside shows as regions."""
    bits, x0, y0 = window
    x1, y1 = x0 + bits.shape[0], y0 + bits.shape[1]
    left, top, right, bottom = (int(v) for v in (x0 > 0, y0 > 0, x1 < image.width, y1 < image.height))
    return np.pad(bits, ((left, right), (top, bottom))), x0 - left, y0 - top


def _regions_beyond(labels: NDArray[np.int32], x0: int, y0: int, image: Size) -> list[tuple[int, int]]:
    """Labels of the window's background regions that go on outside it, each with the pixels it has out there.

    With something outside both beside and above or below, all of the outside hangs together; otherwise its two strips
    are apart.
    """
    x1, y1 = x0 + labels.shape[0], y0 + labels.shape[1]
    beside = [
        (int(labels[i, 0]), pixels)
        for i, pixels in ((0, x0 * image.height), (-1, (image.width - x1) * image.height))
        if pixels
    ]
    across = [
        (int(labels[0, j]), pixels)
        for j, pixels in ((0, y0 * image.width), (-1, (image.height - y1) * image.width))
        if pixels
    ]
    if beside and across:
        return [(beside[0][0], image.pixels - labels.size)]
    return beside + across


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
