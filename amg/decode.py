"""Bytes of an image file to upright RGB pixels, by Pillow.

Whatever a file holds, `decode` answers with an `Image` or a `Failure`; it raises nothing and changes no setting of
Pillow's. Its own size check stands for Pillow's (`MAX_IMAGE_PIXELS` is one number for all threads and warns), so the
plugins are called as `PIL.Image.open` calls them, but without that check.
"""

from __future__ import annotations

import io
import os
import struct
import time
from collections.abc import Callable

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.Image import Transpose
from PIL.TiffImagePlugin import TiffImageFile

from amg.geometry import Size
from amg.values import Failure, Image, ImageRef, Status

MAX_PIXELS = 512_000_000

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "HEIF", "JPEG2000", "PPM", "PSD", "QOI", "ICO")
_BY_SUFFIX = {".tga": "TGA", ".dib": "DIB"}  # formats without first bytes of their own

_DECODING_BYTES = 7  # a pixel while it is decoded: Pillow holds 4 bytes of it, the array 3
_STRIP_PIXELS = 1 << 17  # what is converted at a time: its bytes fit a core's cache

_ORIENTATION_TAG = 0x0112
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
_BACKWARDS = (3, 4, 6, 7)  # the file's first row comes to lie last, be it a row or a column then

# Bytes at the start of camera raw files that are not TIFF, and the tags by which those that are give themselves away.
_RAW = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM")
_DNG_VERSION, _SUB_IFDS, _MAKE, _PHOTOMETRIC, _SUBFILE, _BITS = 50706, 330, 271, 262, 254, 258
_SENSOR_PHOTOMETRIC = (32803, 34892)  # a colour filter array, linear raw

_NOT_BY_PILLOW = ("unknown pixel mode", "-bit layers")  # TIFF with odd bits or photometry, JPEG of 12 bits

_STRANGERS = (
    (b"<!doctype html", Status.DECODE_ERROR, "a web page was saved in place of the image"),
    (b"<html", Status.DECODE_ERROR, "a web page was saved in place of the image"),
    (b"version https://git-lfs", Status.DECODE_ERROR, "a Git LFS pointer, not the image itself: run git lfs pull"),
    (b"<svg", Status.UNSUPPORTED, "an SVG drawing, which has no pixels"),
    (b"<?xml", Status.UNSUPPORTED, "an XML file (perhaps an SVG drawing), which has no pixels"),
    (b"%pdf", Status.UNSUPPORTED, "a PDF document"),
    (b"pk\x03\x04", Status.UNSUPPORTED, "a ZIP archive"),
    (b"\x1f\x8b", Status.UNSUPPORTED, "a gzip archive"),
    (b"\x76\x2f\x31\x01", Status.UNSUPPORTED, "an OpenEXR image (32-bit float)"),
    (b"#?radiance", Status.UNSUPPORTED, "a Radiance HDR image (32-bit float)"),
    (b"\0\0\0\x0cjxl ", Status.UNSUPPORTED, "a JPEG XL image, which Pillow does not read"),
    (b"\xff\x0a", Status.UNSUPPORTED, "a JPEG XL image, which Pillow does not read"),
)


class _Refused(Exception):
    """A status and a reason on their way to a `Failure`."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


def decode(
    ref: ImageRef,
    data: bytes,
    *,
    max_pixels: int = MAX_PIXELS,
    value_range: tuple[float, float] | None = None,
    admit: Callable[[int], object] = lambda _: None,
) -> Image | Failure:
    """The upright 8-bit RGB image in `data`; of an animation or a stack the first one.

    Alpha is dropped and palettes are resolved as `convert("RGB")` does, CMYK too. 16-bit grey is divided by 257 and
    rounded, 12-bit grey of TIFF files spread over the same range; 16-bit colour comes as Pillow gives it, the high
    byte. 32-bit integer and float pixels need `value_range`: its two ends become 0 and 255. The size in the header is
    held against `max_pixels` before pixels are made; then `admit` hears how many bytes they will take, and may wait.

    Memory: 4 bytes a pixel in Pillow (some files need as many again while they are read) and the array's 3; turning and
    converting add nothing to that.
    """
    assert value_range is None or value_range[0] < value_range[1], f"decode.range is {value_range}"
    started = time.perf_counter()
    try:
        pixels, orientation = _decode(ref, data, max_pixels, value_range, admit)
    except _Refused as refused:
        return Failure(ref, refused.status, refused.reason)
    except MemoryError:
        return Failure(ref, Status.OUT_OF_MEMORY, "there was not enough memory to decode the image")
    except PIL.Image.DecompressionBombError as error:
        return Failure(ref, Status.TOO_LARGE, f"a part of the image is too large to be decoded: {error}")
    except Exception as error:  # Pillow's plugins raise about anything on hostile bytes
        return Failure(ref, Status.DECODE_ERROR, _sentence(error))
    height, width = pixels.shape[:2]
    original = Size(width, height) if orientation > 4 else Size(height, width)
    ended = time.perf_counter()
    return Image(ref, pixels, original, orientation, ended - started, ended)


def _decode(
    ref: ImageRef,
    data: bytes,
    max_pixels: int,
    value_range: tuple[float, float] | None,
    admit: Callable[[int], object],
) -> tuple[NDArray[np.uint8], int]:
    """Upright pixels, and the orientation that the file asks for."""
    image = _open(ref, data)
    width, height = image.size
    if width * height > max_pixels:
        raise _Refused(
            Status.TOO_LARGE,
            f"{width} x {height} = {width * height / 1e6:,.0f} megapixels, "
            f"the limit is {max_pixels / 1e6:,.0f} (decode.max_pixels)",
        )
    admit(_DECODING_BYTES * width * height)
    orientation = _orientation(image)
    image.load()
    # Pillow turns TIFF itself while it loads, and takes the tag away
    left = _orientation(image) if image.format == "TIFF" else orientation
    return _to_array(image, left, _to_rgb(image, value_range)), orientation


def _open(ref: ImageRef, data: bytes) -> PIL.Image.Image:
    """The image with its header read. As `PIL.Image.open`, but for the size check and for formats that run programs."""
    if not data:
        raise _Refused(Status.DECODE_ERROR, "the file is empty")
    if _is_camera_raw(data):
        raise _Refused(Status.UNSUPPORTED, "a camera raw file: develop it into a JPEG or TIFF file first")
    PIL.Image.init()
    by_suffix = _BY_SUFFIX.get(os.path.splitext(ref.member or ref.key)[1].lower())
    problem: Exception | None = None
    for name in (*FORMATS, by_suffix):
        factory, accept = PIL.Image.OPEN.get(name or "", (None, None))
        verdict = accept(data[:16]) if accept is not None else True
        if factory is None or not verdict or isinstance(verdict, str):  # text tells of a format left out of the build
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            problem = error
    if problem is not None and any(words in str(problem) for words in _NOT_BY_PILLOW):
        raise _Refused(Status.UNSUPPORTED, f"pixels of a kind that Pillow does not read: {problem}")
    if problem is not None:
        raise _Refused(Status.DECODE_ERROR, f"the header is damaged or cut off: {problem or type(problem).__name__}")
    raise _stranger(data)


def _is_camera_raw(data: bytes) -> bool:
    """Whether the file holds a sensor's values. What Pillow would show of one is a thumbnail, of another size."""
    if data[:16].startswith(_RAW) or data[4:12] == b"ftypcrx ":
        return True
    tags = _first_tags(data)
    is_reduced = tags.get(_SUBFILE, 0) & 1 == 1
    return (
        (data[8:10] == b"CR" and bool(tags))
        or _DNG_VERSION in tags
        or tags.get(_PHOTOMETRIC) in _SENSOR_PHOTOMETRIC
        or (is_reduced and _MAKE in tags and _SUB_IFDS in tags)
    )


def _first_tags(data: bytes) -> dict[int, int]:
    """The tags of a TIFF file's first directory with their first short or long value (of others the place it is at)."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None or len(data) < 8:
        return {}
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start) if start + 2 <= len(data) else (0,)
    tags = {}
    for place in range(start + 2, min(start + 2 + 12 * count, len(data) - 11), 12):
        tag, kind = struct.unpack_from(order + "HH", data, place)
        (tags[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place + 8)
    return tags


def _stranger(data: bytes) -> _Refused:
    """What a file that no decoder takes seems to be."""
    start = data[:512].lstrip().lower()
    for prefix, status, reason in _STRANGERS:
        if start.startswith(prefix):
            return _Refused(status, f"not an image that can be read: {reason}")
    if data[4:8] == b"ftyp" and data[8:12] in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"):
        return _Refused(Status.UNSUPPORTED, "a HEIF image: convert it, or install pillow-heif and register its opener")
    if data[4:8] == b"ftyp" and data[8:12] in (b"avif", b"avis"):
        return _Refused(Status.UNSUPPORTED, "an AVIF image, which this build of Pillow does not read")
    if not any(data[:4096]):
        return _Refused(Status.DECODE_ERROR, "the file holds only zero bytes: a copy or download that broke off")
    return _Refused(Status.DECODE_ERROR, f"not an image: its first bytes are {data[:8].hex(' ')}")


def _orientation(image: PIL.Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where the EXIF data say nothing, nonsense, or cannot be read."""
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except (MemoryError, PIL.Image.DecompressionBombError):
        raise
    except Exception:
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _to_rgb(
    image: PIL.Image.Image, value_range: tuple[float, float] | None
) -> Callable[[PIL.Image.Image], PIL.Image.Image]:
    """What makes RGB of a part of the image; every pixel is converted on its own."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # PPM: 16 bits in 32
        full = (1 << _grey_bits(image)) - 1
        return lambda part: _from_grey((np.minimum(_values(part), full) * 255 + full // 2) // full)
    if image.mode in ("I", "F"):
        kind = "32-bit integer" if image.mode == "I" else "float"
        if value_range is None:
            raise _Refused(Status.UNSUPPORTED, f"{kind} pixels, whose range is not known: set decode.range")
        return lambda part: _from_grey(_scale(np.asarray(part), value_range))
    if image.mode == "LAB":
        raise _Refused(Status.UNSUPPORTED, "CIE L*a*b* pixels, which Pillow does not turn into RGB")
    image.info.pop("transparency", None)  # no part of RGB; Pillow would warn of it
    return lambda part: part if part.mode == "RGB" else part.convert("RGB")


def _values(part: PIL.Image.Image) -> NDArray[np.uint32]:
    return np.asarray(part).astype(np.uint32)


def _grey_bits(image: PIL.Image.Image) -> int:
    """How many of a grey value's 16 bits the file uses: 12 in TIFF files that say so."""
    bits = image.tag_v2.get(_BITS, (16,)) if isinstance(image, TiffImageFile) else (16,)
    return 12 if bits == (12,) else 16


def _from_grey(values_HW: NDArray[np.generic]) -> PIL.Image.Image:
    return PIL.Image.fromarray(values_HW.astype(np.uint8)).convert("RGB")


def _scale(values_HW: NDArray[np.generic], value_range: tuple[float, float]) -> NDArray[np.uint8]:
    low, high = value_range
    unit_HW = (values_HW.astype(np.float64) - low) / (high - low)
    return np.rint(np.nan_to_num(unit_HW, nan=0.0).clip(0, 1) * 255).astype(np.uint8)


def _to_array(
    image: PIL.Image.Image, orientation: int, to_rgb: Callable[[PIL.Image.Image], PIL.Image.Image]
) -> NDArray[np.uint8]:
    """Writable upright HxWx3 pixels, converted and turned in strips, so that a large image is not held three times."""
    width, height = image.size
    sideways = orientation > 4
    pixels_HWC = np.empty((width, height, 3) if sideways else (height, width, 3), np.uint8)
    rows = max(64 if sideways else 1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        strip = to_rgb(image.crop((0, top, width, bottom)))
        if orientation in _TURNS:
            strip = strip.transpose(_TURNS[orientation])
        place = slice(height - bottom, height - top) if orientation in _BACKWARDS else slice(top, bottom)
        pixels_HWC[(slice(None), place) if sideways else place] = np.asarray(strip)
    return pixels_HWC


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    if "truncated" in text.lower():
        return f"the image is cut off before its end: {text}"
    return f"the image data are damaged: {text} ({type(error).__name__})"
