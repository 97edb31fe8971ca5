"""The obvious twins of everything clever: dense masks, loops, torch's own interpolation. Slow, and easy to trust."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from amg.geometry import Size, fit_longest_side


def full_size_logits(logits_KLL: Tensor, crop: Size) -> Tensor:
    """(K, H, W): to the model's 1024 square, without its padding, to the crop; as `Sam.postprocess_masks` does."""
    resized = fit_longest_side(crop, 1024)
    square = F.interpolate(logits_KLL[None].contiguous(), (1024, 1024), mode="bilinear", align_corners=False)
    cut = square[..., : resized.height, : resized.width]
    return F.interpolate(cut, (crop.height, crop.width), mode="bilinear", align_corners=False)[0]


def counts(dense_KHW: Tensor, thresholds: tuple[float, float, float]) -> NDArray[np.int64]:
    """(K, 3) pixels above each threshold."""
    return np.stack([(dense_KHW > t).sum((1, 2)).numpy() for t in thresholds], axis=1)


def box(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Half-open x0, y0, x1, y1; zeros when empty."""
    rows, columns = np.nonzero(mask_HW)
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def run_lengths(mask_HW: NDArray[np.bool_]) -> list[int]:
    """Column-major, zeros first, one pixel at a time."""
    lengths, value = [0], False
    for pixel in mask_HW.T.reshape(-1):
        if bool(pixel) != value:
            lengths.append(0)
            value = not value
        lengths[-1] += 1
    return lengths


def nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float) -> list[int]:
    """Greedy, best score first, ties in incoming order; torchvision's arithmetic."""
    kept: list[int] = []
    with np.errstate(invalid="ignore", divide="ignore"):
        for i in sorted(range(len(boxes)), key=lambda k: -scores[k]):
            if all(not _iou(boxes[i], boxes[j]) > max_iou for j in kept):
                kept.append(i)
    return kept


def _iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    w = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
    h = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
    area_a, area_b = (a[2] - a[0]) * (a[3] - a[1]), (b[2] - b[0]) * (b[3] - b[1])
    return float(w * h / (area_a + area_b - w * h))


def clean(mask_HW: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool, bool]:
    """Holes, then islands, on the whole image with OpenCV: the mask, whether it changed, whether it was all small."""
    labels, areas = _regions(~mask_HW)
    small = [k for k in range(1, len(areas)) if areas[k] < min_area]
    filled = mask_HW | np.isin(labels, small)
    labels, areas = _regions(filled)
    large = [k for k in range(1, len(areas)) if areas[k] >= min_area]
    if len(areas) == 1 or len(large) == len(areas) - 1:
        return filled, bool(small), False
    if large:
        return np.isin(labels, large), True, False
    return labels == 1 + int(np.argmax(areas[1:])), True, True


def _regions(mask_HW: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    _, labels, stats, _ = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), 8)
    return labels, stats[:, cv2.CC_STAT_AREA]


def smooth_logits(rng: np.random.Generator, n: int, *, noise: float = 0.05) -> Tensor:
    """(n, 256, 256) blobs with soft edges and a little roughness, as a decoder makes them."""
    coarse = torch.from_numpy(rng.standard_normal((1, n, 17, 17)).astype(np.float32) * 6)
    fine = torch.from_numpy(rng.standard_normal((n, 256, 256)).astype(np.float32)) * noise
    return (F.interpolate(coarse, (256, 256), mode="bicubic")[0] + fine).contiguous()


__all__ = ["Size", "box", "clean", "counts", "full_size_logits", "nms", "run_lengths", "smooth_logits"]
