"""Crops of a picture and the grid of points on each, as the mask generation of transformers hands them to its model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.errors import ConfigError
from amg.geometry import Size, fit_longest_side, plan_crops


@dataclass(frozen=True, slots=True, eq=False)
class CropPrompts:
    """`boxes_N4` float32 half-open in the image frame, `points_1PN2` float32 in the model frame, `labels_1PN` ones."""

    boxes_N4: Tensor
    points_1PN2: Tensor
    crops_CHW: list[Tensor]
    labels_1PN: Tensor


def crop_prompts(
    image_CHW: Tensor, edge: int, *, n_layers: int, overlap_ratio: float, points_per_side: int, downscale: float
) -> CropPrompts:
    """The whole picture and 4**i crops of layer i, each with a grid of points; `edge` is the model's longest side.

    Raises ConfigError where the layers have grids of different sizes: those make no tensor.
    """
    size = Size(image_CHW.shape[-2], image_CHW.shape[-1])
    crops = plan_crops(size, n_layers=n_layers, overlap_ratio=overlap_ratio)
    sides = [int(points_per_side / downscale**layer) for layer in range(n_layers + 1)]
    if len(set(sides)) > 1 or min(sides) < 1:
        raise ConfigError(
            f"points_per_crop {points_per_side} and crop_n_points_downscale_factor {downscale} give grids of {sides}"
            " points a side in the layers, which make no tensor; wanted a factor of 1; amg.MaskGeneration takes any"
        )
    cut = [image_CHW[:, c.box.y0 : c.box.y1, c.box.x0 : c.box.x1] for c in crops]
    points_P2 = unit_grid(sides[0])
    points_PN2 = torch.stack([_place(points_P2, c.box.size, edge) for c in crops], dim=1)
    boxes = [[c.box.x0, c.box.y0, c.box.x1, c.box.y1] for c in crops]
    labels = torch.ones(1, *points_PN2.shape[:2], dtype=torch.int64)
    return CropPrompts(torch.tensor(boxes).float(), points_PN2[None], cut, labels)


def unit_grid(n_side: int) -> Tensor:
    """Points (n_side**2, 2) float32 evenly in the unit square, row by row."""
    margin = 1 / (2 * n_side)
    along = torch.linspace(margin, 1 - margin, n_side)
    y, x = torch.meshgrid(along, along, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def _place(points_P2: Tensor, crop: Size, edge: int) -> Tensor:
    """From the unit square to the crop's pixels and on to the model frame, rounded to float32 in between."""
    resized = fit_longest_side(crop, edge)
    in_crop = points_P2 * torch.tensor([crop.width, crop.height])
    return in_crop * torch.tensor([resized.width / crop.width, resized.height / crop.height])
