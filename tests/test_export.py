"""Exports, read back by pycocotools and json and held against the rows they came from."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from amg.cli.main import main
from amg.errors import ConfigError, FormatError, OutputRefused, StorageError
from amg.export import sa1b
from amg.export.formats import FORMATS, export_shards
from amg.shards.reader import read_shards
from tests.outputs import make_output, rewrite

KEYS = ["a.png", "a.jpg", "deep/a.png", "deep/b c\n.png", "ü.webp", "e.png", "f.tar.png", "g", "h.png", "i.png"]


@pytest.fixture(params=["exact", "sa1b"])
def out(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Ten images of which 3 and 8 failed, in the style of boxes that is asked for."""
    make_output(tmp_path / "out", KEYS, output__bbox_style=request.param)
    return tmp_path / "out"


pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def labeled(folder: Path) -> list[dict[str, Any]]:
    return [row for row in read_shards(folder) if row["status"] == "ok"]


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_coco_holds_every_mask(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exported = export_shards(str(out), to="coco", out=tmp_path / "coco.json")
    assert (exported.images, exported.left_out) == (8, {"decode_error": 1, "missing": 1})
    loaded = COCO(str(tmp_path / "coco.json"))
    capsys.readouterr()
    rows = labeled(out)
    assert exported.masks == len(loaded.anns) == sum(row["num_masks"] for row in rows)
    assert [image["file_name"] for image in loaded.loadImgs(loaded.getImgIds())] == [row["key"] for row in rows]
    assert loaded.loadCats(loaded.getCatIds()) == [{"id": 1, "name": "object", "supercategory": "object"}]
    for row in rows:
        annotations = loaded.loadAnns(loaded.getAnnIds(imgIds=row["image_id"]))
        for mine, theirs in zip(row["annotations"], annotations, strict=True):
            pixels = loaded.annToMask(theirs)
            assert np.array_equal(pixels, coco_mask.decode(mine["segmentation"]))
            assert (theirs["area"], theirs["iscrowd"], theirs["category_id"]) == (pixels.sum(), 0, 1)
            assert theirs["bbox"] == coco_mask.toBbox(mine["segmentation"]).tolist()
            assert theirs["score"] == mine["predicted_iou"]
            assert theirs["id"] == mine["id"] + 1


def test_coco_can_be_evaluated_with_itself(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pycocotools.cocoeval import COCOeval

    rewrite_without_empty(out)
    export_shards(str(out), to="coco", out=tmp_path / "coco.json")
    truth = COCO(str(tmp_path / "coco.json"))
    evaluation = COCOeval(truth, truth.loadRes([dict(each) for each in truth.anns.values()]), "segm")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()
    assert evaluation.stats[0] > 0.99


def rewrite_without_empty(out: Path) -> None:
    """COCO's evaluation has no use for masks without a pixel."""

    def drop(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["annotations"] = [a for a in row["annotations"] or [] if a["area"]] if row["status"] == "ok" else None

    for path in (out / "data").iterdir():
        rewrite(path, rows=drop)


def test_sa1b_has_one_file_an_image_as_published(out: Path, tmp_path: Path) -> None:
    exported = export_shards(str(out), to="sa1b", out=tmp_path / "sa1b")
    assert files(tmp_path / "sa1b") == sorted(
        ["a.png.json", "a.jpg.json", "deep/a.json", "ü.json", "e.json", "f.tar.json", "g.json", "i.json"]
    )
    rows = {row["key"]: row for row in labeled(out)}
    seen = 0
    for name in files(tmp_path / "sa1b"):
        content = json.loads((tmp_path / "sa1b" / name).read_text())
        row = rows[content["image"]["file_name"]]
        assert list(content) == ["image", "annotations"]
        assert content["image"] == {
            "image_id": row["image_id"], "width": 40, "height": 30, "file_name": row["key"]
        }  # fmt: skip
        for mine, theirs in zip(row["annotations"], content["annotations"], strict=True):
            seen += 1
            assert list(theirs) == list(sa1b.FIELDS)
            x, y, width, height = coco_mask.toBbox(mine["segmentation"]).tolist()
            assert theirs["bbox"] == [x, y, max(width - 1, 0), max(height - 1, 0)]
            assert {n: theirs[n] for n in sa1b.FIELDS if n != "bbox"} == {
                n: mine[n] for n in sa1b.FIELDS if n != "bbox"
            }
    assert seen == exported.masks


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["a.png", "b.png"], ["a", "b"]),
        (["a.png", "a.jpg"], ["a.png", "a.jpg"]),
        (["a.png", "a.jpg", "a.png.tif"], ["a.png", "a.jpg", "a.png.tif"]),
        (["a", "a.png"], ["a", "a.png"]),
        (["x/a.png", "y/a.png"], ["x/a", "y/a"]),
        (["../a.png", "/b.png", "x/./c.png"], ["%2E%2E/a", "%2F/b", "x/c"]),
        (["http://h/a.png"], ["http:/h/a"]),
        ([".png"], [".png"]),
    ],
)
def test_names_are_unique_and_stay_inside(keys: list[str], names: list[str]) -> None:
    made = sa1b.file_names(keys)
    assert list(made.values()) == [f"{name}.json" for name in names]


def test_names_of_many_odd_keys_are_unique() -> None:
    rng = np.random.default_rng(0)
    parts = ["a", "a.png", "a.jpg", "a.png.png", ".a", "..", "b.", "%2F", "c"]
    keys = {"/".join(rng.choice(parts, rng.integers(1, 4))) for _ in range(500)}
    assert len(set(sa1b.file_names(keys).values())) == len(keys)


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_there_is_refused_unless_overwritten(tmp_path: Path, to: str) -> None:
    make_output(tmp_path / "out", KEYS)
    target = tmp_path / "target"
    export_shards(str(tmp_path / "out"), to=to, out=target)
    with pytest.raises(OutputRefused, match="is there and not empty; give another --out, or --overwrite"):
        export_shards(str(tmp_path / "out"), to=to, out=target)
    export_shards(str(tmp_path / "out"), to=to, out=target, overwrite=True)
    assert [path.name for path in tmp_path.iterdir() if path.name != "out"] == ["target"]


def test_an_empty_target_is_taken(tmp_path: Path) -> None:
    make_output(tmp_path / "out", KEYS)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.json").touch()
    export_shards(str(tmp_path / "out"), to="sa1b", out=tmp_path / "folder")
    export_shards(str(tmp_path / "out"), to="coco", out=tmp_path / "file.json")
    assert (tmp_path / "folder" / "e.json").is_file()
    assert (tmp_path / "file.json").stat().st_size


def test_a_folder_with_anything_else_in_it_is_never_overwritten(tmp_path: Path) -> None:
    make_output(tmp_path / "out", KEYS)
    for folder in (tmp_path / "out", tmp_path):
        with pytest.raises(OutputRefused, match="which no export wrote"):
            export_shards(str(tmp_path / "out"), to="sa1b", out=folder, overwrite=True)
    with pytest.raises(OutputRefused, match="is a folder, this format makes a file"):
        export_shards(str(tmp_path / "out"), to="coco", out=tmp_path, overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputRefused, match="is a file, this format makes a folder"):
        export_shards(str(tmp_path / "out"), to="sa1b", out=tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("to", FORMATS)
def test_an_export_that_fails_leaves_nothing(tmp_path: Path, to: str) -> None:
    make_output(tmp_path / "out", KEYS)
    last = tmp_path / "out" / "data" / "part-000004.parquet"
    last.write_bytes(last.read_bytes()[:-100])
    with pytest.raises(FormatError, match="is not a whole Parquet file"):
        export_shards(str(tmp_path / "out"), to=to, out=tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    make_output(tmp_path / "out", KEYS)
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="cannot write"):
        export_shards(str(tmp_path / "out"), to="coco", out=tmp_path / "file" / "coco.json")


def test_unknown_formats_and_folders_without_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no format 'cocoo'; did you mean 'coco'; formats: sa1b, coco"):
        export_shards(str(tmp_path), to="cocoo", out=tmp_path / "x")
    with pytest.raises(StorageError, match="no shards in"):
        export_shards(str(tmp_path), to="coco", out=tmp_path / "x")


def test_a_footer_that_does_not_say_the_style_of_boxes(tmp_path: Path) -> None:
    make_output(tmp_path / "out", KEYS)
    rewrite(tmp_path / "out" / "data" / "part-000000.parquet", footer=lambda footer: footer.pop("sam_amg.config"))
    with pytest.raises(FormatError, match=r"does not say output\.bbox_style"):
        export_shards(str(tmp_path / "out"), to="coco", out=tmp_path / "x")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    make_output(tmp_path / "labels", KEYS)

    def call(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sam-amg", "export", "labels", "--out", "c.json", "--to", "coco", *options])
        return main(), capsys.readouterr().out

    assert call() == (
        0,
        "8 images, 16 masks to c.json\nleft out: 1 decode_error, 1 missing; sam-amg failures labels lists them\n",
    )
    assert call() == (2, "")
    assert call("--overwrite", "--quiet") == (0, "")
    status, text = call("--overwrite", "--json")
    assert (status, json.loads(text)) == (
        0,
        {"to": "coco", "out": "c.json", "images": 8, "masks": 16, "left_out": {"decode_error": 1, "missing": 1}},
    )


def test_an_export_of_half_a_job_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_output(tmp_path / "labels", KEYS, shards=range(3))
    monkeypatch.setattr(
        sys, "argv", ["sam-amg", "export", str(tmp_path / "labels"), "--out", str(tmp_path / "c"), "--to", "sa1b"]
    )
    assert main() == 0
    assert "4 planned images have no row yet" in capsys.readouterr().err
