"""The `mask-generation` pipeline of transformers for those who come from it: its arguments and results, our generator.

Not as there: masks that are exactly as stable as the threshold stay (`>=`, as the original package has it); with crops
doubles go within each crop first and then between crops, where smaller crops win; the downscale factor of the points
may be any; pixels are resized as the original package does it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from amg.config import GenerateSettings, generate_settings, nearest
from amg.errors import ConfigError
from amg.generate import Pixels, generate_masks
from amg.masks.score import inclusive
from amg.rle import to_mask
from amg.sam.image_options import IMAGENET_MEAN, IMAGENET_STD, colour
from amg.sam.image_processor import SamImageProcessor
from amg.sam.model import Sam, check_sam
from amg.sam.pictures import load_picture, upright
from amg.sam.sam_processor import SamProcessor
from amg.values import Image, MaskSet

SETTINGS = {
    "points_per_batch": ("points_per_batch",),
    "points_per_crop": ("points_per_side",),
    "crops_n_layers": ("crop_n_layers",),
    "crop_overlap_ratio": ("crop_overlap_ratio",),
    "crop_n_points_downscale_factor": ("crop_n_points_downscale_factor",),
    "pred_iou_thresh": ("pred_iou_thresh",),
    "stability_score_thresh": ("stability_score_thresh",),
    "stability_score_offset": ("stability_score_offset",),
    "mask_threshold": ("mask_threshold",),
    "crops_nms_thresh": ("box_nms_thresh", "crop_nms_thresh"),
}
"""The pipeline's arguments and the settings of ours that they stand for; defaults are the same."""

OURS = ("min_mask_region_area", "max_mask_area_fraction", "drop_small_masks", "rank_crops_by", "point_grids")
"""Settings that the pipeline does not have, taken under their own names."""

OUTPUTS = ("output_rle_mask", "output_bboxes_mask")
NO_MATTER = ("num_workers", "batch_size")
"""How the pipeline spreads its work; taken and left alone."""

Picture = str | Path | Pixels


class MaskGeneration:
    """Everything in a picture, as masks and scores.

    >>> generator = MaskGeneration(model)                                                     # doctest: +SKIP
    >>> outputs = generator("photo.jpg", points_per_batch=64, pred_iou_thresh=0.9)            # doctest: +SKIP
    >>> outputs["masks"], outputs["scores"]                                                   # doctest: +SKIP
    """

    def __init__(
        self,
        model: Sam,
        processor: SamProcessor | SamImageProcessor | None = None,
        *,
        image_processor: SamProcessor | SamImageProcessor | None = None,
        **named: Any,
    ) -> None:
        """model: a `SamModel` or what `load_sam` gave. named: arguments of the call, as its defaults.

        The generator prepares pictures itself; a processor of other colours or another size is refused.
        """
        given = processor or image_processor or SamImageProcessor()
        check_sam(model)
        self.model = model
        self.image_processor = given.image_processor if isinstance(given, SamProcessor) else given
        _check_processor(self.image_processor)
        self.defaults = named
        _read(named)

    def __call__(self, image: Picture | Iterable[Picture], **named: Any) -> Any:
        """`{"masks": [bool (height, width), ...], "scores": float32 (K,)}`, best first; for several a list of these.

        image: a path, an http(s) address, a PIL image (turned upright by its EXIF data), uint8 (height, width, 3), or
        a list of these; an iterator gives an iterator.
        named: `points_per_batch` (None, the default: what suits the device), `points_per_crop` 32, `pred_iou_thresh`
        0.88, `stability_score_thresh` 0.95, `stability_score_offset` 1, `mask_threshold` 0, `crops_nms_thresh` 0.7,
        `crops_n_layers` 0, `crop_overlap_ratio` 512 / 1500, `crop_n_points_downscale_factor` 1, `timeout` seconds for
        an address; of ours `min_mask_region_area` and others of `OURS`.
        `output_rle_mask` adds `rle_mask`, COCO's uncompressed run lengths; `output_bboxes_mask` adds `bounding_boxes`,
        int64 (K, 4), x0, y0 and the last column and row.
        Raises ConfigError for an argument that is none or has a wrong value.
        """
        settings, outputs, timeout = _read(self.defaults | named)
        if isinstance(image, str | Path | PIL.Image.Image | np.ndarray | Image):
            return self._generate(image, settings, outputs, timeout)
        if not isinstance(image, Iterable):
            raise ConfigError(
                f"image: a {type(image).__name__}; wanted a path, a PIL image, an array or a list of these"
            )
        each = (self._generate(one, settings, outputs, timeout) for one in image)
        return each if isinstance(image, Iterator) else list(each)

    def _generate(
        self, picture: Picture, settings: GenerateSettings, outputs: frozenset[str], timeout: float | None
    ) -> dict[str, Any]:
        if isinstance(picture, str | Path):
            picture = load_picture(picture, timeout=timeout)
        elif isinstance(picture, PIL.Image.Image):
            picture = upright(picture)
        return _as_outputs(generate_masks(picture, self.model, settings), outputs)


def _read(named: dict[str, Any]) -> tuple[GenerateSettings, frozenset[str], float | None]:
    """The settings of our generator, the outputs wished for, and the timeout, from the pipeline's arguments."""
    known = (*SETTINGS, *OURS, *OUTPUTS, *NO_MATTER, "timeout")
    for name in named:
        if name not in known:
            raise ConfigError(f"there is no argument {name!r}{nearest(name, known)}; arguments: {', '.join(known)}")
    ours = {name: value for name, value in named.items() if name in OURS}
    for name, targets in SETTINGS.items():
        if name in named:
            ours |= dict.fromkeys(targets, named[name])
    if ours.get("point_grids") is not None:
        ours.setdefault("points_per_side", None)
    return generate_settings(ours), frozenset(name for name in OUTPUTS if named.get(name)), named.get("timeout")


def _as_outputs(masks: MaskSet, outputs: frozenset[str]) -> dict[str, Any]:
    order = np.argsort(-masks.predicted_iou_K, kind="stable")
    found: dict[str, Any] = {
        "masks": [torch.from_numpy(to_mask(masks.runs(k), masks.size)) for k in order],
        "scores": torch.from_numpy(masks.predicted_iou_K[order]),
    }
    if "output_rle_mask" in outputs:
        size = [masks.size.height, masks.size.width]
        found["rle_mask"] = [{"size": list(size), "counts": masks.runs(k).tolist()} for k in order]
    if "output_bboxes_mask" in outputs:
        found["bounding_boxes"] = torch.from_numpy(inclusive(masks.box_K4[order].astype(np.int64)))
    return found


def _check_processor(processor: SamImageProcessor) -> None:
    """Refuse what the generator would not do: it normalises with ImageNet's colours and resizes to its own side."""
    wanted = SamImageProcessor()
    for name in ("do_resize", "size", "do_rescale", "rescale_factor", "do_normalize", "do_pad", "pad_size"):
        if getattr(processor, name) != getattr(wanted, name):
            raise ConfigError(
                f"processor: {name} {getattr(processor, name)!r}; the generator wants {getattr(wanted, name)!r}: leave"
                " the processor out, or prompt the model with SamProcessor"
            )
    for name, numbers in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD)):
        if colour(name, getattr(processor, name)) != numbers:
            raise ConfigError(f"processor: {name} {getattr(processor, name)!r}; the generator wants {numbers}")
