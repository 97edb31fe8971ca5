"""Where the prompts are: a regular grid of points for each crop layer, or the user's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings
from amg.geometry import Crop, Size
from amg.tensors import Points


def regular_grid(points_per_side: int) -> NDArray[np.float64]:
    """(points_per_side**2, 2) x and y in the unit square, row by row, at the middle of each cell."""
    half = 1 / (2 * points_per_side)
    along = np.linspace(half, 1 - half, points_per_side)
    x, y = np.meshgrid(along, along)
    return np.stack([x, y], axis=-1).reshape(-1, 2)


def layer_grids(settings: GenerateSettings) -> list[NDArray[np.float64]]:
    """One grid of (P, 2) points in the unit square for every crop layer, the whole image first."""
    if settings.point_grids is not None:
        return [np.array(grid, np.float64).reshape(-1, 2) for grid in settings.point_grids]
    return [regular_grid(side) for side in settings.sides]


def place(grid_P2: NDArray[np.float64], crop: Crop, resized: Size) -> Points:
    """The grid's points on a crop whose pixels were resized to `resized` in the model frame."""
    size = crop.box.size
    xy_crop = grid_P2 * np.array([size.width, size.height], np.float64)
    xy_model = xy_crop * np.array([resized.width / size.width, resized.height / size.height])
    xy_image = xy_crop + np.array([crop.box.x0, crop.box.y0], np.float64)
    index = torch.arange(len(grid_P2), dtype=torch.int32)
    return Points(torch.from_numpy(xy_model), torch.from_numpy(xy_image), index)
