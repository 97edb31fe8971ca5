"""MobileSAM on the sample photos, on the CPU: what the tests of this folder hold a GPU against."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import amg
from amg.config import GenerateSettings
from amg.geometry import Size, plan_crops
from amg.masks import grid
from amg.masks.score import Lens
from amg.sam.processor import to_batch
from amg.tensors import MaskLogits, Points
from tests import parity, reference_amg

GRID = {"points_per_side": 16}


@cache
def on_cpu() -> amg.Sam:
    return amg.load_sam("mobile-sam")


@cache
def photos() -> list[Path]:
    return parity.photos_in(reference_amg.PHOTOS)


def pixels(path: Path) -> NDArray[np.uint8]:
    return reference_amg.read_rgb(path)


@cache
def records_on_cpu(path: Path) -> list[Any]:
    return parity.run_ours(on_cpu(), pixels(path), GRID)


def lens_and_points(path: Path, side: int = 16) -> tuple[Lens, Points]:
    """The whole photo as one crop, and a grid of points on it."""
    size = Size(*pixels(path).shape[:2])
    (crop,) = plan_crops(size, n_layers=0, overlap_ratio=0.0)
    batch = to_batch(pixels(path), [crop])
    points = grid.place(grid.layer_grids(GenerateSettings(points_per_side=side))[0], crop, batch.resized[0])
    return Lens.on(crop, batch.resized[0], size), points


@cache
def logits_on_cpu(path: Path) -> tuple[Lens, MaskLogits]:
    """The masks of a grid of points: real logits, of full size."""
    lens, points = lens_and_points(path)
    batch = to_batch(pixels(path), [lens.crop])
    with torch.inference_mode():
        return lens, on_cpu().decode(on_cpu().prepare(on_cpu().encode(batch)), points)
