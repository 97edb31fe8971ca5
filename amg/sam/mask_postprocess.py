"""From the model's logits to masks of the picture, and the filters of mask generation on whole masks.

Interface and arithmetic of transformers' `SamImageProcessor`; the generation of this package (`amg.generate`) does
the same work without masks of the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from amg import rle
from amg.errors import ConfigError
from amg.geometry import Size
from amg.tensors import to_host

NEAR = 20.0
"""Pixels: closer to a crop's edge than this, a mask counts as cut off."""


def post_process_masks(
    masks: Any, original_sizes: Any, reshaped_input_sizes: Any, *, threshold: float, binarize: bool, padded: Size
) -> list[Tensor]:
    """For every image its masks (prompts, masks, height, width) in the picture: bool, or logits without `binarize`.

    masks: (images, prompts, masks, side, side), or a list with one entry an image. padded: the model's square.
    Bilinear twice: to the square, and without its padding to the picture.
    """
    originals, resized = (
        read_sizes("original_sizes", original_sizes),
        read_sizes("reshaped_input_sizes", reshaped_input_sizes),
    )
    if not len(masks) == len(originals) == len(resized):
        raise ConfigError(
            f"masks of {len(masks)} images, original_sizes of {len(originals)}, reshaped_input_sizes of {len(resized)};"
            " wanted one of each for every image"
        )
    logits = [
        _in_picture(n, m, o, r, padded) for n, (m, o, r) in enumerate(zip(masks, originals, resized, strict=True))
    ]
    return [each > threshold for each in logits] if binarize else logits


def _in_picture(number: int, masks: Any, original: Size, resized: Size, padded: Size) -> Tensor:
    if isinstance(masks, np.ndarray):
        masks = torch.from_numpy(masks)
    if not isinstance(masks, Tensor):
        raise ConfigError(f"masks[{number}]: a {type(masks).__name__}; wanted a tensor or an array of logits")
    if masks.ndim != 4 or not masks.is_floating_point():
        raise ConfigError(
            f"masks[{number}]: {masks.dtype} of shape {tuple(masks.shape)}; wanted logits (prompts, masks, side, side),"
            " as outputs.pred_masks[i] are"
        )
    if resized.height > padded.height or resized.width > padded.width:
        raise ConfigError(
            f"reshaped_input_sizes[{number}]: {resized.height} x {resized.width} in a square of {padded.height} x"
            f" {padded.width}; wanted what the processor returned, or another pad_size"
        )
    square = F.interpolate(masks, (padded.height, padded.width), mode="bilinear", align_corners=False)
    cut = square[..., : resized.height, : resized.width]
    return F.interpolate(cut, (original.height, original.width), mode="bilinear", align_corners=False)


def read_sizes(name: str, given: Any) -> list[Size]:
    """(height, width) of every image, from a tensor, an array or a list."""
    array: NDArray[Any]
    try:
        array = np.array([to_host(row) if isinstance(row, Tensor) else row for row in given])
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 2 or array.shape[-1] != 2 or array.dtype.kind not in "iu" or (array <= 0).any():
        seen = f"shape {array.shape}" if array.ndim else repr(given)
        raise ConfigError(f"{name}: {seen}; wanted whole numbers of shape (images, 2), height before width")
    return [Size(int(row[0]), int(row[1])) for row in array]


def filter_masks(
    masks: Tensor,
    iou_scores: Tensor,
    image: Size,
    crop_box: Sequence[float] | Tensor,
    *,
    min_iou: float,
    min_stability: float,
    threshold: float,
    offset: float,
) -> tuple[list[dict[str, Any]], Tensor, Tensor]:
    """What passes, as run lengths in the whole picture, with scores (K,) and boxes int64 (K, 4).

    masks: logits (prompts, masks, height, width) at the size of the crop, iou_scores (prompts, masks). A mask passes
    above `min_iou` and above `min_stability` (0 passes all), unless it is cut off by the crop's edge. Boxes hold their
    last pixel: x1 is that pixel's column.
    """
    x0, y0, x1, y1 = (int(edge) for edge in crop_box)
    flat_KHW, scores_K = _flat_masks(masks, iou_scores, (y1 - y0, x1 - x0))
    keep_K = torch.ones(len(flat_KHW), dtype=torch.bool, device=flat_KHW.device)
    if min_iou > 0:
        keep_K &= scores_K > min_iou
    if min_stability > 0:
        keep_K &= stability(flat_KHW, threshold=threshold, offset=offset) > min_stability
    flat_KHW, scores_K = flat_KHW[keep_K] > threshold, scores_K[keep_K]
    boxes_K4 = mask_boxes(flat_KHW) + torch.tensor([x0, y0, x0, y0], device=flat_KHW.device)
    whole_K = ~_cut_off(boxes_K4, (x0, y0, x1, y1), image)
    in_picture = _in_whole_picture(flat_KHW[whole_K], (x0, y0), image)
    return run_lengths(in_picture), scores_K[whole_K], boxes_K4[whole_K]


def _flat_masks(masks: Tensor, iou_scores: Tensor, crop: tuple[int, int]) -> tuple[Tensor, Tensor]:
    if masks.ndim != 4 or iou_scores.shape != masks.shape[:2]:
        raise ConfigError(
            f"masks: shape {tuple(masks.shape)}, iou_scores: shape {tuple(iou_scores.shape)}; wanted (prompts, masks,"
            " height, width) and (prompts, masks) of one image"
        )
    if tuple(masks.shape[2:]) != crop:
        raise ConfigError(
            f"masks: {masks.shape[2]} x {masks.shape[3]} for a cropped_box_image of {crop[0]} x {crop[1]}; wanted masks"
            " of the crop's size, as post_process_masks gives them"
        )
    return masks.flatten(0, 1), iou_scores.to(masks.device).flatten()


def stability(logits_KHW: Tensor, *, threshold: float, offset: float) -> Tensor:
    """IoU (K,) of the masks at `offset` above and below the threshold; NaN where both are empty."""
    above, below = (
        (logits_KHW > cut).sum((-1, -2), dtype=torch.int32) for cut in (threshold + offset, threshold - offset)
    )
    return above / below


def mask_boxes(masks_KHW: Tensor) -> Tensor:
    """Boxes int64 (K, 4) whose corners are the first and the last pixel; zeros for an empty mask."""
    if not len(masks_KHW):
        return torch.zeros(0, 4, dtype=torch.int64, device=masks_KHW.device)
    corners = []
    for axis in (-2, -1):  # which columns, then which rows hold a pixel
        holds = masks_KHW.any(axis).to(torch.int8)
        corners.append((holds.argmax(-1), holds.shape[-1] - 1 - holds.flip(-1).argmax(-1)))
    (x0, x1), (y0, y1) = corners
    return torch.stack([x0, y0, x1, y1], -1) * masks_KHW.flatten(1).any(-1)[:, None]


def _cut_off(boxes_K4: Tensor, crop: tuple[int, int, int, int], image: Size) -> Tensor:
    """Near an edge of the crop that is not near that of the picture."""
    crop_4, image_4 = (
        torch.tensor(edges, dtype=torch.float32, device=boxes_K4.device)
        for edges in (crop, (0, 0, image.width, image.height))
    )
    near_crop = (boxes_K4 - crop_4).abs() <= NEAR
    near_image = (boxes_K4 - image_4).abs() <= NEAR
    return (near_crop & ~near_image).any(1)


def _in_whole_picture(masks_Khw: Tensor, corner: tuple[int, int], image: Size) -> Tensor:
    height, width = masks_Khw.shape[1:]
    if (height, width) == (image.height, image.width):
        return masks_Khw
    x0, y0 = corner
    whole = masks_Khw.new_zeros(len(masks_Khw), image.height, image.width)
    whole[:, y0 : y0 + height, x0 : x0 + width] = masks_Khw
    return whole


def run_lengths(masks_KHW: Tensor) -> list[dict[str, Any]]:
    """COCO's uncompressed run lengths: `size` [height, width], `counts` by columns, zeros first."""
    size = [int(length) for length in masks_KHW.shape[1:]]
    return [{"size": list(size), "counts": [*map(int, rle.from_mask(mask))]} for mask in to_host(masks_KHW)]


def from_run_lengths(record: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask (height, width) of uncompressed run lengths."""
    height, width = record["size"]
    return rle.to_mask(np.array(record["counts"], np.uint32), Size(int(height), int(width)))


def post_process_for_mask_generation(
    all_masks: Sequence[dict[str, Any]], all_scores: Tensor, all_boxes: Tensor, *, max_iou: float
) -> tuple[list[Tensor], Tensor, list[dict[str, Any]], Tensor]:
    """Non-maximum suppression over all crops: masks as bool tensors, scores, run lengths and boxes, best first."""
    if not len(all_masks) == len(all_scores) == len(all_boxes):
        raise ConfigError(
            f"all_masks: {len(all_masks)}, all_scores: {len(all_scores)}, all_boxes: {len(all_boxes)}; wanted one score"
            " (K,) and one box (K, 4) for each run-length mask"
        )
    keep = batched_nms(all_boxes.float(), all_scores, torch.zeros(len(all_boxes), device=all_boxes.device), max_iou)
    kept = [all_masks[int(k)] for k in to_host(keep)]
    return [torch.from_numpy(from_run_lengths(each)) for each in kept], all_scores[keep], kept, all_boxes[keep]
