"""Resize, rescale, normalise and pad pictures as tensors, number for number as transformers' `SamImageProcessor` does.

The generator resizes with Pillow as the original package does (`amg.sam.processor`); the two differ by up to one grey
level in about a thousandth of the values. Sources: `TorchvisionBackend` and `SamImageProcessor._preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from amg.errors import ConfigError
from amg.geometry import Size, fit_longest_side
from amg.sam import image_options
from amg.sam.image_options import ImageOptions, colour, filter_number, height_width

FILTERS = {
    image_options.NEAREST: InterpolationMode.NEAREST_EXACT,
    image_options.BILINEAR: InterpolationMode.BILINEAR,
    image_options.BICUBIC: InterpolationMode.BICUBIC,
}


def preprocess(images_CHW: Sequence[Tensor], options: ImageOptions) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """The pictures for the model, and their (height, width) before the padding."""
    images = list(images_CHW)
    if options.do_resize:
        images = [resize(image, options.edge, resample=filter_number(options.resample)) for image in images]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    images = [_scale(image, options) for image in images]
    return pad(images, pad_size=options.pad_size) if options.do_pad else images, sizes


def preprocess_maps(maps_1HW: Sequence[Tensor], options: ImageOptions) -> list[Tensor]:
    """Segmentation maps at the size of the model's masks, int64; values are classes and never mixed."""
    maps = list(maps_1HW)
    if options.do_resize:
        edge = image_options.longest_edge("mask_size", options.mask_size)
        maps = [resize(each, edge, resample=image_options.NEAREST) for each in maps]
    if options.do_pad:
        maps = pad(maps, pad_size=options.mask_pad_size, name="mask_pad_size")
    return [each.squeeze(0).to(torch.int64) for each in maps]


def resize(image_CHW: Tensor, longest_edge: int, *, resample: int = image_options.BILINEAR) -> Tensor:
    """The picture with its longest side at `longest_edge`, smoothed where it shrinks."""
    size = fit_longest_side(Size(image_CHW.shape[-2], image_CHW.shape[-1]), longest_edge)
    resized = tv.resize(image_CHW[None], [size.height, size.width], interpolation=FILTERS[resample], antialias=True)
    return resized[0]


def pad(images_CHW: Sequence[Tensor], *, pad_size: object = None, name: str = "pad_size") -> list[Tensor]:
    """Zeros at the right and the bottom up to `pad_size`; None stands for the largest height and width among them."""
    if pad_size is None:
        target = Size(*(max(image.shape[axis] for image in images_CHW) for axis in (-2, -1)))
    else:
        target = height_width(name, pad_size)
    return [_pad(image, target, name) for image in images_CHW]


def _pad(image_CHW: Tensor, target: Size, name: str) -> Tensor:
    height, width = image_CHW.shape[-2:]
    if height > target.height or width > target.width:
        raise ConfigError(
            f"{name}: {target.height} x {target.width} for a picture of {height} x {width}; wanted at least that:"
            f" change size and {name} together, or leave do_resize on"
        )
    padded = image_CHW.new_zeros(*image_CHW.shape[:-2], target.height, target.width)
    padded[..., :height, :width] = image_CHW
    return padded


def _scale(image_CHW: Tensor, options: ImageOptions) -> Tensor:
    """To (pixels / 255 - mean) / std, the factor taken into mean and std first as the source does: its rounding."""
    if not options.do_normalize:
        return image_CHW * options.rescale_factor if options.do_rescale else image_CHW
    mean, std = (
        torch.tensor(colour(name, getattr(options, name)), device=image_CHW.device)[:, None, None]
        for name in ("image_mean", "image_std")
    )
    if options.do_rescale:
        mean, std = mean * (1.0 / options.rescale_factor), std * (1.0 / options.rescale_factor)
    if image_CHW.shape[0] not in (1, 3) or (image_CHW.shape[0] == 1 and len(mean) == 3):
        raise ConfigError(
            f"images: {image_CHW.shape[0]} channels and do_convert_rgb off; normalising wants 3 channels, or"
            " do_normalize off"
        )
    return image_CHW.to(torch.float32).sub(mean).div_(std)
