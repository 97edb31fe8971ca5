"""Automatic mask generation: images, crops, prompts, one loop a level.

Source: `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings, default_points_per_batch, generate_settings
from amg.errors import AmgError, ConfigError
from amg.geometry import Crop, Size, plan_crops
from amg.lanes import Lanes
from amg.masks import grid, nms, regions, runs
from amg.masks.score import Lens, Shelf, score
from amg.rle import check_record_styles
from amg.sam.model import PreparedImage, Sam, check_sam
from amg.sam.pictures import as_rgb
from amg.sam.processor import to_batch
from amg.tensors import Candidates, Points, Workspace, from_host, to_host
from amg.values import Failure, Funnel, Image, ImageRef, MaskSet, Status

Pixels = NDArray[np.uint8] | PIL.Image.Image | Image


@overload
def generate_masks(
    images: Pixels, sam: Sam, settings: GenerateSettings | None = None, *, candidates_mb: int = 256, **named: Any
) -> MaskSet: ...
@overload
def generate_masks(
    images: Iterable[Pixels | Failure],
    sam: Sam,
    settings: GenerateSettings | None = None,
    *,
    candidates_mb: int = 256,
    **named: Any,
) -> Iterator[MaskSet | Failure]: ...
def generate_masks(
    images: Pixels | Iterable[Pixels | Failure],
    sam: Sam,
    settings: GenerateSettings | None = None,
    *,
    candidates_mb: int = 256,
    **named: Any,
) -> MaskSet | Iterator[MaskSet | Failure]:
    """All masks of one image, or one result for each image of an iterable, in its order and one at a time.

    images: HxWx3 uint8 RGB, a PIL image, an `Image`, or an iterable of these; a `Failure` in it passes through.
    settings: or the same by name, as the original package names them: `generate_masks(image, sam, points_per_side=16)`.
    candidates_mb: MiB of logits kept of a crop's candidates; beyond it survivors are decoded a second time.

    In an iterable, an image that runs out of memory becomes a `Failure`; a single image raises.
    Raises ConfigError for wrong settings and for what is no model, AmgError for what is no image.
    """
    if isinstance(images, str | bytes | Path | torch.Tensor) or not isinstance(images, _IMAGE | Iterable):
        raise _no_image(images)
    check_sam(sam)
    settings = _settings(settings, named)
    if candidates_mb < 0:
        raise ConfigError(f"candidates_mb is {candidates_mb}; wanted 0 or more MiB")
    room = candidates_mb * 2**20 // 4
    if isinstance(images, _IMAGE):
        with _lanes(sam) as lanes:
            return _Generator(sam, settings, room, lanes).label(as_image(images))
    return _each(images, sam, settings, room)


_IMAGE = np.ndarray | PIL.Image.Image | Image


def _settings(given: GenerateSettings | None, named: dict[str, Any]) -> GenerateSettings:
    if given is None:
        return generate_settings(named)
    if named:
        raise AmgError(f"settings came twice: as an object and by name ({', '.join(named)}); give one of them")
    if not isinstance(given, GenerateSettings):
        raise ConfigError(
            f"settings: a {type(given).__name__}; wanted GenerateSettings, or each by its name: **settings"
        )
    return given


def _lanes(sam: Sam) -> Lanes:
    """On a CPU a thread for each core that PyTorch was given; on a GPU one, which has work for all of it."""
    return Lanes(torch.get_num_threads() if sam.device.type == "cpu" else 1)


def _each(
    images: Iterable[Pixels | Failure], sam: Sam, settings: GenerateSettings, room: int
) -> Iterator[MaskSet | Failure]:
    with _lanes(sam) as lanes:
        generator = _Generator(sam, settings, room, lanes)
        for row, item in enumerate(images):
            result = item if isinstance(item, Failure) else _label_or_say_why_not(as_image(item, row), generator)
            del item  # or a large image would wait for the next one beside it
            yield result


def _label_or_say_why_not(image: Image, generator: _Generator) -> MaskSet | Failure:
    try:
        return generator.label(image)
    except OUT_OF_MEMORY as error:
        size = f"{image.size.width}x{image.size.height}"
        reason = f"no memory left for an image of {size}: {error or type(error).__name__}"
        return Failure(image.ref, Status.OUT_OF_MEMORY, reason)


OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


def as_image(pixels: Pixels, row: int = 0) -> Image:
    """An `Image` from what people have in hand. PIL images are converted to RGB; they are not turned by their EXIF."""
    if isinstance(pixels, Image):
        return pixels
    array = np.asarray(as_rgb(pixels)) if isinstance(pixels, PIL.Image.Image) else pixels
    if (
        not isinstance(array, np.ndarray)
        or array.dtype != np.uint8
        or array.ndim != 3
        or array.shape[2] != 3
        or array.size == 0
    ):
        raise _no_image(array)
    return Image(ImageRef(row, f"image-{row}", ""), array, Size(*array.shape[:2]))


def _no_image(came: object) -> AmgError:
    seen = f"{came.dtype} of shape {came.shape}" if isinstance(came, np.ndarray) else type(came).__name__
    opened = (
        "; open a file with PIL.Image.open, or label folders with sam-amg run" if isinstance(came, str | Path) else ""
    )
    return AmgError(f"an image came as {seen}; wanted uint8 RGB of shape (height, width, 3), or a PIL image{opened}")


@dataclass(frozen=True, slots=True)
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    @contextmanager
    def stages_side_by_side(self) -> Iterator[dict[str, float]]:
        """Threads add what each stage took them; the time that passed is then divided in those proportions."""
        start, taken = time.perf_counter(), {}
        yield taken
        passed, total = time.perf_counter() - start, sum(taken.values())
        for name, seconds in taken.items():
            self.add(name, passed * seconds / total if total else 0.0)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True, slots=True)
class _Found:
    """What survived in one crop, and how that crop sees its logits."""

    candidates: Candidates
    lens: Lens
    funnel: Funnel


@dataclass(frozen=True, slots=True)
class _Generator:
    sam: Sam
    settings: GenerateSettings
    room: int
    lanes: Lanes

    def label(self, image: Image) -> MaskSet:
        """All masks of one image; where there is no memory for a chunk of points, in chunks of half its size."""
        size = self.settings.points_per_batch or default_points_per_batch(self.sam.device.type)
        while True:
            try:
                return self._label(image, size)
            except OUT_OF_MEMORY:
                if size == 1:
                    raise
            size //= 2
            if self.sam.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _label(self, image: Image, chunk_size: int) -> MaskSet:
        clock = _Clock({"decode": image.decode_seconds})
        settings = self.settings
        crops = plan_crops(image.size, n_layers=settings.crop_n_layers, overlap_ratio=settings.crop_overlap_ratio)
        grids = grid.layer_grids(settings)
        found = [self._crop(image, crop, grids[crop.layer], clock, chunk_size) for crop in crops]
        candidates = Candidates.concat([f.candidates for f in found])
        funnel = sum((f.funnel for f in found), Funnel())
        if len(crops) > 1:
            with clock.stage("nms"):
                keep = nms.nms_across_crops(
                    candidates, crops, max_iou=settings.crop_nms_thresh, rank_by=settings.rank_crops_by
                )
                funnel += Funnel(dropped_image_nms=len(candidates) - len(keep))
                candidates = candidates.select(keep)
        return _draw(image, crops, candidates, [f.lens for f in found], funnel, settings, clock, self.lanes)

    def _crop(self, image: Image, crop: Crop, grid_P2: NDArray[np.float64], clock: _Clock, chunk_size: int) -> _Found:
        with clock.stage("resize"):
            batch = to_batch(image.pixels_HWC, [crop], self.sam.device)
            lens = Lens.on(crop, batch.resized[0], image.size)
        with clock.stage("encode"):
            prepared = self.sam.prepare(self.sam.encode(batch), needed=lens.needed)
        points = grid.place(grid_P2, crop, batch.resized[0])
        return self._prompt(prepared, _chunks(points, chunk_size), lens, clock)

    def _prompt(self, prepared: PreparedImage, chunks: Sequence[Points], lens: Lens, clock: _Clock) -> _Found:
        shelf = Shelf(self.room)

        def decode_and_score(points: Points, workspace: Workspace) -> tuple[Candidates, Funnel, float, float]:
            start = time.perf_counter()
            masks = self.sam.decode(prepared, points, workspace)
            middle = time.perf_counter()
            return *score(masks, lens, self.settings, shelf), middle - start, time.perf_counter() - middle

        with clock.stages_side_by_side() as taken:
            results = list(self.lanes.map(decode_and_score, chunks))
            taken["prompt"] = sum(result[2] for result in results)
            taken["score"] = sum(result[3] for result in results)
        funnel = sum((result[1] for result in results), Funnel())
        with clock.stage("nms"):
            candidates = Candidates.concat([result[0] for result in results])
            keep = nms.nms_in_crop(candidates, max_iou=self.settings.box_nms_thresh)
            funnel += Funnel(dropped_crop_nms=len(candidates) - len(keep))
            candidates = candidates.select(keep)
        with clock.stage("prompt"):
            return _Found(self._decode_again(candidates, prepared, chunks), lens, funnel)

    def _decode_again(self, candidates: Candidates, prepared: PreparedImage, chunks: Sequence[Points]) -> Candidates:
        """Survivors whose logits had no room get them now, decoded in the same chunks as before: the same numbers."""
        missing = np.flatnonzero(to_host(candidates.start_K) < 0)
        if not len(missing):
            return candidates
        start_K = to_host(candidates.start_K).copy()
        index_K, mask_K, window_K4 = (
            to_host(c) for c in (candidates.point_index_K, candidates.mask_index_K, candidates.window_K4)
        )
        size = len(chunks[0])

        def decode(number: int, workspace: Workspace) -> list[tuple[int, NDArray[np.float32]]]:
            logits = to_host(self.sam.decode(prepared, chunks[number], workspace).logits_PMLL)
            windows = []
            for k in missing[index_K[missing] // size == number]:
                row, column, rows, columns = window_K4[k]
                window = logits[index_K[k] - number * size, mask_K[k], row : row + rows, column : column + columns]
                windows.append((k, window.flatten()))
            return windows

        pieces, end = [to_host(candidates.logits_V)], len(candidates.logits_V)
        for windows in self.lanes.map(decode, np.unique(index_K[missing] // size)):
            for k, window in windows:
                pieces.append(window)
                start_K[k], end = end, end + len(window)
        return candidates.with_logits(from_host(start_K), from_host(np.concatenate(pieces)))


def _chunks(points: Points, size: int) -> list[Points]:
    return [points[start : start + size] for start in range(0, len(points), size)]


@dataclass(frozen=True, slots=True, eq=False)
class _Drawn:
    """A drawn mask: its run lengths in the image, its half-open box, and what the clean-up did to it."""

    source: int
    runs_R: NDArray[np.uint32]
    box_4: NDArray[np.int64]
    changed: bool = False
    small: bool = False


def _draw(
    image: Image,
    crops: Sequence[Crop],
    candidates: Candidates,
    lenses: Sequence[Lens],
    funnel: Funnel,
    settings: GenerateSettings,
    clock: _Clock,
    lanes: Lanes,
) -> MaskSet:
    columns = candidates.to_host()
    min_area = settings.min_mask_region_area

    def draw(k: int, _: Workspace) -> _Drawn:
        rows, width = columns["window_K4"][k, 2:]
        start, box_4 = columns["start_K"][k], columns["box_K4"][k]
        logits_V = columns["logits_V"][start : start + rows * width]
        window = runs.draw(
            logits_V, columns["window_K4"][k], box_4, lenses[columns["crop_K"][k]], threshold=settings.mask_threshold
        )
        if not min_area:
            return _Drawn(k, runs.run_lengths(window, image.size), box_4)
        cleaned = regions.clean(window, image.size, min_area=min_area)
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


class MaskGenerator:
    """The original package's `SamAutomaticMaskGenerator`: the same arguments, the same records.

    `output_mode` and `bbox_style` are those of `MaskSet.to_dicts`.
    """

    def __init__(self, sam: Sam, *, output_mode: str = "binary_mask", bbox_style: str = "sa1b", **named: Any) -> None:
        if named.get("point_grids") is not None and "points_per_side" not in named:
            named["points_per_side"] = None
        check_sam(sam)
        check_record_styles(output_mode=output_mode, bbox_style=bbox_style)
        self.sam = sam
        self.settings = generate_settings(named)
        self.output_mode, self.bbox_style = output_mode, bbox_style

    def generate(self, image: NDArray[np.uint8]) -> list[dict[str, Any]]:
        """The masks of an HxWx3 uint8 RGB image as a list of records."""
        masks = generate_masks(image, self.sam, self.settings)
        return masks.to_dicts(output_mode=self.output_mode, bbox_style=self.bbox_style)
