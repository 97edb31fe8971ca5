"""Sizes, boxes and crops, and the four frames a coordinate can be in.

`image`  pixels of the whole upright image
`crop`   pixels of one crop of it, at the image's own resolution
`model`  pixels of the crop after its longest side was resized to 1024
`unit`   the crop as a square from 0 to 1, in which point grids are made
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product


@dataclass(frozen=True, slots=True)
class Size:
    height: int
    width: int

    def __post_init__(self) -> None:
        assert self.height > 0 and self.width > 0, f"an empty size: {self}"

    @property
    def pixels(self) -> int:
        return self.height * self.width


@dataclass(frozen=True, slots=True)
class Box:
    """Half-open, in pixels: `x0 <= x < x1`, `y0 <= y < y1`."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size(self) -> Size:
        return Size(self.y1 - self.y0, self.x1 - self.x0)

    @property
    def xywh(self) -> tuple[int, int, int, int]:
        return self.x0, self.y0, self.x1 - self.x0, self.y1 - self.y0


@dataclass(frozen=True, slots=True)
class Crop:
    """A window of an image: layer 0 is the image, layer i has up to 4**i windows; `index` counts over all layers."""

    box: Box
    layer: int
    index: int


def plan_crops(image: Size, *, n_layers: int, overlap_ratio: float) -> list[Crop]:
    """Crops in the reference's order (layer by layer, x outer, y inner), without the empty and the doubled ones.

    Images smaller than a layer's number of windows give windows without pixels or the same window twice; those cannot
    add a mask and are left out. Source: `generate_crop_boxes` of segment-anything.
    """
    boxes = [(Box(0, 0, image.width, image.height), 0)]
    seen = {boxes[0][0]}
    for layer in range(1, n_layers + 1):
        n_side = 2**layer
        overlap = int(overlap_ratio * min(image.height, image.width) * (2 / n_side))
        width, height = (
            math.ceil((overlap * (n_side - 1) + extent) / n_side) for extent in (image.width, image.height)
        )
        for i, j in product(range(n_side), range(n_side)):
            x0, y0 = (width - overlap) * i, (height - overlap) * j
            box = Box(x0, y0, min(x0 + width, image.width), min(y0 + height, image.height))
            if box.x0 < box.x1 and box.y0 < box.y1 and box not in seen:
                seen.add(box)
                boxes.append((box, layer))
    return [Crop(box, layer, index) for index, (box, layer) in enumerate(boxes)]


def fit_longest_side(size: Size, side: int) -> Size:
    """The size after the longest side became `side`, rounded half up as the reference does; never below one pixel."""
    scale = side / max(size.height, size.width)
    return Size(max(1, int(size.height * scale + 0.5)), max(1, int(size.width * scale + 0.5)))
