"""From pixels of an image to what the encoder takes: resize, normalise, pad, bit for bit as segment-anything does.

Sources: `ResizeLongestSide.apply_image` (a bilinear Pillow resize of the cut-out crop) and `Sam.preprocess`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from amg.geometry import Crop, Size, fit_longest_side
from amg.tensors import Batch

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

WHOLE_BYTES = 24 * 2**20
"""Up to here (8 megapixels) an image is resized whole, which is faster for small ones."""


def to_batch(
    pixels_HWC: NDArray[np.uint8], crops: Sequence[Crop], device: torch.device | str = "cpu", *, side: int = 1024
) -> Batch:
    """The crops of one image (uint8 RGB) as one batch on `device`; bytes go up, arithmetic happens there."""
    pictures = [pixels_HWC[crop.box.y0 : crop.box.y1, crop.box.x0 : crop.box.x1] for crop in crops]
    return stack(pictures, crops, device, side=side)


def stack(
    pictures: Sequence[NDArray[np.uint8]],
    crops: Sequence[Crop],
    device: torch.device | str = "cpu",
    *,
    side: int = 1024,
    room: int = 0,
) -> Batch:
    """The pixels of crops (uint8 RGB), of one image or of several, as one batch; with `room` for so many at least."""
    mean_311 = torch.tensor(PIXEL_MEAN, device=device)[:, None, None]
    std_311 = torch.tensor(PIXEL_STD, device=device)[:, None, None]
    pixels_N3SS = torch.zeros(max(room, len(crops)), 3, side, side, device=device)
    resized = []
    for picture, square_3SS in zip(pictures, pixels_N3SS, strict=False):
        pixels_3hw = _up(resize(picture, side), device).permute(2, 0, 1)
        h, w = pixels_3hw.shape[1:]
        square_3SS[:, :h, :w] = (pixels_3hw - mean_311) / std_311
        resized.append(Size(h, w))
    return Batch(pixels_N3SS, tuple(crops), tuple(resized))


def _up(pixels: Tensor, device: torch.device | str) -> Tensor:
    """Crossing 1, pixels up: to a GPU from memory that does not move, so that the host need not wait for it."""
    if torch.device(device).type == "cuda":
        return pixels.pin_memory().to(device, non_blocking=True)
    return pixels.to(device)


def resize(pixels_hwC: NDArray[np.uint8], side: int) -> Tensor:
    """uint8 pixels with the longest side at `side`.

    Large images channel by channel: Pillow takes a single one as it lies in memory, but copies three at four bytes a
    pixel. It resizes each on its own anyway, so the bytes are the same.
    """
    size = fit_longest_side(Size(*pixels_hwC.shape[:2]), side)
    if pixels_hwC.size <= WHOLE_BYTES:
        return torch.from_numpy(_resize(pixels_hwC, size))
    channels = [_resize(pixels_hwC[..., channel], size) for channel in range(pixels_hwC.shape[2])]
    return torch.from_numpy(np.stack(channels, axis=-1))


def _resize(pixels: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    return np.array(picture.resize((size.width, size.height), Image.Resampling.BILINEAR))
