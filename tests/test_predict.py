"""`sam-amg predict`: prompts from words, the masks of the predictor, the folder it makes."""

from __future__ import annotations

import io
import json
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from amg.cli.main import main
from amg.cli.prompts import parse_box, parse_point, prompts_of
from amg.errors import ConfigError, OutputRefused, StorageError
from amg.geometry import Size
from amg.review.panels import GAP, overlay
from amg.review.prediction import Answer, Prompt, refuse_taken, write_prediction
from amg.sam.load import load_sam
from amg.sam.predictor import Predictor
from amg.values import Image, ImageRef
from tests.parity import find_weights
from tests.reference_amg import PHOTOS, read_rgb

COFFEE = PHOTOS / "coffee.jpg"
SIZE = Size(40, 60)

Command = Callable[..., int]


@pytest.fixture
def predict(monkeypatch: pytest.MonkeyPatch) -> Command:
    """`sam-amg predict` with these arguments and the weights of the tests; gives its exit status."""

    def call(*arguments: str | Path, weights: str | Path | None = None) -> int:
        words = ["sam-amg", "predict", *map(str, arguments), "--weights", str(weights or find_weights(None))]
        monkeypatch.setattr(sys, "argv", [*words, "--device", "cpu"])
        return main()

    return call


def decoded(segmentation: dict[str, Any]) -> NDArray[np.uint8]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools' arrays are of NumPy 1
        return coco.decode(segmentation)


# Words.


def test_points_and_boxes_are_read_from_words() -> None:
    assert parse_point("450,600") == (450, 600, 1)
    assert parse_point("450.5, 600,0") == (450.5, 600, 0)
    assert parse_box("75,275,1725,850") == (75, 275, 1725, 850)


@pytest.mark.parametrize("text", ["", "450", "450,600,2", "450,600,1,1", "a,b", "450;600", "nan,1", "inf,1", "1,2,"])
def test_what_is_no_point_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--point got .*, wanted x,y or x,y,label"):
        parse_point(text)


@pytest.mark.parametrize("text", ["", "1,2,3", "1,2,3,4,5", "5,2,5,4", "5,2,4,4", "1,4,3,2", "a,b,c,d", "1,2,nan,4"])
def test_what_is_no_box_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--box got .*, wanted x0,y0,x1,y1"):
        parse_box(text)


def test_points_alone_tell_of_one_object_or_each_of_its_own() -> None:
    points = [(1.0, 2.0, 1), (3.0, 4.0, 1)]
    assert prompts_of(points, [], size=SIZE, separate=False) == [Prompt(tuple(points))]
    assert prompts_of(points, [], size=SIZE, separate=True) == [Prompt((points[0],)), Prompt((points[1],))]


def test_each_box_is_an_object_and_takes_the_points_that_lie_in_it() -> None:
    left, right = (0.0, 0.0, 20.0, 20.0), (10.0, 0.0, 60.0, 40.0)
    points = [(5.0, 5.0, 1), (15.0, 5.0, 0), (30.0, 30.0, 1)]
    assert prompts_of(points, [left, right], size=SIZE, separate=False) == [
        Prompt((points[0], points[1]), left),
        Prompt((points[1], points[2]), right),
    ]
    assert prompts_of(points, [left], size=SIZE, separate=False) == [Prompt(tuple(points), left)]


@pytest.mark.parametrize(
    ("points", "boxes", "separate", "said"),
    [
        ([], [], False, "no --point and no --box came"),
        ([(60, 5, 1)], [], False, "--point 60,5: outside the picture, which is 60 pixels wide and 40 high"),
        ([(5, 40, 1)], [], False, "--point 5,40: outside the picture, which is 60 pixels wide and 40 high"),
        ([(-1, 5, 1)], [(0, 0, 61, 10)], False, "--point -1,5, --box 0,0,61,10: outside the picture"),
        ([], [(0, -0.5, 10, 10)], False, "--box 0,-0.5,10,10: outside"),
        ([(1, 1, 0)], [], False, "only points with label 0 came"),
        ([(1, 1, 0), (2, 2, 1)], [], True, "leave out boxes and labels 0"),
        ([(1, 1, 1)], [(0, 0, 10, 10)], True, "leave out boxes and labels 0"),
        ([(50, 30, 1)], [(0, 0, 9, 9), (10, 10, 20, 20)], False, "--point 50,30 lies in none of the 2 boxes"),
    ],
)
def test_prompts_without_meaning_are_refused(points: Any, boxes: Any, separate: bool, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        prompts_of(points, boxes, size=SIZE, separate=separate)


# The folder.


def picture() -> Image:
    pixels = np.random.default_rng(1).integers(0, 256, (SIZE.height, SIZE.width, 3), dtype=np.uint8)
    return Image(ImageRef(0, "a.png", "folder/a.png"), pixels, SIZE)


def answers(objects: int, masks: int) -> list[Answer]:
    draw = np.random.default_rng(2)
    found = []
    for index in range(objects):
        drawn = np.zeros((masks, SIZE.height, SIZE.width), np.bool_)
        drawn[:, 5 * index : 20, 10 : 30 + index] = True
        prompt = Prompt(((12.0, 7.0, 1), (50.0, 30.0, 0)), (2.0, 3.0, 40.0, 30.0))
        found.append(Answer(prompt, drawn, draw.uniform(0, 1, masks).astype(np.float32)))
    return found


@pytest.mark.parametrize(("objects", "masks"), [(1, 1), (1, 3), (3, 1), (2, 3)])
def test_the_record_holds_prompts_and_masks(tmp_path: Path, objects: int, masks: int) -> None:
    given = answers(objects, masks)
    written = write_prediction(tmp_path / "out", picture(), given, about={"multimask": masks > 1})
    record = json.loads(written.record_file.read_text())
    assert record == written.record
    assert record["image"] == {"file": "folder/a.png", "width": 60, "height": 40}
    assert record["multimask"] == (masks > 1)
    assert len(written.masks) == objects * masks
    for each, answer in zip(record["objects"], given, strict=True):
        assert each["points"] == [[12, 7], [50, 30]]
        assert each["labels"] == [1, 0]
        assert each["box"] == [2, 3, 40, 30]
        for mask, drawn, iou in zip(each["masks"], answer.masks_MHW, answer.iou_M, strict=True):
            assert np.array_equal(decoded(mask["segmentation"]), drawn)
            assert mask["area"] == drawn.sum()
            assert mask["bbox"] == coco.toBbox(mask["segmentation"]).tolist()
            assert mask["predicted_iou"] == pytest.approx(float(iou))
            assert np.array_equal(np.asarray(PIL.Image.open(tmp_path / "out" / mask["file"])), drawn * np.uint8(255))


def test_an_empty_mask_has_no_box(tmp_path: Path) -> None:
    nothing = Answer(Prompt(((1.0, 1.0, 1),)), np.zeros((1, 40, 60), np.bool_), np.zeros(1, np.float32))
    (each,) = write_prediction(tmp_path / "out", picture(), [nothing], about={}).record["objects"]
    assert each["masks"][0]["area"] == 0
    assert each["masks"][0]["bbox"] == [0, 0, 0, 0]


def test_the_overlay_has_a_panel_for_each_mask_and_shows_them() -> None:
    grey = np.full((SIZE.height, SIZE.width, 3), 128, np.uint8)
    single, three = overlay(grey, answers(1, 1)), overlay(grey, answers(1, 3))
    assert single.shape[1] == SIZE.width
    assert three.shape[1] == 3 * SIZE.width + 2 * GAP
    assert single.shape[0] > SIZE.height, "a caption below"
    assert overlay(grey, answers(2, 1)).shape == (*grey.shape[:2], 3), "no caption: it could tell of one object alone"
    inside, outside = single[15, 25].astype(int), single[35, 5]
    assert inside[2] > inside[0] + 30, "a single object is blue"
    assert (outside == 128).all()


def test_markers_are_where_the_prompts_are() -> None:
    grey = np.full((400, 600, 3), 128, np.uint8)
    prompt = Prompt(((100.0, 50.0, 1), (500.0, 300.0, 0)), (200.0, 150.0, 400.0, 350.0))
    drawn = overlay(grey, [Answer(prompt, np.zeros((1, 400, 600), np.bool_), np.ones(1, np.float32))]).astype(int)
    changed = (drawn[:400] != 128).any(2)
    green, red = drawn[50 - 3, 100 - 3], drawn[300 - 3, 500 - 3]
    assert green[1] > green[0] + 50
    assert red[0] > red[1] + 50
    assert changed[150:153, 200:400].all()
    assert changed[348:350, 200:400].all()
    assert changed[150:350, 398:400].all()
    assert not changed[:150, 200:400].any()
    assert not changed[180:320, 230:370].any()


def test_a_folder_is_not_written_over_silently(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_prediction(out, picture(), answers(3, 1), about={})
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(OutputRefused, match="is there and not empty; give another --out, or --overwrite"):
        write_prediction(out, picture(), answers(1, 1), about={})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    write_prediction(out, picture(), answers(1, 1), about={}, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["mask-0-0.png", "overlay.png", "prediction.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_foreign_files_are_never_removed(tmp_path: Path) -> None:
    (tmp_path / "mine.png").write_bytes(b"mine")
    for overwrite in (False, True):
        with pytest.raises(OutputRefused, match=r"holds mine\.png, which no prediction wrote"):
            refuse_taken(tmp_path, overwrite=overwrite)
    with pytest.raises(OutputRefused, match="is a file"):
        refuse_taken(tmp_path / "mine.png", overwrite=True)


def test_a_place_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        write_prediction(tmp_path / "file" / "out", picture(), answers(1, 1), about={})
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# The command, with the real MobileSAM.


def test_the_command_writes_the_predictors_masks(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cup"
    assert predict(COFFEE, "--point", "300,200", "-o", out) == 0
    told = capsys.readouterr().out
    assert told.count("predicted IoU") == 3
    assert str(out / "overlay.png") in told
    predictor = Predictor(load_sam(find_weights(None)))
    predictor.set_image(read_rgb(COFFEE))
    masks, iou, _ = predictor.predict([[300, 200]], [1])
    (each,) = json.loads((out / "prediction.json").read_text())["objects"]
    for mask, drawn, score in zip(each["masks"], masks, iou, strict=True):
        assert np.array_equal(decoded(mask["segmentation"]), drawn)
        assert mask["predicted_iou"] == pytest.approx(float(score), abs=1e-6)


def test_several_boxes_json_and_overwriting(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    boxes = ("--box", "77,18,476,389", "--box", "322,230,408,330")
    assert predict(COFFEE, *boxes, "--json", "-o", tmp_path / "out") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["multimask"] is False
    assert [len(each["masks"]) for each in record["objects"]] == [1, 1]
    assert record["objects"][0]["masks"][0]["area"] > 5 * record["objects"][1]["masks"][0]["area"] > 0
    assert record["model"]["architecture"] == "vit_t"
    assert predict(COFFEE, *boxes, "-o", tmp_path / "out") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert predict(COFFEE, *boxes, "--multimask", "--quiet", "--overwrite", "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out == ""
    assert len(list((tmp_path / "out").glob("mask-*.png"))) == 6


def test_a_photo_on_its_side_is_turned_upright_first(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turned = PIL.Image.open(COFFEE).resize((60, 40)).transpose(PIL.Image.Transpose.ROTATE_90)
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    turned.save(file, "JPEG", exif=exif)
    (tmp_path / "side.jpg").write_bytes(file.getvalue())
    assert predict(tmp_path / "side.jpg", "--point", "50,45", "-o", tmp_path / "out") == 2
    assert "60 pixels wide and 40 high" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("coffee.jpg", "--point", "600,10"), 2, "--point 600,10: outside the picture, which is 600 pixels wide and"),
        (("coffee.jpg", "--point", "x"), 2, "--point got 'x', wanted x,y"),
        (("coffee.jpg",), 2, "no --point and no --box came"),
        (("nowhere.jpg", "--point", "1,1"), 1, "cannot read nowhere.jpg: No such file"),
        (("broken.jpg", "--point", "1,1"), 1, "broken.jpg is no image that can be used (decode_error)"),
    ],
)
def test_wrong_words_and_files_end_with_a_status_and_a_sentence(
    predict: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    status: int,
    said: str,
) -> None:
    shutil.copy(COFFEE, tmp_path)
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    assert predict(*arguments, "-o", "out", weights="weights that nobody should look for") == status
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_unknown_weights_end_with_status_2_and_no_folder(
    predict: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(COFFEE, "--point", "1,1", "-o", tmp_path / "out", weights="mobile-sma") == 2
    assert "did you mean mobile-sam?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
