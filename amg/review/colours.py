"""Colours for masks: distinct, pleasant, and far apart where masks touch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HUES = 11
TONES = ((0.76, 0.150), (0.64, 0.170), (0.87, 0.100))
"""Lightness and chroma of OKLCH: one wheel of hues in the middle, one darker, one lighter."""

FAR = 0.3
"""Colours farther apart than this in Oklab all count as different enough."""
COST_OF_USE = 0.03
"""How much of that distance a colour loses each time it is used."""

OKLAB_TO_LMS = np.array(
    ((1, 1, 1), (0.3963377774, -0.1055613458, -0.0894841775), (0.2158037573, -0.0638541728, -1.2914855480)),
)
LMS_TO_RGB = np.array(
    (
        (4.0767416621, -1.2684380046, -0.0041960863),
        (-3.3077115913, 2.6097574011, -0.7034186147),
        (0.2309699292, -0.3413193965, 1.7076147010),
    )
)
"""Both transposed, for rows of colours; source: Ottosson, "A perceptual color space for image processing", 2020."""


def choose_colours(labels_HW: NDArray[np.int32], count: int) -> NDArray[np.float64]:
    """RGB of 0 to 255 for labels 0 to `count`; masks that touch get colours far from each other.

    Greedy, largest mask first: far from the colours of the neighbours that have one, and not used much so far. The same
    labels give the same colours.
    """
    palette_C3, lab_C3 = palette(), _oklab()
    neighbours = _neighbours(labels_HW, count)
    chosen_K = np.full(count + 1, -1)
    used_C = np.zeros(len(palette_C3))
    for label in range(1, count + 1):
        taken = [chosen_K[n] for n in neighbours[label] if chosen_K[n] >= 0]
        distance_C = np.full(len(palette_C3), FAR)
        if taken:
            distance_C = np.minimum(distance_C, np.linalg.norm(lab_C3[:, None] - lab_C3[taken], axis=2).min(1))
        chosen_K[label] = np.argmax(distance_C - COST_OF_USE * used_C)
        used_C[chosen_K[label]] += 1
    colours_K3 = palette_C3[chosen_K]
    colours_K3[0] = 0
    return colours_K3


def palette() -> NDArray[np.float64]:
    """The colours as RGB of 0 to 255."""
    linear_C3 = np.clip((_oklab() @ OKLAB_TO_LMS) ** 3 @ LMS_TO_RGB, 0, 1)
    return 255 * np.where(linear_C3 <= 0.0031308, 12.92 * linear_C3, 1.055 * linear_C3 ** (1 / 2.4) - 0.055)


def lighten(colours_K3: NDArray[np.float64]) -> NDArray[np.float64]:
    """Halfway to white: what outlines are drawn with."""
    return colours_K3 + (255 - colours_K3) * 0.45


def _oklab() -> NDArray[np.float64]:
    """The palette in Oklab, where distances are about as far as they look (Ottosson, 2020)."""
    colours = []
    for tone, (lightness, chroma) in enumerate(TONES):
        for step in range(HUES):
            hue = 2 * np.pi * (step + tone / len(TONES)) / HUES
            colours.append((lightness, chroma * np.cos(hue), chroma * np.sin(hue)))
    return np.array(colours)


def _neighbours(labels_HW: NDArray[np.int32], count: int) -> list[set[int]]:
    neighbours: list[set[int]] = [set() for _ in range(count + 1)]
    for one, other in ((labels_HW[:, :-1], labels_HW[:, 1:]), (labels_HW[:-1], labels_HW[1:])):
        touch = (one != other) & (one > 0) & (other > 0)
        pairs = np.unique(one[touch].astype(np.int64) * (count + 1) + other[touch])
        for a, b in zip(*divmod(pairs, count + 1), strict=True):
            neighbours[a].add(int(b))
            neighbours[b].add(int(a))
    return neighbours
