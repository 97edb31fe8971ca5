"""Preprocessing against the original package's, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from torch.nn import functional as F

from amg.geometry import Box, Crop, Size
from amg.sam import processor
from amg.sam.processor import WHOLE_BYTES, resize, to_batch
from tests.sam_reference import segment_anything  # noqa: F401  imported there with its warnings off

MEAN = torch.tensor([123.675, 116.28, 103.53]).view(-1, 1, 1)
STD = torch.tensor([58.395, 57.12, 57.375]).view(-1, 1, 1)


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height * 10007 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def reference(pixels_HWC: NDArray[np.uint8]) -> torch.Tensor:
    resized_3hw = torch.as_tensor(ResizeLongestSide(1024).apply_image(pixels_HWC)).permute(2, 0, 1)
    normal_3hw = (resized_3hw - MEAN) / STD
    return F.pad(normal_3hw, (0, 1024 - normal_3hw.shape[2], 0, 1024 - normal_3hw.shape[1]))


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (1024, 1024), (768, 1024), (1201, 811), (1024, 9), (1500, 2250)])
def test_whole_images_are_the_references_bits(size: tuple[int, int]) -> None:
    pixels_HWC = photo(*size)
    batch = to_batch(pixels_HWC, [Crop(Box(0, 0, size[1], size[0]), 0, 0)])
    assert torch.equal(batch.pixels_N3SS[0], reference(pixels_HWC))


@pytest.mark.parametrize("size", [(3000, 3100), (9001, 1000), (900, 9700), (300, 90_000)])
def test_large_images_and_their_crops_are_too(size: tuple[int, int]) -> None:
    """They are resized in another way: each channel on its own."""
    pixels_HWC = photo(*size)
    assert pixels_HWC.size > WHOLE_BYTES
    height, width = size
    crops = [Crop(Box(0, 0, width, height), 0, 0), Crop(Box(7, 1, width - 3, height), 1, 1)]
    batch = to_batch(pixels_HWC, crops)
    for n, crop in enumerate(crops):
        box = crop.box
        assert torch.equal(batch.pixels_N3SS[n], reference(pixels_HWC[box.y0 : box.y1, box.x0 : box.x1]))


@pytest.mark.parametrize("seed", range(40))
def test_channel_by_channel_is_pillows_resize_of_all(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever axis Pillow resizes first: that depends on the sizes, and rounds in between."""
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, rng.choice([30, 300, 3000]), 2))
    pixels_HWC, side = photo(height, width), int(rng.choice([64, 512, 1024]))
    whole = resize(pixels_HWC, side)
    monkeypatch.setattr(processor, "WHOLE_BYTES", 0)
    assert torch.equal(resize(pixels_HWC, side), whole)


def test_crops_are_cut_before_they_are_resized() -> None:
    pixels_HWC = photo(300, 401)
    crops = [Crop(Box(0, 0, 401, 300), 0, 0), Crop(Box(17, 40, 217, 251), 1, 1), Crop(Box(200, 3, 401, 300), 1, 2)]
    batch = to_batch(pixels_HWC, crops, "cpu")
    assert batch.crops == tuple(crops)
    assert batch.resized == (Size(766, 1024), Size(1024, 971), Size(1024, 693))
    for n, crop in enumerate(crops):
        box = crop.box
        assert torch.equal(batch.pixels_N3SS[n], reference(pixels_HWC[box.y0 : box.y1, box.x0 : box.x1]))


def test_a_side_that_would_round_to_nothing_keeps_one_pixel() -> None:
    batch = to_batch(photo(3, 10000), [Crop(Box(0, 0, 10000, 3), 0, 0)])
    assert batch.resized == (Size(1, 1024),)
    assert not batch.pixels_N3SS[0, :, 1:].any()


def test_views_of_other_arrays_are_taken() -> None:
    pixels_HWC = photo(40, 60)
    flipped = to_batch(pixels_HWC[:, ::-1], [Crop(Box(0, 0, 60, 40), 0, 0)])
    assert torch.equal(flipped.pixels_N3SS[0], reference(np.ascontiguousarray(pixels_HWC[:, ::-1])))
