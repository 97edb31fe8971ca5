"""A folder with every wreck that people have, as one job: one row each, the expected status each, no exception."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.features
import PIL.Image
import pyarrow.parquet as pq
import pytest
from pycocotools import mask as coco

from amg.config import load_config
from amg.run.local import run_local
from amg.run.progress import Silent, Summary
from amg.shards import reader
from amg.sources.paths import from_text, to_text
from amg.values import Failure, MaskSet
from tests.fakes import DiscSam, FakeSam, RedSam, label_with

# Pillow warns of what it finds odd in files, which is the subject here
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # pycocotools
]

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
if not PIL.features.check("avif"):
    del FORMATS["AVIF"]
SUFFIXES = {"JPEG": "jpg", "WEBP": "webp", "JPEG2000": "jp2"}
OK, DECODE_ERROR, TOO_LARGE, UNSUPPORTED, MISSING = "ok", "decode_error", "too_large", "unsupported", "missing"
Made = Iterator[tuple[bytes, bytes, str]]
"""Name, content and expected status."""


def picture(height: int = 40, width: int = 60, seed: int = 0) -> PIL.Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return PIL.Image.fromarray(small).resize((width, height), PIL.Image.Resampling.BICUBIC)


def saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **(FORMATS.get(kind, {}) | options))
    return file.getvalue()


def name_of(stem: str, kind: str) -> bytes:
    return f"{stem}.{SUFFIXES.get(kind, kind.lower())}".encode()


def truncated() -> Made:
    """Every sixteenth of every format. A file that lacks nothing but its last mark may still be whole for Pillow."""
    for kind in FORMATS:
        data = saved(picture(), kind)
        for sixteenth in range(16):
            yield name_of(f"cut-{sixteenth:02}", kind), data[: len(data) * sixteenth // 16], DECODE_ERROR
        yield name_of("whole", kind), data, OK
        yield b"half-zero-" + name_of("", kind), bytes(len(data)), DECODE_ERROR


def mislabelled() -> Made:
    for kind, suffix in (("PNG", "jpg"), ("JPEG", "png"), ("WEBP", "gif"), ("TIFF", "webp"), ("GIF", "tga")):
        yield f"really-{kind.lower()}.{suffix}".encode(), saved(picture(), kind), OK
    yield b"no-suffix", saved(picture(), "PNG"), OK
    yield b"download.jpg.part", saved(picture(), "JPEG"), OK
    yield b"empty.jpg", b"", DECODE_ERROR
    yield b"text.jpg", b"this is no image", DECODE_ERROR
    yield b"page.jpg", b"<!DOCTYPE html><html>404</html>", DECODE_ERROR
    yield b"pointer.png", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", DECODE_ERROR
    yield b"drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNSUPPORTED
    yield b"document.tif", b"%PDF-1.7", UNSUPPORTED
    yield b"phone.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", UNSUPPORTED
    yield b"camera.raf", b"FUJIFILMCCD-RAW 0201FF", UNSUPPORTED
    yield b"noise.webp", np.random.default_rng(1).bytes(3000), DECODE_ERROR


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, raw: bytes, *more: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"".join([b"\x89PNG\r\n\x1a\n", header, *more, chunk(b"IDAT", zlib.compress(raw)), chunk(b"IEND", b"")])


def bombs() -> Made:
    """Headers that promise gigabytes."""
    yield b"bomb.png", png(60_000, 60_000, 8, 2, b""), TOO_LARGE
    whole = {kind: bytearray(saved(picture(), kind)) for kind in ("BMP", "GIF", "JPEG", "WEBP")}
    struct.pack_into("<ii", whole["BMP"], 18, 50_000, 50_000)
    struct.pack_into("<HH", whole["GIF"], 6, 65_535, 65_535)
    struct.pack_into(">HH", whole["JPEG"], whole["JPEG"].index(b"\xff\xc0") + 5, 65_500, 65_500)
    for kind in ("BMP", "GIF", "JPEG"):
        yield name_of("bomb", kind), bytes(whole[kind]), TOO_LARGE
    tiff = bytearray(saved(picture(), "TIFF", compression=None))
    (start,) = struct.unpack_from("<I", tiff, 4)
    for n in range(struct.unpack_from("<H", tiff, start)[0]):
        if struct.unpack_from("<H", tiff, start + 2 + 12 * n)[0] in (256, 257):
            struct.pack_into("<HII", tiff, start + 4 + 12 * n, 4, 1, 100_000)
    yield b"bomb.tif", bytes(tiff), TOO_LARGE
    yield b"bomb.ppm", b"P6 40000 40000 255\n", TOO_LARGE
    bloated = chunk(b"zTXt", b"text\0\0" + zlib.compress(bytes(50_000_000)))
    yield b"bomb-in-text.png", png(2, 2, 8, 2, bytes(14), bloated), DECODE_ERROR


def odd_pixels() -> Made:
    grey = np.arange(0, 65536, 32, dtype=np.uint16).reshape(32, 64)
    for kind in ("PNG", "TIFF", "PPM"):
        options = {"compression": None} if kind == "TIFF" else {}
        yield name_of("grey-16", kind), saved(PIL.Image.fromarray(grey), kind, **options), OK
    colour = np.random.default_rng(2).integers(0, 65536, (5, 7, 3), dtype=np.uint16).astype(">u2")
    yield b"colour-16.png", png(7, 5, 16, 2, b"".join(b"\0" + row.tobytes() for row in colour)), OK
    for dtype in (np.int32, np.float32):
        wide = PIL.Image.fromarray(grey.astype(dtype))
        yield f"{dtype.__name__}.tif".encode(), saved(wide, "TIFF", compression=None), UNSUPPORTED
    for mode, kind in (("1", "PNG"), ("L", "JPEG"), ("LA", "PNG"), ("RGBA", "PNG"), ("RGBA", "WEBP"), ("CMYK", "JPEG")):
        yield name_of(f"mode-{mode}", kind), saved(picture().convert(mode), kind), OK
    yield b"cmyk.tif", saved(picture().convert("CMYK"), "TIFF"), OK
    yield b"lab.tif", saved(PIL.Image.new("LAB", (4, 4)), "TIFF"), UNSUPPORTED
    yield b"palette.png", saved(picture().quantize(32), "PNG", transparency=3), OK
    yield b"palette-alpha.png", saved(picture().quantize(32), "PNG", transparency=bytes(range(0, 250, 10))), OK
    yield b"palette.gif", saved(picture().quantize(32), "GIF", transparency=3), OK
    for kind in FORMATS.keys() & {"GIF", "WEBP", "PNG", "TIFF", "AVIF"}:
        frames = [picture(seed=n) for n in range(3)]
        yield name_of("moving", kind), saved(frames[0], kind, save_all=True, append_images=frames[1:]), OK


def odd_sizes() -> Made:
    for height, width in ((1, 1), (1, 20_000), (20_000, 1), (2, 3)):
        pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
        yield f"{width}x{height}.png".encode(), saved(PIL.Image.fromarray(pixels), "PNG"), OK


def odd_names() -> Made:
    names = ["with space .jpg", "new\nline.jpg", "日本 ü\u00a0.jpg", "100%.jpg", "%41.jpg", '"quoted".jpg', "-dash.jpg"]
    for name in (*(each.encode() for each in names), b"caf\xe9.jpg", b"\xff\xfe\xed\xa0\x80.jpg", b"a" * 251 + b".jpg"):
        yield name, saved(picture(), "JPEG"), OK


def make(folder: Path) -> dict[bytes, str]:
    """All of them under `folder`; the expected status of every path that gets a row."""
    root, expected = os.fsencode(folder), {}
    for kind in (truncated, mislabelled, bombs, odd_pixels, odd_sizes, odd_names):
        os.makedirs(os.path.join(root, kind.__name__.encode()))
        for name, content, status in kind():
            path = os.path.join(kind.__name__.encode(), name)
            assert path not in expected, path
            Path(os.fsdecode(os.path.join(root, path))).write_bytes(content)
            expected[path] = status
    (folder / "x.jpg").mkdir()
    (folder / "x.jpg" / "inside.png").write_bytes(saved(picture(), "PNG"))
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "round.jpg").symlink_to("round.jpg")
    os.mkfifo(folder / "y.png")
    (folder / "notes.txt").write_text("no image")
    return expected | {b"x.jpg/inside.png": OK, b"dangling.jpg": MISSING, b"round.jpg": MISSING}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs a job with a stand-in for the network; gives its summary and its rows by path."""

    def run(given: Path, sam: FakeSam, **settings: object) -> tuple[Summary, dict[bytes, dict]]:
        label_with(sam, monkeypatch, tmp_path)
        named = {"generate.points_per_side": 2, "run.threads": 1, "run.device": "cpu"}
        config = load_config(overrides=named | {name.replace("__", "."): value for name, value in settings.items()})
        summary = run_local([str(given)], str(tmp_path / "out"), config, observer=Reader())
        return summary, {from_text(row["key"]): row for row in reader.read_shards(tmp_path / "out")}

    return run


class Reader(Silent):
    """Looks whether every failure has a reason that is more than a word."""

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        assert isinstance(result, MaskSet) or len(result.reason) > 10, result


def test_one_row_for_every_hostile_file_and_the_expected_status(tmp_path, run, capfd):
    expected = make(tmp_path / "photos")
    summary, rows = run(tmp_path / "photos", DiscSam(radius=200))
    assert {path: row["status"] for path, row in rows.items()} == expected
    assert summary.planned == len(expected) == sum(summary.rows.values())
    for path, row in rows.items():
        assert (row["status"] == "ok") == (row["annotations"] is not None) == (row["error"] is None), path
        assert from_text(row["uri"]) == os.path.join(os.fsencode(tmp_path), b"photos", path)
        assert os.path.lexists(from_text(row["uri"]))
        assert to_text(path) == row["key"]
    skipped = pq.read_table(tmp_path / "out" / "_plan" / "skipped-00000.parquet").to_pylist()
    assert {each["path"]: each["reason"] for each in skipped} == {
        "notes.txt": "not an image: a .txt file",
        "y.png": "not a regular file",
    }
    sizes = {path: (row["height"], row["width"]) for path, row in rows.items()}
    assert sizes[b"odd_sizes/1x20000.png"] == (20_000, 1)
    assert sizes[b"odd_sizes/20000x1.png"] == (1, 20_000)
    assert sizes[b"odd_pixels/moving.gif"] == (40, 60)
    assert capfd.readouterr() == ("", ""), "a decoder spoke"


def test_listed_one_by_one_they_all_get_a_row_and_a_pipe_stops_nobody(tmp_path, run):
    expected = make(tmp_path / "photos")
    by_line = {path: status for path, status in expected.items() if b"\n" not in path}
    by_line |= {b"notes.txt": DECODE_ERROR, b"y.png": MISSING, b"x.jpg": MISSING, b"never-was.jpg": MISSING}
    (tmp_path / "photos" / "list.txt").write_bytes(b"\n".join(by_line))
    _, rows = run(tmp_path / "photos" / "list.txt", DiscSam(radius=200))
    assert {path: row["status"] for path, row in rows.items()} == by_line


TURNS = {
    1: lambda p: p,
    2: np.fliplr,
    3: lambda p: np.rot90(p, 2),
    4: np.flipud,
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""How the stored pixels are turned to stand upright."""


def blobs() -> np.ndarray:
    """96 x 160 pixels with reddish blobs, no two alike."""
    y, x = np.mgrid[:96, :160]
    red = sum(
        np.exp(-(((x - cx) / sx) ** 2 + ((y - cy) / sy) ** 2))
        for cx, cy, sx, sy in ((40, 30, 30, 12), (120, 70, 14, 20))
    )
    return np.stack([np.clip(red, 0, 1) * 255, x, y], -1).astype(np.uint8)


def stored(pixels: np.ndarray, orientation: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    return saved(PIL.Image.fromarray(np.ascontiguousarray(pixels)), "PNG", exif=exif)


def masks_of(row: dict) -> list[np.ndarray]:
    return [coco.decode(annotation["segmentation"]).astype(bool) for annotation in row["annotations"]]


def test_one_picture_stored_in_eight_orientations_has_the_same_masks(tmp_path, run):
    (tmp_path / "photos").mkdir()
    inverse = {6: TURNS[8], 8: TURNS[6]}
    for orientation, turn in TURNS.items():
        lying = inverse.get(orientation, turn)(blobs())
        assert np.array_equal(turn(lying), blobs())
        (tmp_path / "photos" / f"{orientation}.png").write_bytes(stored(lying, orientation))
    _, rows = run(tmp_path / "photos", RedSam())
    first = rows[b"1.png"]
    assert first["num_masks"] >= 2
    for orientation in range(2, 9):
        row = rows[b"%d.png" % orientation]
        assert (row["exif_orientation"], row["height"], row["width"]) == (orientation, 96, 160)
        assert (row["orig_height"], row["orig_width"]) == ((160, 96) if orientation > 4 else (96, 160))
        for mine, other in zip(row["annotations"], first["annotations"], strict=True):
            assert mine | {"id": 0} == other | {"id": 0}


def test_the_same_pixels_in_eight_orientations_have_masks_that_turn_along(tmp_path, run):
    (tmp_path / "photos").mkdir()
    for orientation in TURNS:
        (tmp_path / "photos" / f"{orientation}.png").write_bytes(stored(blobs(), orientation))
    _, rows = run(tmp_path / "photos", RedSam())
    upright = masks_of(rows[b"1.png"])
    for orientation, turn in TURNS.items():
        found = masks_of(rows[b"%d.png" % orientation])
        assert len(found) == len(upright) >= 2
        for mask, other in zip(found, upright, strict=True):
            turned = turn(other)
            assert mask.shape == turned.shape
            assert (mask & turned).sum() / (mask | turned).sum() > 0.98, orientation
