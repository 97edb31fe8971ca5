"""The original package's `SamPredictor` for those who come from it: one image, then prompts on it, results in numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional as F

from amg.errors import ConfigError
from amg.geometry import Box, Crop, Size, fit_longest_side
from amg.sam.model import Sam, check_sam
from amg.sam.processor import to_batch
from amg.sam.prompts import check_corners
from amg.tensors import Embedding, to_host

LABELS = (-1, 0, 1, 2, 3)


class Predictor:
    """Holds one image's embedding. Coordinates are pixels of that image, x before y.

    >>> predictor = Predictor(sam)                                                          # doctest: +SKIP
    >>> predictor.set_image(pixels)                                                         # doctest: +SKIP
    >>> masks, iou, low_res = predictor.predict([[450, 600]], [1])                          # doctest: +SKIP
    """

    mask_threshold = 0.0

    def __init__(self, sam: Sam) -> None:
        check_sam(sam)
        self.sam = sam
        self.reset_image()

    @property
    def device(self) -> torch.device:
        return self.sam.device

    def reset_image(self) -> None:
        self._embedding: Embedding | None = None

    def set_image(self, image: NDArray[np.uint8], image_format: str = "RGB") -> None:
        """Encode an image: uint8 (H, W, 3), the channels as `image_format` says, RGB or BGR."""
        if image_format not in ("RGB", "BGR"):
            raise ConfigError(f"image_format {image_format!r}; wanted 'RGB' or 'BGR'")
        if isinstance(image, str | Path):
            raise ConfigError(f"image: the path {str(image)!r}; wanted pixels: numpy.asarray(PIL.Image.open(path))")
        image = np.asarray(image)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ConfigError(f"image: {image.dtype} of shape {image.shape}; wanted uint8 of (height, width, 3)")
        self.reset_image()
        height, width = image.shape[:2]
        crop = Crop(Box(0, 0, width, height), layer=0, index=0)
        pixels_HWC = image if image_format == "RGB" else image[..., ::-1]
        self._embedding = self.sam.encode(to_batch(pixels_HWC, [crop], self.device, side=self.sam.side))

    def get_image_embedding(self) -> Tensor:
        """The embedding of the image, (1, 256, 64, 64)."""
        return self._image().features_NDGG

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.float32]]:
        """Masks for one prompt: points (N, 2) with labels (N,), a box (x0, y0, x1, y1), a mask (1, 256, 256) of logits.

        Raises ConfigError with the argument's name and shape; also for a box with no part in the image.

        Labels: 1 foreground, 0 background, -1 no point. Returns masks (M, H, W), bool or logits; predicted IoU (M,);
        logits (M, 256, 256), of which one can be the next `mask_input`. M is 3, or 1 without `multimask_output`.
        """
        points, labels, boxes, masks = None, None, None, None
        if (point_coords is None) != (point_labels is None):
            given = "point_labels" if point_coords is None else "point_coords"
            raise ConfigError(f"only {given} came; wanted point_coords (N, 2) and point_labels (N,) together")
        if point_coords is not None:
            points = self._to_model(_array("point_coords", point_coords, (None, 2)))
            known = _array("point_labels", point_labels, (len(points),))
            if not np.isin(known, LABELS).all():
                raise ConfigError(f"point_labels: {known}; wanted 1 (foreground), 0 (background) or -1 (no point)")
            points, labels = self._tensor(points), self._tensor(known).to(torch.int64)
        if box is not None:
            corners = _array("box", box, (1, 4) if np.ndim(box) == 2 else (4,))
            self._check_box(corners.reshape(4))
            boxes = self._tensor(self._to_model(corners.reshape(2, 2)).reshape(4))
        if mask_input is not None:
            side = 4 * self.sam.prompt_encoder.grid
            masks = self._tensor(_array("mask_input", mask_input, (1, side, side)))
        results = self.predict_torch(points, labels, boxes, masks, multimask_output, return_logits)
        masks, iou, low_res = (to_host(result[0]) for result in results)
        return masks, iou, low_res

    @torch.no_grad()
    def predict_torch(
        self,
        point_coords: Tensor | None,
        point_labels: Tensor | None,
        boxes: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `predict` for P prompts at once, in the model frame: arguments and results have P first."""
        embedding = self._image()
        found = self.sam.predict(
            embedding,
            xy_PK2=point_coords,
            labels_PK=point_labels,
            boxes_P4=boxes,
            masks_P1LL=mask_input,
            multimask=multimask_output,
        )
        logits_PMHW = self._to_image(found.logits_PMLL)
        return logits_PMHW if return_logits else logits_PMHW > self.mask_threshold, found.iou_PM, found.logits_PMLL

    def _image(self) -> Embedding:
        if self._embedding is None:
            raise ConfigError("no image is set; call set_image(image) before asking for masks")
        return self._embedding

    def _size(self) -> Size:
        return self._image().crops[0].box.size

    def _to_model(self, xy_image: NDArray[np.float64]) -> NDArray[np.float64]:
        size = self._size()
        resized = fit_longest_side(size, self.sam.side)
        return xy_image * np.array([resized.width / size.width, resized.height / size.height])

    def _check_box(self, corners_4: NDArray[np.float64]) -> None:
        x0, y0, x1, y1 = check_corners("box", corners_4)
        size = self._size()
        if x0 >= size.width or y0 >= size.height or x1 <= 0 or y1 <= 0:
            raise ConfigError(f"box: {[x0, y0, x1, y1]} lies outside the image of {size.height} x {size.width}")

    def _to_image(self, logits_PMLL: Tensor) -> Tensor:
        """To the model's side, without the padding, to the image; bilinear twice. Source: `Sam.postprocess_masks`."""
        size, resized, side = self._size(), self._image().resized[0], self.sam.side
        logits_PMSS = F.interpolate(logits_PMLL, (side, side), mode="bilinear", align_corners=False)
        cut = logits_PMSS[..., : resized.height, : resized.width]
        return F.interpolate(cut, (size.height, size.width), mode="bilinear", align_corners=False)

    def _tensor(self, array: NDArray[np.float64]) -> Tensor:
        """A batch of one prompt, on the model's device."""
        return torch.from_numpy(array.astype(np.float32)).to(self.device)[None]


def _array(name: str, given: Any, wanted: tuple[int | None, ...]) -> NDArray[np.float64]:
    """`given` as finite numbers of the shape `wanted`; None stands for any number."""
    shape = "(" + ", ".join("N" if n is None else str(n) for n in wanted) + ("," if len(wanted) == 1 else "") + ")"
    try:
        array = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {type(given).__name__} that is no array of numbers; wanted {shape}") from error
    fits = len(array.shape) == len(wanted) and all(w in (None, n) for n, w in zip(array.shape, wanted, strict=True))
    if not fits or not np.isfinite(array).all():
        raise ConfigError(f"{name}: shape {array.shape}; wanted finite numbers of shape {shape}")
    return array
