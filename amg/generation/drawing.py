"""From the survivors of an image to its masks: bits, clean-up, run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings
from amg.generation.clock import Clock
from amg.geometry import Crop, Size
from amg.kernels.resample import LOGITS_SIDE
from amg.lanes import Lanes
from amg.masks import nms, regions, runs
from amg.masks.on_device import DeviceKernels
from amg.masks.score import Lens
from amg.tensors import Candidates, Workspace, from_host, to_host
from amg.values import Funnel, Image, MaskSet


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A drawn mask: its run lengths in the image, its half-open box, and what the clean-up did to it."""

    source: int
    runs_R: NDArray[np.uint32]
    box_4: NDArray[np.int64]
    changed: bool = False
    small: bool = False


class Pencil(Protocol):
    """Draws the candidates of an image."""

    def window(self, k: int) -> runs.Window:
        """The bits of one in its box."""
        ...

    def run_lengths(self, k: int) -> NDArray[np.uint32]:
        """The run lengths of one in the image."""
        ...


class HostPencil:
    """From the windows of the logits, on the host; `lenses` are those of the crops."""

    def __init__(self, candidates: Candidates, lenses: Sequence[Lens], image: Size, threshold: float) -> None:
        self._columns, self._logits_V = candidates.columns_to_host(), to_host(candidates.logits_V)
        self._lenses, self._image, self._threshold = lenses, image, threshold

    def window(self, k: int) -> runs.Window:
        columns = self._columns
        rows, width = columns["window_K4"][k, 2:]
        start = columns["start_K"][k]
        return runs.draw(
            self._logits_V[start : start + rows * width],
            columns["window_K4"][k],
            columns["box_K4"][k],
            self._lenses[columns["crop_K"][k]],
            threshold=self._threshold,
        )

    def run_lengths(self, k: int) -> NDArray[np.uint32]:
        return runs.run_lengths(self.window(k), self._image)


class DevicePencil:
    """From whole planes of logits, on the device, where all run lengths are made at once and come down together."""

    def __init__(
        self, candidates: Candidates, lenses: Sequence[Lens], image: Size, threshold: float, kernels: DeviceKernels
    ) -> None:
        self._image, self._box_K4 = image, to_host(candidates.box_K4)
        crop_K, parts = to_host(candidates.crop_K), []
        for crop in np.unique(crop_K):
            own = from_host(np.flatnonzero(crop_K == crop))
            parts.append(_runs_of_crop(candidates.select(own), lenses[crop], image, threshold, kernels))
        order = np.argsort(crop_K, kind="stable")
        self._runs_R = np.concatenate([np.zeros(0, np.uint32), *(runs_R for runs_R, _ in parts)])
        counts_K = np.concatenate([np.zeros(0, np.int64), *(np.diff(offsets_K1) for _, offsets_K1 in parts)])
        ends_K = np.cumsum(counts_K)
        self._span_K2 = np.empty((len(crop_K), 2), np.int64)
        self._span_K2[order] = np.stack([ends_K - counts_K, ends_K], axis=1)

    def window(self, k: int) -> runs.Window:
        return runs.window_of(self.run_lengths(k), self._box_K4[k], self._image)

    def run_lengths(self, k: int) -> NDArray[np.uint32]:
        start, end = self._span_K2[k]
        return self._runs_R[start:end]


def _runs_of_crop(
    candidates: Candidates, lens: Lens, image: Size, threshold: float, kernels: DeviceKernels
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """The run lengths of one crop's candidates, one after the other, and where each one's begin and end."""
    box = lens.crop.box
    empty_K1 = (candidates.box_K4[:, 2] <= candidates.box_K4[:, 0])[:, None]
    corner = torch.tensor([box.x0, box.y0, box.x0, box.y0])
    box_K4 = torch.where(empty_K1, 0, candidates.box_K4 - corner).to(candidates.logits_V.device)
    runs_R, offsets_K1 = kernels.run_lengths(
        candidates.logits_V.view(len(candidates), LOGITS_SIDE, LOGITS_SIDE),
        box_K4,
        lens.x,
        lens.y,
        threshold=threshold,
        corner=(box.x0, box.y0),
        image=(image.height, image.width),
    )
    return to_host(runs_R).astype(np.uint32), to_host(offsets_K1)


def draw_masks(
    image: Image,
    crops: Sequence[Crop],
    candidates: Candidates,
    pencil: Pencil,
    funnel: Funnel,
    settings: GenerateSettings,
    clock: Clock,
    lanes: Lanes,
) -> MaskSet:
    """The masks of an image from its candidates, in their order, drawn with the pencil that was made for them."""
    columns = candidates.columns_to_host()
    min_area = settings.min_mask_region_area

    def draw(k: int, _: Workspace) -> _Drawn:
        if not min_area:
            return _Drawn(k, pencil.run_lengths(k), columns["box_K4"][k])
        cleaned = regions.clean(pencil.window(k), image.size, min_area=min_area)
        box_4 = regions.bounding_box(cleaned.window)
        return _Drawn(k, runs.run_lengths(cleaned.window, image.size), box_4, cleaned.changed, cleaned.small)

    with clock.stage("draw"):
        drawn = list(lanes.map(draw, range(len(candidates))))
    if min_area:
        with clock.stage("nms"):
            drawn, dropped = _drop_after_cleaning(drawn, settings)
            funnel += dropped
    source = np.array([d.source for d in drawn], np.int64)
    lengths = [d.runs_R for d in drawn]
    return MaskSet(
        ref=image.ref,
        size=image.size,
        original=image.original,
        orientation=image.orientation,
        crops=tuple(crops),
        runs_R=np.concatenate([np.zeros(0, np.uint32), *lengths]),
        offsets_K1=np.cumsum([0, *map(len, lengths)], dtype=np.int64),
        box_K4=np.array([d.box_4 for d in drawn], np.int32).reshape(-1, 4),
        area_K=np.array([int(r[1::2].sum(dtype=np.int64)) for r in lengths], np.int64),
        predicted_iou_K=columns["iou_K"][source],
        stability_K=columns["stability_K"][source],
        point_K2=columns["xy_image_K2"][source],
        crop_K=columns["crop_K"][source],
        point_index_K=columns["point_index_K"][source],
        mask_index_K=columns["mask_index_K"][source],
        changed_K=np.array([d.changed for d in drawn], np.bool_),
        funnel=funnel + Funnel(kept=len(drawn)),
        seconds=clock.seconds,
    )


def _drop_after_cleaning(drawn: Sequence[_Drawn], settings: GenerateSettings) -> tuple[list[_Drawn], Funnel]:
    """Drop the small masks if wished, then remove doubles once more, masks that were left unchanged first."""
    large = [d for d in drawn if not (settings.drop_small_masks and d.small)]
    boxes_K4 = np.array([d.box_4 for d in large], np.int64).reshape(-1, 4)
    unchanged_K = np.array([not d.changed for d in large], np.float32)
    keep = nms.nms(boxes_K4, unchanged_K, max_iou=max(settings.box_nms_thresh, settings.crop_nms_thresh))
    dropped = Funnel(dropped_small=len(drawn) - len(large), dropped_cleanup_nms=len(large) - len(keep))
    return [large[k] for k in keep], dropped
