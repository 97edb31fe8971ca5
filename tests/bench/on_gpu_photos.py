"""Photos of given sizes, and as many as are wanted, made of the samples in `tests/photos`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tests import parity, reference_amg

SIZES: Mapping[str, tuple[int, int]] = {
    "640x480": (640, 480),
    "1200x1800": (1200, 1800),
    "2250x1500": (2250, 1500),
    "64x48": (64, 48),
}
"""Width and height, by their name."""

SEED = 11


def photo_of(size: str, folder: Path) -> Path:
    """`studio.jpg`, turned where that fits better, resized to cover the size and cut in the middle; as PNG."""
    width, height = SIZES[size]
    image = Image.open(reference_amg.PHOTOS / "studio.jpg").convert("RGB")
    if (image.width > image.height) != (width > height):
        image = image.transpose(Image.Transpose.ROTATE_90)
    path = folder / f"{size}.png"
    ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC).save(path)
    return path


def variants(folder: Path, count: int, *, longest: int | None = None) -> Path:
    """A folder of so many photos: the samples, then cuts of them and mirror images, the same ones each time.

    `longest`: the longest side; none means as they are. PNG, so that every machine reads the same pixels.
    """
    target = folder / f"variants-{count}-{longest}"
    target.mkdir(exist_ok=True)
    for number, image in zip(range(count), _endless(longest), strict=False):
        image.save(target / f"{number:05}.png", compress_level=1)
    return target


def _endless(longest: int | None) -> Iterator[Image.Image]:
    rng = np.random.default_rng(SEED)
    samples = [Image.open(path).convert("RGB") for path in parity.photos_in(reference_amg.PHOTOS)]
    if longest is not None:
        for sample in samples:
            sample.thumbnail((longest, longest))
    yield from samples
    while True:
        for sample in samples:
            width, height = (int(side * rng.uniform(0.5, 1.0)) for side in sample.size)
            left, top = int(rng.integers(0, sample.width - width + 1)), int(rng.integers(0, sample.height - height + 1))
            cut = sample.crop((left, top, left + width, top + height))
            yield ImageOps.mirror(cut) if rng.random() < 0.5 else cut
