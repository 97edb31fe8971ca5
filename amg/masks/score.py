"""From mask logits to candidates: predicted IoU, stability, area, box and crop edge, without a full-size mask."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings
from amg.geometry import Box, Crop, Size
from amg.kernels import resample
from amg.masks.on_device import DeviceKernels
from amg.tensors import Candidates, MaskLogits, Points, from_host, to_host
from amg.values import Funnel

EDGE_TOLERANCE = 20
"""How near, in pixels, a mask's box may come to an edge of its crop that is not an edge of the image."""


@dataclass(frozen=True, slots=True, eq=False)
class Lens:
    """How a crop sees the logits: its place, the image it is in, and the resampling of both axes."""

    crop: Crop
    image: Size
    x: resample.Axis
    y: resample.Axis

    @classmethod
    def on(cls, crop: Crop, resized: Size, image: Size) -> Lens:
        size = crop.box.size
        return cls(
            crop, image, resample.plan_axis(size.width, resized.width), resample.plan_axis(size.height, resized.height)
        )

    @property
    def needed(self) -> Size:
        """Rows and columns of the logits that the crop sees; beyond them lies the padding."""
        return Size(self.y.needed, self.x.needed)


class Shelf:
    """Room for the logits of one crop's candidates: one block of float32, so that the heap is not left in pieces.

    Several threads may put at once: where a window lies then depends on who came first, what is in it does not.

    The system gives memory to a block when it is written to, not when it is made.
    """

    def __init__(self, room: int) -> None:
        self._values_V = np.empty(room, np.float32)
        self._used = 0
        self._lock = threading.Lock()
        self.logits_V = from_host(self._values_V)

    def put(self, window_RC: NDArray[np.float32]) -> int:
        """Where the window now begins, or -1 when it does not fit."""
        with self._lock:
            start, end = self._used, self._used + window_RC.size
            if end > len(self._values_V):
                return -1
            self._used = end
        self._values_V[start:end] = window_RC.reshape(-1)
        return start


def score(masks: MaskLogits, lens: Lens, settings: GenerateSettings, shelf: Shelf) -> tuple[Candidates, Funnel]:
    """The masks that pass every filter of their own, in the order of points and masks, and what the filters dropped.

    Filters, as the reference has them: predicted IoU > threshold; stability >= threshold, where 0/0 fails; then the
    area of the whole image (ours); then the box's distance to the crop's edges. A threshold of 0 switches its filter
    off. The logits that are needed to draw a candidate are put on the shelf; one that does not fit has `start_K` -1 and
    must be decoded again.
    """
    iou_C = to_host(masks.iou_PM).reshape(-1)
    logits_CLL = to_host(masks.logits_PMLL).reshape(-1, *masks.logits_PMLL.shape[2:])
    likely = _likely(iou_C, settings)
    low, middle, high = _thresholds(settings)
    scores = resample.score(logits_CLL, likely, lens.x, lens.y, low=low, middle=middle, high=high)
    passed, funnel = _filter(iou_C, likely, scores, lens, settings)
    window_K4 = resample.windows(passed.scores.box_K4, lens.x, lens.y)
    starts = [
        shelf.put(logits_CLL[mask, row : row + rows, column : column + columns])
        for mask, (row, column, rows, columns) in zip(passed.flat_K, window_K4, strict=True)
    ]
    return _candidates(masks.points, passed, lens, window_K4, np.array(starts, np.int64), shelf.logits_V), funnel


class Tray:
    """Scores of all masks of one crop, chunk after chunk, on the device."""

    def __init__(self, lens: Lens, settings: GenerateSettings, kernels: DeviceKernels) -> None:
        self._lens, self._settings, self._kernels = lens, settings, kernels
        self._points: list[Points] = []
        self._numbers: list[torch.Tensor] = []

    def put(self, masks: MaskLogits) -> None:
        low, middle, high = _thresholds(self._settings)
        logits_CLL = masks.logits_PMLL.flatten(0, 1)
        x, y = self._lens.x, self._lens.y
        count_C3, box_C4 = self._kernels.score(logits_CLL, x, y, low=low, middle=middle, high=high)
        iou_C1 = masks.iou_PM.reshape(-1, 1).contiguous().view(torch.int32).to(torch.int64)
        self._numbers.append(torch.cat([count_C3, box_C4, iou_C1], dim=1))
        self._points.append(masks.points)

    def candidates(self) -> tuple[Candidates, Funnel]:
        """As `score` of all chunks together, in one transfer of integers.

        No candidate has its logits yet; each wants all of them, since a device draws whole planes.
        """
        numbers_C8 = to_host(torch.cat(self._numbers))
        iou_C = numbers_C8[:, 7].astype(np.int32).view(np.float32)
        likely = _likely(iou_C, self._settings)
        scores = resample.Scores(numbers_C8[likely, :3], numbers_C8[likely, 3:7])
        passed, funnel = _filter(iou_C, likely, scores, self._lens, self._settings)
        k, side = len(passed.flat_K), resample.LOGITS_SIDE
        plane_K4 = np.tile(np.array([0, 0, side, side], np.int32), (k, 1))
        points, nothing_V = Points.concat(self._points), self._numbers[0].new_empty(0, dtype=torch.float32)
        return _candidates(points, passed, self._lens, plane_K4, np.full(k, -1, np.int64), nothing_V), funnel


@dataclass(frozen=True, slots=True, eq=False)
class _Passed:
    """What the filters let through: which of the C masks of a crop or a chunk, which numbers they have."""

    flat_K: NDArray[np.int64]
    masks: int
    scores: resample.Scores
    stability_K: NDArray[np.float32]
    iou_K: NDArray[np.float32]


def _likely(iou_C: NDArray[np.float32], settings: GenerateSettings) -> NDArray[np.int64]:
    """Which masks pass the first filter."""
    if settings.pred_iou_thresh > 0:
        return np.flatnonzero(iou_C > np.float32(settings.pred_iou_thresh))
    return np.arange(len(iou_C))


def _filter(
    iou_C: NDArray[np.float32],
    likely: NDArray[np.int64],
    scores: resample.Scores,
    lens: Lens,
    settings: GenerateSettings,
) -> tuple[_Passed, Funnel]:
    """The other filters, on the `scores` of the likely ones."""
    stability = stability_score(scores.count_K3)
    keep = np.ones(len(likely), np.bool_)
    if settings.stability_score_thresh > 0:
        keep = stability >= np.float32(settings.stability_score_thresh)
    passed_stability = int(keep.sum())
    if settings.max_mask_area_fraction is not None:
        keep &= scores.count_K3[:, 1] < settings.max_mask_area_fraction * lens.image.pixels
    passed_area = int(keep.sum())
    keep &= ~near_crop_edge(inclusive(scores.box_K4), lens.crop.box, lens.image)
    kept = np.flatnonzero(keep)
    funnel = Funnel(
        candidates=len(iou_C),
        dropped_predicted_iou=len(iou_C) - len(likely),
        dropped_stability=len(likely) - passed_stability,
        dropped_max_area=passed_stability - passed_area,
        dropped_crop_edge=passed_area - len(kept),
    )
    numbers = resample.Scores(scores.count_K3[kept], scores.box_K4[kept])
    return _Passed(likely[kept], len(iou_C), numbers, stability[kept], iou_C[likely[kept]]), funnel


def stability_score(count_K3: NDArray[np.int64]) -> NDArray[np.float32]:
    """Pixels above the high threshold over pixels above the low one, float32; NaN for an empty mask."""
    above_low, above_high = count_K3[:, 0].astype(np.float32), count_K3[:, 2].astype(np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):
        return above_high / above_low


def inclusive(box_K4: NDArray[np.int64]) -> NDArray[np.int64]:
    """Half-open boxes as the reference has them: right and bottom name the last pixel; empty boxes stay zero.

    The rules for edges and for NMS are written in these boxes, and treat them as if they were half-open.
    """
    empty = (box_K4[:, 2:] <= box_K4[:, :2]).any(axis=1, keepdims=True)
    return np.where(empty, 0, box_K4 - np.array([0, 0, 1, 1]))


def near_crop_edge(inclusive_K4: NDArray[np.int64], crop: Box, image: Size) -> NDArray[np.bool_]:
    """Whether a box (inclusive, crop frame) comes near an edge of the crop that is no edge of the image."""
    boxes = inclusive_K4 + np.array([crop.x0, crop.y0, crop.x0, crop.y0])
    near_crop = np.abs(boxes - np.array([crop.x0, crop.y0, crop.x1, crop.y1])) <= EDGE_TOLERANCE
    near_image = np.abs(boxes - np.array([0, 0, image.width, image.height])) <= EDGE_TOLERANCE
    return np.any(near_crop & ~near_image, axis=1)


def _thresholds(settings: GenerateSettings) -> tuple[float, float, float]:
    threshold, offset = settings.mask_threshold, settings.stability_score_offset
    return threshold - offset, threshold, threshold + offset


def _candidates(
    points: Points,
    passed: _Passed,
    lens: Lens,
    window_K4: NDArray[np.int32],
    start_K: NDArray[np.int64],
    logits_V: torch.Tensor,
) -> Candidates:
    per_point = passed.masks // len(points)
    box_K4, flat_K = passed.scores.box_K4, passed.flat_K
    x0, y0 = lens.crop.box.x0, lens.crop.box.y0
    empty = (box_K4[:, 2] <= box_K4[:, 0])[:, None]
    point = from_host(flat_K // per_point)
    return Candidates(
        box_K4=from_host(np.where(empty, 0, box_K4 + np.array([x0, y0, x0, y0]))),
        area_K=from_host(passed.scores.count_K3[:, 1]),
        stability_K=from_host(passed.stability_K),
        iou_K=from_host(passed.iou_K),
        xy_image_K2=points.xy_image_P2[point],
        point_index_K=points.index_P[point],
        mask_index_K=from_host((flat_K % per_point).astype(np.int8)),
        crop_K=torch.full((len(flat_K),), lens.crop.index, dtype=torch.int32),
        window_K4=from_host(window_K4),
        start_K=from_host(start_K),
        logits_V=logits_V,
    )
