"""The image of a row, for people to look at: found again, decoded, made small, or a sentence that says why not."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from amg.config import DecodeSettings
from amg.decode import decode
from amg.errors import StorageError
from amg.geometry import Size
from amg.sources.paths import from_text
from amg.sources.read import Reader
from amg.values import Failure, ImageRef


def load_picture(row: Mapping[str, Any], shown: Size, settings: DecodeSettings) -> NDArray[np.uint8] | str:
    """The upright image of a row as `pixels_HWC` of the size `shown`, or a sentence that says why there is none.

    `settings`: those with which the job decoded it.
    """
    data = _read(row)
    if isinstance(data, str):
        return data
    ref = ImageRef(row=row["image_id"], key=row["key"], uri=row["uri"])
    image = decode(ref, data, max_pixels=settings.max_pixels, value_range=settings.range)
    if isinstance(image, Failure):
        return f"The image can no longer be decoded: {image.reason}"
    if image.size != Size(row["height"], row["width"]):
        now = f"{image.size.width} × {image.size.height}"
        return f"The image changed since it was labeled: it is {now} now, it was {row['width']} × {row['height']}."
    picture = PIL.Image.fromarray(image.pixels_HWC)
    return np.asarray(picture.resize((shown.width, shown.height), PIL.Image.Resampling.LANCZOS, reducing_gap=3.0))


def local_path(uri: str) -> Path | None:
    """Where the uri of a row lies on this machine; None for addresses of other places."""
    parts = urlsplit(uri)
    if parts.scheme == "file":
        return Path(os.fsdecode(unquote_to_bytes(parts.path)))
    return None if "://" in uri else Path(os.fsdecode(from_text(uri)))


def jpeg(pixels_HWC: NDArray[np.uint8], *, quality: int) -> bytes:
    return _saved(pixels_HWC, format="JPEG", quality=quality, optimize=True, progressive=True)


def layer_picture(rgba_HWC: NDArray[np.uint8]) -> bytes:
    """The layer without loss; few flat colours make it a small file."""
    return _saved(rgba_HWC, format="WEBP", lossless=True, method=4)


def data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _saved(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, **options)
    return file.getvalue()


def _read(row: Mapping[str, Any]) -> bytes | str:
    embedded = row.get("image")
    if embedded and embedded.get("bytes"):
        return embedded["bytes"]
    path = local_path(row["uri"])
    if path is None:
        return _read_remote(ImageRef(row=row["image_id"], key=row["key"], uri=row["uri"]))
    try:
        return path.read_bytes()
    except OSError as error:
        return f"The image cannot be read from {path}: {error.strerror or error}"


def _read_remote(ref: ImageRef) -> bytes | str:
    try:
        data = _reader().read(ref)
    except StorageError as error:
        return f"The image cannot be read: {error}"
    return f"The image cannot be read from {ref.uri}: {data.reason}" if isinstance(data, Failure) else data


@cache
def _reader() -> Reader:
    """One for all pictures, so that connections are opened once."""
    return Reader()
