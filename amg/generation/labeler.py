"""Images to masks: a few images at a time, whose crops share batches of the image encoder.

Source of the steps and their order: `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings
from amg.generation.clock import Clock
from amg.generation.drawing import DevicePencil, HostPencil, Pencil, draw_masks
from amg.generation.search import Found, Search
from amg.geometry import Crop, Size, plan_crops
from amg.lanes import Lanes
from amg.masks import grid, nms
from amg.masks.on_device import DeviceKernels
from amg.masks.score import Lens
from amg.sam.model import Sam
from amg.sam.processor import stack
from amg.streams import Busy
from amg.tensors import Candidates, Points
from amg.values import GPU_BUSY, Funnel, Image, MaskSet


@dataclass(frozen=True, slots=True)
class Labeler:
    """`busy` counts the seconds that a device works, with these `kernels`; None on a CPU."""

    sam: Sam
    settings: GenerateSettings
    search: Search
    lanes: Lanes
    busy: Busy | None = None
    kernels: DeviceKernels | None = None

    @torch.inference_mode()
    def label(self, images: Sequence[Image], *, batch: int, chunk: int) -> list[MaskSet]:
        """All masks of each image, with `batch` crops in the encoder and `chunk` points in the decoder at once.

        A batch that is not full is filled up, so that no image's numbers depend on who is beside it.
        """
        works = [_Work.of(image, self.settings) for image in images]
        views = [(work, crop) for work in works for crop in work.crops]
        for start in range(0, len(views), batch):
            self._look(views[start : start + batch], batch, chunk)
        masks = [self._finish(work) for work in works]
        if self.busy is not None:
            seconds = self.busy.settle() / len(works)
            for work in works:
                work.clock.add(GPU_BUSY, seconds)
        return masks

    def _look(self, views: Sequence[tuple[_Work, Crop]], batch: int, chunk: int) -> None:
        """Find the masks of some crops, which may be of several images."""
        shared = Clock()
        with shared.stage("resize"):
            pictures = [work.pixels_of(crop) for work, crop in views]
            pixels = stack(pictures, [crop for _, crop in views], self.sam.device, room=batch)
        with shared.stage("encode"), self.busy.work() if self.busy else nullcontext():
            embedding = self.sam.encode(pixels)
        for (work, crop), n in zip(views, range(len(views)), strict=True):
            for name, seconds in shared.seconds.items():
                work.clock.add(name, seconds / len(views))
            lens = Lens.on(crop, embedding.resized[n], work.image.size)
            with work.clock.stage("encode"):
                prepared = self.sam.prepare(embedding[n], needed=lens.needed)
            points = grid.place(work.grids[crop.layer], crop, embedding.resized[n])
            work.found.append(self.search(prepared, _chunks(points, chunk), lens, work.clock))

    def _finish(self, work: _Work) -> MaskSet:
        candidates = Candidates.concat([found.candidates for found in work.found])
        funnel = sum((found.funnel for found in work.found), Funnel())
        if len(work.crops) > 1:
            with work.clock.stage("nms"):
                keep = nms.nms_across_crops(
                    candidates, work.crops, max_iou=self.settings.crop_nms_thresh, rank_by=self.settings.rank_crops_by
                )
                funnel += Funnel(dropped_image_nms=len(candidates) - len(keep))
                candidates = candidates.select(keep)
        with work.clock.stage("draw"), self.busy.work() if self.busy else nullcontext():
            pencil = self._pencil(candidates, [found.lens for found in work.found], work.image.size)
        return draw_masks(work.image, work.crops, candidates, pencil, funnel, self.settings, work.clock, self.lanes)

    def _pencil(self, candidates: Candidates, lenses: Sequence[Lens], image: Size) -> Pencil:
        threshold = self.settings.mask_threshold
        if self.kernels is None:
            return HostPencil(candidates, lenses, image, threshold)
        return DevicePencil(candidates, lenses, image, threshold, self.kernels)


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """One image under way. `found` fills in the order of `crops`; `grids` are by layer."""

    image: Image
    crops: Sequence[Crop]
    grids: Sequence[NDArray[np.float64]]
    clock: Clock
    found: list[Found] = field(default_factory=list)

    @classmethod
    def of(cls, image: Image, settings: GenerateSettings) -> _Work:
        crops = plan_crops(image.size, n_layers=settings.crop_n_layers, overlap_ratio=settings.crop_overlap_ratio)
        return cls(image, crops, grid.layer_grids(settings), Clock({"decode": image.decode_seconds}))

    def pixels_of(self, crop: Crop) -> NDArray[np.uint8]:
        return self.image.pixels_HWC[crop.box.y0 : crop.box.y1, crop.box.x0 : crop.box.x1]


def _chunks(points: Points, size: int) -> list[Points]:
    return [points[start : start + size] for start in range(0, len(points), size)]
