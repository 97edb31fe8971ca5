"""The arguments of `SamModel`, checked once and put into the form that the parts of the model take.

Letters: N images, P prompts of an image, K points of a prompt, X = N * P prompts in all, L side of a
mask; Y is N or X.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amg.errors import ConfigError
from amg.sam.prompt import BACKGROUND, BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, PADDING, TOP_LEFT
from amg.tensors import to_host

LABELS = (FOREGROUND, BACKGROUND, NOT_A_POINT, PADDING, TOP_LEFT, BOTTOM_RIGHT)
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """All prompts of all images, those of the first image first. Masks: one for each prompt, or one for each image."""

    images: int
    per_image: int
    xy_XK2: Tensor | None
    labels_XK: Tensor | None
    boxes_X4: Tensor | None
    masks_Y1LL: Tensor | None

    @property
    def has_tokens(self) -> bool:
        return self.xy_XK2 is not None or self.boxes_X4 is not None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model takes: the side S of its square, the side L of its masks, where its weights lie."""

    side: int
    mask_side: int
    device: torch.device


def check_pixels(pixel_values: Tensor, limits: Limits) -> None:
    wanted = f"(images, 3, {limits.side}, {limits.side}), normalised, as the processor returns them"
    _check_tensor("pixel_values", pixel_values, wanted, limits)
    if pixel_values.ndim != 4 or tuple(pixel_values.shape[1:]) != (3, limits.side, limits.side):
        raise _wrong("pixel_values", pixel_values, wanted)
    if pixel_values.dtype not in FLOATS:
        raise _wrong("pixel_values", pixel_values, wanted, "whole numbers are pixels that are not normalised yet")
    _check_filled("pixel_values", pixel_values, wanted, look=pixel_values.device.type == "cpu")


def check_embeddings(image_embeddings: Tensor, channels: int, grid: int, limits: Limits) -> None:
    wanted = f"(images, {channels}, {grid}, {grid}), as get_image_embeddings returns them"
    _check_tensor("image_embeddings", image_embeddings, wanted, limits)
    if image_embeddings.ndim != 4 or tuple(image_embeddings.shape[1:]) != (channels, grid, grid):
        raise _wrong("image_embeddings", image_embeddings, wanted)
    _check_filled("image_embeddings", image_embeddings, wanted, look=image_embeddings.device.type == "cpu")


def check_prompts(
    points: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
    *,
    images: int | None,
    limits: Limits,
) -> Prompts:
    """The prompts of `images` images (None: of as many as the prompts say).

    Raises ConfigError with the argument's name, what came and what is wanted.
    """
    if points is not None:
        _check_points(points, limits)
        images = _same_images("input_points", points, images)
    if labels is not None:
        _check_labels(labels, points, limits)
    if boxes is not None:
        _check_boxes(boxes, points, limits)
        images = _same_images("input_boxes", boxes, images)
    given = points if points is not None else boxes
    per_image = None if given is None else given.shape[1]
    if masks is not None:
        masks = _checked_masks(masks, per_image, limits)
        images = _same_images("input_masks", masks, images) if len(masks) > 1 or images is None else images
        per_image = per_image or masks.shape[1]
        masks = masks.expand(images, -1, -1, -1).flatten(0, 1)[:, None]
    if points is not None and labels is None:
        labels = torch.ones(points.shape[:3], dtype=torch.int64, device=points.device)
    return Prompts(
        images=images or 1,
        per_image=per_image or 1,
        xy_XK2=None if points is None else points.flatten(0, 1),
        labels_XK=None if labels is None else labels.flatten(0, 1).to(torch.int64),
        boxes_X4=None if boxes is None else boxes.flatten(0, 1),
        masks_Y1LL=masks,
    )


def _check_points(points: Tensor, limits: Limits) -> None:
    wanted = "(images, prompts, points, 2)"
    _check_tensor("input_points", points, wanted, limits)
    if points.ndim != 4 or points.shape[3] != 2:
        hint = "a dimension is missing: points [[x, y]] of one prompt go in as [[[[x, y]]]]" if points.ndim < 4 else ""
        raise _wrong("input_points", points, wanted, hint)
    _check_filled("input_points", points, wanted)


def _check_labels(labels: Tensor, points: Tensor | None, limits: Limits) -> None:
    if points is None:
        raise ConfigError(f"input_labels {tuple(labels.shape)} came without input_points; wanted both, or no labels")
    wanted = f"{tuple(points.shape[:3])}, one for each of the points {tuple(points.shape)}"
    _check_tensor("input_labels", labels, wanted, limits)
    if labels.shape != points.shape[:3]:
        raise _wrong("input_labels", labels, wanted)
    if _can_look(labels) and not torch.isin(labels, torch.tensor(LABELS, device=labels.device)).all():
        raise _wrong("input_labels", labels, wanted, f"holds {_strange(labels)}; a label is one of {LABELS}")


def _check_boxes(boxes: Tensor, points: Tensor | None, limits: Limits) -> None:
    wanted = "(images, prompts, 4), each x0, y0, x1, y1"
    _check_tensor("input_boxes", boxes, wanted, limits)
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise _wrong("input_boxes", boxes, wanted, "a dimension is missing" if boxes.ndim < 3 else "")
    if points is not None and boxes.shape[1] != points.shape[1]:
        raise _wrong("input_boxes", boxes, f"a box for each of the {points.shape[1]} prompts of input_points")
    _check_filled("input_boxes", boxes, wanted)
    if _can_look(boxes):
        low_XP2, high_XP2 = boxes.unflatten(2, (2, 2)).aminmax(dim=2)
        if ((high_XP2 < 0) | (low_XP2 > limits.side)).any():
            hint = f"a box lies outside the model's square of {limits.side}; the processor scales boxes of the picture"
            raise _wrong("input_boxes", boxes, wanted, hint)


def _checked_masks(masks: Tensor, per_image: int | None, limits: Limits) -> Tensor:
    """(images, 1 or prompts, L, L)."""
    side = limits.mask_side
    wanted = f"logits (images, 1, {side}, {side}), or one for each of the prompts (images, prompts, {side}, {side})"
    _check_tensor("input_masks", masks, wanted, limits)
    masks = masks[:, None] if masks.ndim == 3 else masks
    if masks.ndim != 4 or tuple(masks.shape[2:]) != (side, side):
        raise _wrong("input_masks", masks, wanted)
    if per_image is not None and masks.shape[1] not in (1, per_image):
        raise _wrong("input_masks", masks, wanted, f"there are {per_image} prompts")
    _check_filled("input_masks", masks, wanted)
    return masks


def _same_images(name: str, tensor: Tensor, images: int | None) -> int:
    if images is not None and len(tensor) != images:
        hint = "several prompts for one image stand in the second dimension" if images == 1 else ""
        raise _wrong(name, tensor, f"the first dimension {images}, as many as there are images", hint)
    return len(tensor)


def _check_tensor(name: str, tensor: Tensor, wanted: str, limits: Limits) -> None:
    if not isinstance(tensor, Tensor):
        raise ConfigError(
            f"{name}: a {type(tensor).__name__}; wanted a tensor {wanted}; the processor makes it, with"
            ' return_tensors="pt"'
        )
    if tensor.device != limits.device:
        raise ConfigError(
            f"{name}: {tuple(tensor.shape)} on {tensor.device}, the model is on {limits.device}; wanted {wanted} there:"
            f" inputs.to({str(limits.device)!r})"
        )


def _check_filled(name: str, tensor: Tensor, wanted: str, *, look: bool = True) -> None:
    """`look` False for what is large and lies on an accelerator, where looking at values means waiting for them."""
    if 0 in tensor.shape:
        raise _wrong(name, tensor, wanted, "it is empty; leave the argument out")
    if look and _can_look(tensor) and tensor.is_floating_point() and not tensor.isfinite().all():
        raise _wrong(name, tensor, wanted, "it holds NaN or infinite values; wanted finite numbers")


def _can_look(tensor: Tensor) -> bool:
    """Not while a program is traced or recorded that is for all values."""
    return not torch.compiler.is_compiling() and not (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def _strange(labels: Tensor) -> str:
    found = sorted({float(label) for label in to_host(labels.flatten())} - set(LABELS))
    return ", ".join(f"{label:g}" for label in found[:3])


def _wrong(name: str, tensor: Tensor, wanted: str, hint: str = "") -> ConfigError:
    kind = str(tensor.dtype).removeprefix("torch.")
    return ConfigError(
        f"{name}: {kind} of shape {tuple(tensor.shape)}; wanted {wanted}" + (f"; {hint}" if hint else "")
    )
