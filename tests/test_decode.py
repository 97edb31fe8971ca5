"""Every kind of image and of wreck, made here; expected pixels come from Pillow's own `open` and `convert`."""

from __future__ import annotations

import io
import random
import struct
import time
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

from amg.decode import decode
from amg.geometry import Size
from amg.values import Failure, Image, ImageRef, Status

# Pillow warns of broken EXIF and TIFF tags, which is the subject here
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

REF = ImageRef(0, "photo.jpg", "/photo.jpg")
FORMATS = {
    "JPEG": {"quality": 90},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "BMP": {},
    "GIF": {},
    "AVIF": {},
    "JPEG2000": {"irreversible": False},
    "PPM": {},
}


def picture(height: int = 60, width: int = 90, seed: int = 0) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **(FORMATS.get(kind, {}) | options))
    return file.getvalue()


def by_pillow(data: bytes) -> np.ndarray:
    with PIL.Image.open(io.BytesIO(data)) as image:
        return np.asarray(PIL.ImageOps.exif_transpose(image).convert("RGB"))


def pixels(data: bytes, key: str = "photo.jpg", **settings: object) -> np.ndarray:
    image = decode(ImageRef(0, key, key), data, **settings)  # type: ignore[arg-type]
    assert isinstance(image, Image), image
    assert image.pixels_HWC.flags.writeable
    assert image.pixels_HWC.flags.c_contiguous
    return image.pixels_HWC


def failure(data: bytes, key: str = "photo.jpg", **settings: object) -> Failure:
    result = decode(ImageRef(0, key, key), data, **settings)  # type: ignore[arg-type]
    assert isinstance(result, Failure), result
    return result


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_come_as_pillow_gives_them_whatever_their_suffix(kind):
    data = saved(picture(), kind)
    for key in ("photo.jpg", "photo.png", "photo", "photo.tga"):
        assert np.array_equal(pixels(data, key), by_pillow(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr"])
def test_modes_become_rgb_as_convert_does(mode):
    image = picture().convert(mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(PIL.Image.linear_gradient("L").resize(image.size))
    data = saved(image, "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    assert np.array_equal(pixels(data), by_pillow(data))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 10))])
def test_palettes_with_transparency_keep_their_colours(transparency, recwarn):
    data = saved(picture().quantize(32), "PNG", transparency=transparency)
    found = pixels(data)
    assert not [each for each in recwarn if "Transparency" in str(each.message)]
    assert np.array_equal(found, by_pillow(data))


def test_an_inverted_cmyk_jpeg_is_as_pillow_reads_it():
    data = saved(picture().convert("CMYK"), "JPEG")
    assert by_pillow(data).std() > 10
    assert np.array_equal(pixels(data), by_pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_divided_by_257(kind):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 257).astype(np.uint8)
    found = pixels(saved(PIL.Image.fromarray(values), kind, **({"compression": None} if kind == "TIFF" else {})))
    assert np.array_equal(found, np.repeat(expected[..., None], 3, axis=2))


def tiff(body: bytes, order: str = ">", **changed: int) -> bytes:
    """A TIFF file of one strip of 64 x 64 grey pixels; `changed` by tags as `t262=1`."""
    tags = {256: 64, 257: 64, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: 64, 279: len(body)}
    tags |= {int(name[1:]): value for name, value in changed.items()}
    ifd = struct.pack(order + "H", len(tags))
    for tag, value in sorted(tags.items()):
        short = tag in (258, 259, 262, 277)
        ifd += struct.pack(order + ("HHIHxx" if short else "HHII"), tag, 3 if short else 4, 1, value)
    magic = {">": b"MM\0*", "<": b"II*\0"}[order]
    return magic + struct.pack(order + "I", 8 + len(body)) + body + ifd + b"\0\0\0\0"


def test_big_endian_sixteen_bit_grey_too():
    values = np.arange(0, 65536, 16, dtype=">u2").reshape(64, 64)
    assert np.array_equal(pixels(tiff(values.tobytes()))[..., 0], np.rint(values / 257).astype(np.uint8))


def test_twelve_bit_grey_uses_the_whole_range():
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    pairs = values.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1]).astype(">u4").view(np.uint8).reshape(-1, 4)[:, 1:]
    found = pixels(tiff(packed.tobytes(), "<", t258=12))[..., 0]
    assert np.array_equal(found, np.rint(values / 4095 * 255).astype(np.uint8))


def test_pixels_that_pillow_does_not_know_are_unsupported():
    twelve_bit_jpeg = bytearray(saved(picture(), "JPEG"))
    twelve_bit_jpeg[twelve_bit_jpeg.index(b"\xff\xc0") + 4] = 12
    for data in (tiff(bytes(6144), ">", t258=12), bytes(twelve_bit_jpeg)):
        result = failure(data)
        assert result.status is Status.UNSUPPORTED
        assert "that Pillow does not read" in result.reason


@pytest.mark.parametrize(
    "data",
    [
        tiff(bytes(8192), t50706=0x01040000),
        tiff(bytes(8192), "<", t262=32803),
        tiff(bytes(8192), "<", t254=1, t271=8, t330=8),
        b"II*\0\x10\0\0\0CR\2\0\0\0\0\0" + struct.pack("<HHHII", 1, 256, 4, 1, 64) + bytes(4),
        b"FUJIFILMCCD-RAW 0201FF",
        b"IIRO\x08\0\0\0" + bytes(50),
        b"\0\0\0\x18ftypcrx \0\0\0\1crx isom",
    ],
    ids=["dng", "pef", "nef", "cr2", "raf", "orf", "cr3"],
)
def test_camera_raw_files_are_unsupported_and_never_their_thumbnail(data):
    result = failure(data, "photo.dng")
    assert result.status is Status.UNSUPPORTED
    assert "camera raw" in result.reason


def test_a_tiff_with_a_maker_or_a_reduced_page_is_no_camera_raw():
    for changed in ({"t271": 8}, {"t254": 1}, {"t271": 8, "t330": 8}):
        assert pixels(tiff(bytes(8192), **changed)).shape == (64, 64, 3)


def png(width: int, height: int, depth: int, colour: int, raw: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def test_sixteen_bit_colour_comes_as_pillow_gives_it():
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, 3), dtype=np.uint16).astype(">u2")
    data = png(7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in values))
    assert np.array_equal(pixels(data), (values >> 8).astype(np.uint8))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_wide_pixels_need_a_range(dtype):
    values = np.linspace(-100, 300, 60).reshape(6, 10).astype(dtype)
    data = saved(PIL.Image.fromarray(values), "TIFF", compression=None)
    refused = failure(data)
    assert refused.status is Status.UNSUPPORTED
    assert "set decode.range" in refused.reason
    expected = np.rint(np.clip((values.astype(float) + 50) / 250, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(pixels(data, value_range=(-50, 200))[..., 1], expected)


def test_not_a_number_becomes_black():
    data = saved(PIL.Image.fromarray(np.array([[np.nan, 1.0, np.inf]], np.float32)), "TIFF", compression=None)
    assert pixels(data, value_range=(0, 1))[0, :, 0].tolist() == [0, 255, 255]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_of_an_animation_the_first_frame(kind):
    frames = [picture(seed=n) for n in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    found = pixels(data)
    assert found.shape == (60, 90, 3)
    assert np.array_equal(found, by_pillow(data))
    assert np.abs(found.astype(int) - np.asarray(frames[0])).mean() < 12


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_upright_and_tell_how_they_lay(kind, orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(), kind, exif=exif)
    image = decode(REF, data)
    assert isinstance(image, Image)
    assert np.array_equal(image.pixels_HWC, by_pillow(data))
    assert image.orientation == orientation
    assert image.original == Size(60, 90)
    assert image.size == (Size(90, 60) if orientation > 4 else Size(60, 90))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_of_several_strips_are_turned_whole(orientation):
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    data = saved(picture(601, 499), "PNG", exif=exif)
    assert np.array_equal(pixels(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_images_of_several_strips_are_converted_whole(mode):
    data = saved(picture(500, 700).convert(mode), "TIFF")
    assert np.array_equal(pixels(data), by_pillow(data))


def test_sixteen_bit_grey_of_several_strips_is_converted_whole():
    values = np.arange(350_000, dtype=np.uint16).reshape(500, 700)
    expected = np.rint(values / 257).astype(np.uint8)
    assert np.array_equal(pixels(saved(PIL.Image.fromarray(values), "PNG"))[..., 1], expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_is_ignored(kind):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    whole = exif.tobytes()
    wrecks = [whole[:10], b"Exif\0\0garbage!", whole[:6] + b"XX" + whole[8:], whole.replace(b"\x01\x12", b"\x7f\x12")]
    exif[0x0112] = 77
    for wreck in (*wrecks, exif.tobytes()):
        data = saved(picture(), kind, exif=wreck)
        image = decode(REF, data)
        assert isinstance(image, Image), (wreck, image)
        assert (image.orientation, image.size) == (1, Size(60, 90))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 20_000), (20_000, 1), (2, 3)])
def test_degenerate_sizes(height, width):
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert np.array_equal(pixels(saved(PIL.Image.fromarray(values), "PNG")), values)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_a_failure_or_the_whole_picture(kind):
    data = saved(picture(200, 300), kind)
    whole, failed = by_pillow(data), 0
    for sixteenth in range(16):
        result = decode(REF, data[: len(data) * sixteenth // 16])
        if isinstance(result, Failure):
            failed += 1
            assert result.status is Status.DECODE_ERROR, result
            assert len(result.reason) > 15, result
        else:
            assert np.array_equal(result.pixels_HWC, whole), f"{sixteenth}/16 of a {kind} is another picture"
    assert failed >= 15


@pytest.mark.parametrize("kind", FORMATS)
def test_bytes_changed_at_random_never_raise(kind):
    data, rng = saved(picture(), kind), random.Random(kind)
    for _ in range(60):
        wreck = bytearray(data)
        for _ in range(rng.choice([1, 3, 30])):
            wreck[rng.randrange(len(wreck))] = rng.randrange(256)
        assert isinstance(decode(REF, bytes(wreck), max_pixels=1_000_000), Image | Failure)


@pytest.mark.parametrize(
    ("data", "status", "reason"),
    [
        (b"", Status.DECODE_ERROR, "the file is empty"),
        (bytes(5000), Status.DECODE_ERROR, "only zero bytes"),
        (b"hello, this is text", Status.DECODE_ERROR, "not an image: its first bytes are 68 65 6c 6c"),
        (b"\n <!DOCTYPE html><html>404", Status.DECODE_ERROR, "a web page was saved"),
        (b"version https://git-lfs.github.com/spec/v1\n", Status.DECODE_ERROR, "git lfs pull"),
        (b"%PDF-1.7 ...", Status.UNSUPPORTED, "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", Status.DECODE_ERROR, "not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", Status.UNSUPPORTED, "SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", Status.UNSUPPORTED, "pillow-heif"),
        (b"\xff\xd8\xff", Status.DECODE_ERROR, "cut off"),
        (b"\xff\xd8\xff\xe0 and then nothing", Status.DECODE_ERROR, ""),
        (np.random.default_rng(0).bytes(3000), Status.DECODE_ERROR, "not an image"),
    ],
)
def test_what_is_no_image_says_what_it_is(data, status, reason):
    result = failure(data)
    assert result.status is status
    assert reason in result.reason


def test_colours_that_pillow_cannot_turn_are_unsupported():
    result = failure(saved(PIL.Image.new("LAB", (4, 4)), "TIFF"))
    assert result.status is Status.UNSUPPORTED
    assert "L*a*b*" in result.reason


def test_only_files_that_say_so_are_read_as_tga():
    data = saved(picture(), "TGA")
    assert np.array_equal(pixels(data, "a/photo.TGA"), np.asarray(picture()))
    assert failure(data, "photo.jpg").status is Status.DECODE_ERROR


def test_a_bomb_is_refused_by_its_header():
    bomb = png(30_000, 30_000, 8, 0, b"")
    started = time.perf_counter()
    result = failure(bomb)
    assert time.perf_counter() - started < 1
    assert result.status is Status.TOO_LARGE
    assert result.reason == "30000 x 30000 = 900 megapixels, the limit is 512 (decode.max_pixels)"
    exact = saved(picture(), "PNG")
    assert pixels(exact, max_pixels=60 * 90).shape == (60, 90, 3)
    assert failure(exact, max_pixels=60 * 90 - 1).status is Status.TOO_LARGE


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "GIF", "BMP", "JPEG"])
def test_sizes_are_checked_before_pixels_in_every_format(kind):
    assert failure(saved(picture(), kind), max_pixels=100).status is Status.TOO_LARGE


def test_the_limit_is_ours_alone_and_pillow_is_left_as_it_was(monkeypatch, recwarn):
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 1000)
    assert pixels(saved(picture(), "PNG")).shape == (60, 90, 3)
    assert PIL.Image.MAX_IMAGE_PIXELS == 1000
    assert not PIL.ImageFile.LOAD_TRUNCATED_IMAGES
    assert not recwarn.list


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), Status.OUT_OF_MEMORY),
        (RecursionError("too deep"), Status.DECODE_ERROR),
        (KeyError("x"), Status.DECODE_ERROR),
        (PIL.Image.DecompressionBombError("Image size (1 pixels) exceeds"), Status.TOO_LARGE),
    ],
)
def test_whatever_a_decoder_raises_is_a_failure(monkeypatch, error, status):
    def load(_image):
        raise error

    data = saved(picture(), "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    assert failure(data).status is status
