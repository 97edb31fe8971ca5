"""Automatic mask generation: images, crops, prompts, one loop a level.

Source: `SamAutomaticMaskGenerator` of segment-anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, overload

import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray

from amg.config import GenerateSettings, default_candidates_mb, default_encoder_batch, generate_settings
from amg.errors import AmgError, ConfigError
from amg.generation.device import OnDevice
from amg.generation.host import OnHost
from amg.geometry import Size
from amg.rle import check_record_styles
from amg.sam.model import Sam, check_sam
from amg.sam.pictures import as_rgb
from amg.values import Failure, Image, ImageRef, MaskSet

Pixels = NDArray[np.uint8] | PIL.Image.Image | Image


@overload
def generate_masks(
    images: Pixels,
    sam: Sam,
    settings: GenerateSettings | None = None,
    *,
    candidates_mb: int | None = None,
    encoder_batch: int | None = None,
    **named: Any,
) -> MaskSet: ...
@overload
def generate_masks(
    images: Iterable[Pixels | Failure],
    sam: Sam,
    settings: GenerateSettings | None = None,
    *,
    candidates_mb: int | None = None,
    encoder_batch: int | None = None,
    **named: Any,
) -> Iterator[MaskSet | Failure]: ...
def generate_masks(
    images: Pixels | Iterable[Pixels | Failure],
    sam: Sam,
    settings: GenerateSettings | None = None,
    *,
    candidates_mb: int | None = None,
    encoder_batch: int | None = None,
    **named: Any,
) -> MaskSet | Iterator[MaskSet | Failure]:
    """All masks of one image, or one result for each image of an iterable, in its order.

    On a CPU an image is taken from the iterable when the one before it is done; on CUDA some are under way at once.

    images: HxWx3 uint8 RGB, a PIL image, an `Image`, or an iterable of these; a `Failure` in it passes through.
    settings: or the same by name, as the original package names them: `generate_masks(image, sam, points_per_side=16)`.
    candidates_mb: MiB of logits kept of a crop's candidates; beyond it survivors are decoded a second time. None: 1024
    on CUDA, else 256.
    encoder_batch: crops that the image encoder takes at once, of several images where one has fewer; changes the last
    digits. None: 4 on CUDA, else 1.

    In an iterable, an image that runs out of memory becomes a `Failure`; a single image raises.
    Raises ConfigError for wrong settings and for what is no model, AmgError for what is no image.
    """
    if isinstance(images, str | bytes | Path | torch.Tensor) or not isinstance(images, _IMAGE | Iterable):
        raise _no_image(images)
    check_sam(sam)
    _check_least(candidates_mb=(candidates_mb, 0), encoder_batch=(encoder_batch, 1))
    settings, kind = _settings(settings, named), sam.device.type
    room = (default_candidates_mb(kind) if candidates_mb is None else candidates_mb) * 2**20 // 4
    batch = encoder_batch or default_encoder_batch(kind)
    on_host = scores_on_host(kind)
    generation = OnHost(sam, settings, room, batch) if on_host else OnDevice(sam, settings, room, batch)
    if isinstance(images, _IMAGE):
        return generation.one(as_image(images))
    return generation.each(_as_images(images))


def scores_on_host(kind: str) -> bool:
    """Whether masks are scored by kernels for the processor: all but on CUDA, as other devices lack float64."""
    return kind != "cuda"


def _as_images(items: Iterable[Pixels | Failure]) -> Iterator[Image | Failure]:
    rows = count()
    for item in items:
        yield item if isinstance(item, Failure) else as_image(item, next(rows))
        del item  # or a large image would wait for the next one beside it


def _check_least(**given: tuple[int | None, int]) -> None:
    for name, (value, least) in given.items():
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value}; wanted {least} or more")


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
