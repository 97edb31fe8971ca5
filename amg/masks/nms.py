"""Box NMS, within a crop and between crops, with a total order: every sort is stable, ties keep the incoming order.

Boxes are the reference's: right and bottom name the last pixel, and the area of a box is (x1 - x0) * (y1 - y0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from amg.geometry import Crop
from amg.kernels import nms as kernel
from amg.masks.score import inclusive
from amg.tensors import Candidates, from_host, to_host


def nms(box_K4: NDArray[np.int64], score_K: NDArray[np.float32], *, max_iou: float) -> NDArray[np.int64]:
    """Indices of the half-open boxes that survive, best score first."""
    order = np.argsort(-score_K, kind="stable")
    return kernel.nms(inclusive(box_K4).astype(np.float32), order, max_iou)


def nms_in_crop(candidates: Candidates, *, max_iou: float) -> torch.Tensor:
    """Which candidates of one crop survive, the highest predicted IoU first."""
    return from_host(nms(to_host(candidates.box_K4), to_host(candidates.iou_K), max_iou=max_iou))


def nms_across_crops(
    candidates: Candidates, crops: Sequence[Crop], *, max_iou: float, rank_by: Literal["area", "layer"]
) -> torch.Tensor:
    """Which candidates of all crops survive, the smallest (or deepest) crop first; predicted IoU plays no part."""
    if rank_by == "area":
        rank = np.array([1 / np.float32(crop.box.size.pixels) for crop in crops], np.float32)
    else:
        rank = np.array([crop.layer for crop in crops], np.float32)
    return from_host(nms(to_host(candidates.box_K4), rank[to_host(candidates.crop_K)], max_iou=max_iou))
