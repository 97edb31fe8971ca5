import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray

from amg import rle
from amg.cli.main import main
from amg.errors import AmgError, ConfigError, FormatError, StorageError
from amg.geometry import Box, Crop, Size
from amg.review.colours import choose_colours, palette
from amg.review.overlay import DrawnMask, blend, edges, paint, sample, scale_to_fit
from amg.review.view import Review, write_review
from amg.run.plan import shard_path
from amg.shards import writer
from amg.values import Failure, Funnel, ImageRef, MaskSet, Status
from tests.outputs import rewrite


def mask_set(ref: ImageRef, masks_KHW: NDArray[np.bool_], size: Size) -> MaskSet:
    """A result with these masks; scores and points are made up."""
    runs = [rle.from_mask(mask) for mask in masks_KHW]
    k = len(runs)
    return MaskSet(
        ref=ref,
        size=size,
        original=size,
        orientation=1,
        crops=(Crop(Box(0, 0, size.width, size.height), 0, 0),),
        runs_R=np.concatenate([np.zeros(0, np.uint32), *runs]),
        offsets_K1=np.cumsum([0, *map(len, runs)], dtype=np.int64),
        box_K4=np.array([rle.box(r, size.height) for r in runs], np.int32).reshape(-1, 4),
        area_K=np.array([rle.area(r) for r in runs], np.int64),
        predicted_iou_K=np.full(k, 0.9, np.float32),
        stability_K=np.full(k, 0.97, np.float32),
        point_K2=np.zeros((k, 2)),
        crop_K=np.zeros(k, np.int32),
        point_index_K=np.zeros(k, np.int32),
        mask_index_K=np.zeros(k, np.int8),
        changed_K=np.zeros(k, np.bool_),
        funnel=Funnel(candidates=3072, dropped_predicted_iou=3072 - k, kept=k),
        seconds={"encode": 0.5},
    )


def discs(size: Size) -> NDArray[np.bool_]:
    """Three masks: a large disc, a small one inside it, one at the lower right corner."""
    y, x = np.ogrid[: size.height, : size.width]
    side = min(size.height, size.width)
    places = ((0.4, 0.4, 0.35), (0.4, 0.4, 0.1), (1.0, 1.0, 0.2))
    return np.stack([(y - size.height * v) ** 2 + (x - size.width * u) ** 2 <= (side * r) ** 2 for u, v, r in places])


def pixels_of(path: Path) -> NDArray[np.uint8]:
    with PIL.Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """A job's folder: a street scene, a photo that was deleted since, an image without masks, and two failures."""
    photos, folder = tmp_path / "photos", tmp_path / "labels"
    size = Size(60, 90)
    refs = [
        ImageRef(row, key, str(photos / key))
        for row, key in enumerate(("a/<street> 1.png", "deleted.png", "100%25.png", "broken.jpg", "huge.tif"))
    ]
    (photos / "a").mkdir(parents=True)
    for name in ("a/<street> 1.png", "100%.png"):
        PIL.Image.new("RGB", (size.width, size.height), (250, 250, 250)).save(photos / name)
    results = [
        mask_set(refs[0], discs(size), size),
        mask_set(refs[1], discs(size), size),
        mask_set(refs[2], np.zeros((0, 60, 90), np.bool_), size),
        Failure(refs[3], Status.DECODE_ERROR, "it <ends> after 12 bytes"),
        Failure(refs[4], Status.TOO_LARGE, "900 megapixels"),
    ]
    shard = folder / shard_path(0)
    shard.parent.mkdir(parents=True)
    shard.write_bytes(writer.to_bytes(writer.to_table(results), {}))
    return folder


def test_the_page_stands_alone(output: Path) -> None:
    page = write_review(output).page.read_text()
    assert page.count("data:image/webp;base64,") == 3
    assert page.count("data:image/jpeg;base64,") == 2
    for attribute, address in re.findall(r"""\b(src|href|srcset|action|poster)\s*=\s*["']([^"']*)""", page):
        assert address.startswith("data:"), f"{attribute}={address[:60]}"
    assert not re.search(r"https?://|@import|url\(|<link|<iframe", page)
    assert "{{" not in page


def test_the_page_tells_names_sizes_masks_and_the_funnel(output: Path) -> None:
    page = write_review(output).page.read_text()
    assert "a/&lt;street&gt; 1.png" in page
    assert "<street>" not in page
    assert "90 × 60" in page
    assert "3 masks" in page
    assert "0 masks" in page
    assert "3,072 candidates, 3 kept" in page
    assert "predicted IoU" in page


def test_failures_are_listed_with_their_reasons(output: Path) -> None:
    page = write_review(output, limit=0).page.read_text()
    assert "broken.jpg" in page
    assert "decode_error" in page
    assert "it &lt;ends&gt; after 12 bytes" in page
    assert "huge.tif" in page
    assert "too_large" in page
    assert "900 megapixels" in page
    assert "No labeled image to show" in page


def test_an_image_that_is_gone_is_shown_as_such(output: Path) -> None:
    review = write_review(output, keys=["deleted.png"])
    page = review.page.read_text()
    assert "The image cannot be read from" in page
    assert page.count("data:image/webp") == 1
    assert review.pictures == ()


def test_an_image_that_changed_is_shown_as_such(output: Path) -> None:
    PIL.Image.new("RGB", (91, 60)).save(output.parent / "photos" / "a" / "<street> 1.png")
    page = write_review(output, limit=1).page.read_text()
    assert "The image changed since it was labeled: it is 91 × 60 now, it was 90 × 60." in page


def test_pictures_are_decoded_as_the_job_decoded_them(output: Path) -> None:
    """A depth map in millimetres: 500 is in the middle of the range that the job was given."""
    photo = output.parent / "photos" / "a" / "<street> 1.png"
    PIL.Image.fromarray(np.full((60, 90), 500, np.int32)).save(photo, format="TIFF")
    with pytest.raises(IndexError):  # no picture at all
        _ = write_review(output).pictures[1]
    shard = output / shard_path(0)
    rewrite(shard, footer=lambda f: f.update({"sam_amg.config": json.dumps({"decode.range": [0, 1000], "x": 1})}))
    pictures = write_review(output).pictures
    assert len(pictures) == 2
    assert pixels_of(pictures[0])[5, 85].tolist() == pytest.approx([128] * 3, abs=3)
    rewrite(shard, footer=lambda f: f.update({"sam_amg.config": "[]"}))
    with pytest.raises(FormatError, match=r"part-000000.parquet: the footer's sam_amg.config tells no settings"):
        write_review(output)


def test_overlays_are_pictures_with_the_masks_on_them(output: Path) -> None:
    review = write_review(output)
    assert [path.name for path in review.pictures] == ["000000-_street_1.jpg", "000002-100_25.jpg"]
    pixels = pixels_of(review.pictures[0]).astype(int)
    plain = np.abs(pixels - (250, 250, 250)).max(2) < 40
    assert pixels.shape == (60, 90, 3)
    assert plain[5, 80]
    assert not plain[24, 36]
    assert not plain[58, 88]


def test_pictures_are_made_smaller_and_never_larger(output: Path) -> None:
    assert pixels_of(write_review(output, max_side=45).pictures[0]).shape == (30, 45, 3)
    assert pixels_of(write_review(output, max_side=2000).pictures[0]).shape == (60, 90, 3)


def test_keys_choose_images_and_wrong_ones_are_named_with_the_nearest(output: Path) -> None:
    page = write_review(output, keys=["100%25.png"], out=output / "one").page.read_text()
    assert page.count('<article class="card"') == 1
    with pytest.raises(ConfigError, match=r"'delete\.png'; did you mean 'deleted\.png'"):
        write_review(output, keys=["delete.png"])


def test_pages_that_cannot_be_written_say_where(output: Path) -> None:
    blocked = output / "file"
    blocked.write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*give another folder with --out"):
        write_review(output, out=blocked)


def test_the_command_says_what_it_wrote(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["sam-amg", "show", str(output), "--limit", "1", "--out", str(output / "look")])
    assert main() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"page      {output}/look/index.html",
        f"pictures  1 in {output}/look/overlays",
    ]


def test_a_folder_that_is_no_output_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(AmgError, match=re.escape(str(tmp_path))):
        write_review(tmp_path)


def test_show_needs_no_torch(output: Path) -> None:
    code = (
        f"import sys; sys.argv = ['sam-amg', 'show', {str(output)!r}]\n"
        "from amg.cli.main import main\n"
        "status = main()\n"
        "import json; print(json.dumps([status, 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, False]


def test_sampling_at_full_size_is_decoding() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        size = Size(int(random.integers(1, 12)), int(random.integers(1, 12)))
        mask = random.random((size.height, size.width)) < random.choice([0.0, 0.1, 0.5, 1.0])
        assert np.array_equal(sample(rle.from_mask(mask), size, size), mask)


def test_sampling_takes_the_pixel_under_the_centre() -> None:
    random = np.random.default_rng(1)
    for _ in range(200):
        size = Size(int(random.integers(1, 40)), int(random.integers(1, 40)))
        shown = scale_to_fit(size, int(random.integers(1, 40)))
        mask = random.random((size.height, size.width)) < 0.3
        rows = [int((i + 0.5) * size.height / shown.height) for i in range(shown.height)]
        columns = [int((j + 0.5) * size.width / shown.width) for j in range(shown.width)]
        assert np.array_equal(sample(rle.from_mask(mask), size, shown), mask[np.ix_(rows, columns)])


def test_small_masks_lie_over_large_ones_and_the_rest_is_clear() -> None:
    size = Size(60, 90)
    drawn = [DrawnMask(rle.from_mask(mask), int(mask.sum())) for mask in discs(size)]
    rgba = paint(drawn[::-1], size, size)
    inside, around = tuple(rgba[24, 36, :3]), tuple(rgba[24, 50, :3])
    assert inside != around
    assert rgba[24, 36, 3] == rgba[24, 50, 3] > 0
    assert tuple(rgba[2, 80]) == (0, 0, 0, 0)


def test_no_masks_paint_nothing() -> None:
    assert not paint([], Size(3, 4), Size(3, 4)).any()


def test_outlines_are_one_pixel_wide() -> None:
    labels = np.zeros((5, 8), np.int32)
    labels[1:4, 1:4], labels[1:4, 4:7] = 1, 2
    assert [str(row.astype(int)) for row in edges(labels)] == [
        "[0 0 0 0 0 0 0 0]",
        "[0 1 1 1 1 1 1 0]",
        "[0 1 0 1 0 0 1 0]",
        "[0 1 1 1 1 1 1 0]",
        "[0 0 0 0 0 0 0 0]",
    ]


def test_masks_that_touch_have_colours_far_apart() -> None:
    random = np.random.default_rng(2)
    labels = np.kron(np.arange(1, 201).reshape(10, 20), np.ones((4, 4), np.int32)).astype(np.int32)
    random.shuffle(labels.ravel()[:100])
    colours = choose_colours(labels, 200)
    assert len(np.unique(colours[1:], axis=0)) > 25
    for one, other in ((labels[:, :-1], labels[:, 1:]), (labels[:-1], labels[1:])):
        touching = one != other
        assert np.abs(colours[one[touching]] - colours[other[touching]]).max(1).min() > 40
    assert palette().min() >= 0
    assert palette().max() <= 255


def test_blending_mixes_by_alpha() -> None:
    pixels = np.full((1, 3, 3), 100, np.uint8)
    layer = np.array([[[200, 0, 50, 0], [200, 0, 50, 255], [200, 0, 50, 51]]], np.uint8)
    assert blend(pixels, layer).tolist() == [[[100, 100, 100], [200, 0, 50], [120, 80, 90]]]


def test_the_command_prints_for_people_for_programs_and_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    review = Review(tmp_path / "index.html", (tmp_path / "overlays" / "a.jpg",), {"ok": 1})
    monkeypatch.setattr("amg.review.view.write_review", lambda *_, **__: review)

    def call(*options: str) -> str:
        monkeypatch.setattr("sys.argv", ["sam-amg", "show", "labels", *options])
        assert main() == 0
        return capsys.readouterr().out

    assert call().splitlines()[0] == f"page      {review.page}"
    assert call("--quiet") == ""
    assert json.loads(call("--json")) == {
        "page": str(review.page),
        "pictures": [str(review.pictures[0])],
        "rows": {"ok": 1},
    }
