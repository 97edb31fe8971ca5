"""What a `SamImageProcessor` does to an image: its settings, their defaults, and what may stand in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from amg.errors import ConfigError
from amg.geometry import Size

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
NEAREST, BILINEAR, BICUBIC = 0, 2, 3
"""The numbers that Pillow gives the resampling filters; what the files of processors hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOptions:
    """The settings of one call, checked and in one form: edges in pixels, sizes as `Size`, colours as floats.

    `pad_size` None pads a batch to its largest image. Raises ConfigError at birth, naming what is wrong.
    """

    do_convert_rgb: bool | None = True
    do_resize: bool | None = True
    size: Any = field(default_factory=lambda: {"longest_edge": 1024})
    resample: Any = BILINEAR
    do_rescale: bool | None = True
    rescale_factor: Any = 1 / 255
    do_normalize: bool | None = True
    image_mean: Any = IMAGENET_MEAN
    image_std: Any = IMAGENET_STD
    do_pad: bool | None = True
    pad_size: Any = field(default_factory=lambda: {"height": 1024, "width": 1024})
    mask_size: Any = field(default_factory=lambda: {"longest_edge": 256})
    mask_pad_size: Any = field(default_factory=lambda: {"height": 256, "width": 256})

    def __post_init__(self) -> None:
        for name in ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize", "do_pad"):
            if not isinstance(getattr(self, name), bool | None):
                raise ConfigError(f"{name}: {getattr(self, name)!r}; wanted True or False")
        if self.do_resize:
            longest_edge("size", self.size)
            longest_edge("mask_size", self.mask_size)
            filter_number(self.resample)
        if self.do_rescale and not (_is_number(self.rescale_factor) and self.rescale_factor):
            raise ConfigError(f"rescale_factor: {self.rescale_factor!r}; do_rescale wants a number such as 1 / 255")
        if self.do_normalize:
            colour("image_mean", self.image_mean)
            if not all(colour("image_std", self.image_std)):
                raise ConfigError(f"image_std: {self.image_std!r}; wanted no zero among them, they divide")
        for name in ("pad_size", "mask_pad_size"):
            if getattr(self, name) is not None:
                height_width(name, getattr(self, name))

    @property
    def edge(self) -> int:
        return longest_edge("size", self.size)


NAMES = tuple(option.name for option in fields(ImageOptions))


def longest_edge(name: str, given: Any) -> int:
    """The pixels of the longest side from `{"longest_edge": n}`."""
    size = dict(given) if isinstance(given, Mapping) else {}
    if set(size) != {"longest_edge"} or not _is_length(size["longest_edge"]):
        raise ConfigError(f"{name}: {given!r}; wanted {{'longest_edge': pixels}}, as {{'longest_edge': 1024}}")
    return size["longest_edge"]


def height_width(name: str, given: Any) -> Size:
    """A size from `{"height": h, "width": w}`, (h, w), or one number for a square."""
    if _is_length(given):
        given = (given, given)
    if isinstance(given, Mapping) and set(given) == {"height", "width"}:
        given = (given["height"], given["width"])
    if not isinstance(given, Sequence) or len(given) != 2 or not all(_is_length(length) for length in given):
        raise ConfigError(f"{name}: {given!r}; wanted {{'height': pixels, 'width': pixels}}")
    return Size(*given)


def colour(name: str, given: Any) -> tuple[float, ...]:
    """One number for all channels, or one for each of three."""
    numbers = (given,) if _is_number(given) else given
    if not isinstance(numbers, list | tuple) or len(numbers) not in (1, 3) or not all(map(_is_number, numbers)):
        raise ConfigError(f"{name}: {given!r}; wanted three numbers, one for each of red, green and blue")
    return tuple(float(number) for number in numbers)


def filter_number(given: Any) -> int:
    """Pillow's number of a filter, from that number, Pillow's or torchvision's enumeration, or None for bilinear."""
    names = {"nearest": NEAREST, "nearest-exact": NEAREST, "bilinear": BILINEAR, "bicubic": BICUBIC}
    value = getattr(given, "value", given)
    number = BILINEAR if value is None else names.get(value, value) if isinstance(value, str) else value
    if isinstance(number, bool) or number not in (NEAREST, BILINEAR, BICUBIC):
        raise ConfigError(f"resample: {given!r}; wanted 0 (nearest), 2 (bilinear) or 3 (bicubic)")
    return int(number)


def _is_length(given: Any) -> bool:
    return isinstance(given, int) and not isinstance(given, bool) and given > 0


def _is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)
