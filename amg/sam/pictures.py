"""From what people have in hand (PIL, arrays, tensors, paths, nested lists of them) to tensors with channels first."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch
from torch import Tensor

from amg.errors import ConfigError, SourceError

CHANNELS = (1, 3, 4)
FIRST, LAST = "channels_first", "channels_last"


def load_picture(source: str | Path, *, timeout: float | None = None) -> PIL.Image.Image:
    """An upright RGB picture from a path, an http(s) address or a `data:image/...;base64,` text.

    timeout: seconds to wait for an address. Raises SourceError for what cannot be read or is no picture.
    """
    try:
        with PIL.Image.open(_stream(source, timeout)) as picture:
            return upright(picture)
    except (OSError, ValueError, PIL.Image.DecompressionBombError) as error:
        shown = str(source)[:80]
        raise SourceError(
            f"{shown!r} is no picture that can be read: {error}; wanted the path of an image file, an http(s) address"
            " or a 'data:image/...;base64,' text"
        ) from error


def upright(picture: PIL.Image.Image) -> PIL.Image.Image:
    """The picture turned as its EXIF data says, in RGB; refuses as `as_rgb`."""
    return as_rgb(PIL.ImageOps.exif_transpose(picture))


def as_rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    """ConfigError for pixels of more than 8 bits, whose values Pillow would cut off at 255."""
    if picture.mode.startswith("I") or picture.mode == "F":
        raise ConfigError(
            f"image: a PIL image of mode {picture.mode}, whose values above 255 would all become white; wanted 8 bits a"
            " channel: scale its values to 0 to 255 first (sam-amg run does so with 16-bit files)"
        )
    return picture.convert("RGB")


def _stream(source: str | Path, timeout: float | None) -> Path | io.BytesIO:
    text = str(source)
    if text.startswith(("http://", "https://")):
        import requests

        answer = requests.get(text, timeout=timeout)
        answer.raise_for_status()
        return io.BytesIO(answer.content)
    if text.startswith("data:image/"):
        try:
            return io.BytesIO(base64.b64decode(text.partition(",")[2], validate=True))
        except binascii.Error as error:
            raise ValueError(f"its base64 is damaged ({error})") from error
    return Path(source).expanduser()


def flatten(name: str, given: Any, *, ndim: int) -> list[Any]:
    """Single pictures in their order, from one picture, a batch as one array, or lists of these nested at will.

    ndim: dimensions of one picture as an array: 3 for images, 2 for maps. Grey images may have 2.
    Raises ConfigError for an empty list and for what is no picture.
    """
    flat = list(_leaves(name, given, ndim))
    if not flat:
        raise ConfigError(f"{name}: an empty list; wanted at least one picture")
    return flat


def _leaves(name: str, given: Any, ndim: int) -> Iterator[Any]:
    if isinstance(given, list | tuple):
        for number, inner in enumerate(given):
            yield from _leaves(f"{name}[{number}]", inner, ndim)
    elif isinstance(given, str | Path):
        yield load_picture(given)
    elif isinstance(given, PIL.Image.Image):
        yield given
    elif isinstance(given, np.ndarray | Tensor):
        yield from _split(name, given, ndim)
    else:
        raise ConfigError(
            f"{name}: a {type(given).__name__}; wanted a PIL image, an array or tensor, a path, or a list of these"
        )


def _split(name: str, array: np.ndarray | Tensor, ndim: int) -> Iterator[np.ndarray | Tensor]:
    if 0 in array.shape or not 2 <= array.ndim <= ndim + 1:
        wanted = "(height, width, channels) or (channels, height, width)" if ndim == 3 else "(height, width)"
        raise ConfigError(
            f"{name}: shape {tuple(array.shape)}; wanted one picture {wanted}, or a batch, one dimension more"
        )
    yield from array if array.ndim == ndim + 1 else [array]


def to_pixels(
    name: str, picture: Any, *, rgb: bool, layout: Any = None, device: torch.device | str | None = None
) -> Tensor:
    """One picture as a tensor (channels, height, width), its dtype kept.

    rgb: grey becomes three channels, transparency is laid over white. layout: `channels_first`, `channels_last`, or
    None to find it out from the shape. Source: `TorchvisionBackend.process_image` of transformers.
    Raises ConfigError for a shape without 1, 3 or 4 channels and for values that are no numbers.
    """
    if isinstance(picture, PIL.Image.Image):
        pixels = torch.from_numpy(np.array(_over_white(picture) if rgb else picture))
        layout = LAST
    else:
        pixels = _as_tensor(name, picture)
    pixels = pixels[None] if pixels.ndim == 2 else _channels_first(name, pixels, layout)
    if rgb and not isinstance(picture, PIL.Image.Image):
        pixels = _to_rgb(name, pixels)
    pixels = pixels.contiguous()
    return pixels if device is None else pixels.to(device)


def _over_white(picture: PIL.Image.Image) -> PIL.Image.Image:
    if "A" not in picture.getbands() and picture.info.get("transparency") is None:
        return picture.convert("RGB")
    seen_through = picture.convert("RGBA")
    white = PIL.Image.new("RGBA", picture.size, "white")
    return PIL.Image.alpha_composite(white, seen_through).convert("RGB")


def _as_tensor(name: str, picture: np.ndarray | Tensor) -> Tensor:
    if isinstance(picture, np.ndarray):
        try:
            picture = torch.from_numpy(np.ascontiguousarray(picture))
        except TypeError as error:
            raise ConfigError(f"{name}: {picture.dtype} of shape {picture.shape}; wanted numbers: {error}") from error
    if picture.is_complex() or (picture.is_floating_point() and not bool(torch.isfinite(picture).all())):
        raise ConfigError(
            f"{name}: {picture.dtype} of shape {tuple(picture.shape)} with NaN or infinite values; wanted finite ones"
        )
    return picture


def _channels_first(name: str, pixels: Tensor, layout: Any) -> Tensor:
    layout = getattr(layout, "value", layout)
    if layout not in (None, FIRST, LAST):
        raise ConfigError(f"input_data_format: {layout!r}; wanted {FIRST!r}, {LAST!r} or None")
    if layout is None:
        layout = _guess_layout(name, pixels)
    return pixels if layout == FIRST else pixels.permute(2, 0, 1)


def _guess_layout(name: str, pixels: Tensor) -> str:
    shape = tuple(pixels.shape)
    if shape[0] not in CHANNELS and shape[2] not in CHANNELS:
        raise ConfigError(
            f"{name}: shape {shape}; wanted 1, 3 or 4 channels, first as in (3, height, width) or last as in (height,"
            " width, 3)"
        )
    if shape[0] in CHANNELS and shape[2] in CHANNELS:
        warnings.warn(
            f"{name}: shape {shape} has channels first or last; taken as first; say which with input_data_format",
            stacklevel=2,
        )
    return FIRST if shape[0] in CHANNELS else LAST


def _to_rgb(name: str, pixels: Tensor) -> Tensor:
    if pixels.shape[0] == 1:
        return pixels.expand(3, -1, -1)
    if pixels.shape[0] != 4:
        return pixels
    if pixels.is_floating_point() and bool((pixels.min() < 0) | (pixels.max() > 1)):
        raise ConfigError(
            f"{name}: {pixels.dtype} with transparency and values outside 0 to 1; wanted 0 to 1, uint8, or RGB without"
            " the fourth channel"
        )
    from torchvision.transforms.v2 import functional as tv  # seconds of imports, which mask generation can do without

    scaled = tv.to_dtype(pixels, torch.float32, scale=True)
    colour, alpha = scaled[:3], scaled[3:]
    return tv.to_dtype(colour * alpha + (1 - alpha), pixels.dtype, scale=True)
