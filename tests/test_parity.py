"""Our masks against the recorded runs of the reference, with the real MobileSAM weights; and the comparison itself.

The cases of `QUICK` run with the tests; the others carry the marker `parity_full`, which `make parity` runs.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from tests import parity as parity_command
from tests import reference_amg
from tests.parity import Parity, compare, find_weights, load_ours, photos_in, run_ours, too_few_identical
from tests.reference_amg import Record

QUICK = ("coffee--cleanup-grid16", "coffee--crops1-cleanup-grid16", "astronaut--default")
GOLDEN = {path.name.removesuffix(".json.gz"): path for path in sorted(reference_amg.GOLDEN.glob("*.json.gz"))}


def golden_cases() -> list[Any]:
    marks = {name: () if name in QUICK else (pytest.mark.parity_full,) for name in GOLDEN}
    return [pytest.param(path, id=name, marks=marks[name]) for name, path in GOLDEN.items()]


@pytest.fixture(scope="module")
def sam() -> Any:
    return load_ours(find_weights(None))


@pytest.fixture(scope="module")
def compared() -> list[Parity]:
    return []


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", golden_cases())
def test_masks_are_those_of_the_reference(path: Path, sam: Any, compared: list[Parity]) -> None:
    golden = reference_amg.read(path)
    ours = run_ours(sam, photo_of(golden), golden.arguments)
    parity = compare(ours, list(golden.records))
    assert parity.problems() == [], parity
    compared.append(parity)


def test_run_lengths_are_those_of_the_reference_in_nearly_all_masks(compared: list[Parity]) -> None:
    """After the cases above, over all that ran."""
    assert compared, "no golden case ran"
    assert too_few_identical(compared) == []


@pytest.mark.parametrize("path", GOLDEN.values(), ids=GOLDEN.keys())
def test_golden_file_belongs_to_its_photo_and_case(path: Path) -> None:
    golden = reference_amg.read(path)
    pixels_HWC = photo_of(golden)
    assert golden.size == pixels_HWC.shape[:2]
    assert golden.pixels_sha256 == reference_amg.digest(pixels_HWC), "another JPEG decoder, or another photo"
    assert golden.arguments == reference_amg.CASES[golden.case]
    assert golden.records


def test_every_planned_golden_file_is_there() -> None:
    assert set(GOLDEN) == {f"{photo}--{case}" for photo, case in reference_amg.PLAN}
    assert set(QUICK) <= set(GOLDEN)


@pytest.mark.parametrize("path", GOLDEN.values(), ids=GOLDEN.keys())
def test_golden_records_equal_themselves(path: Path) -> None:
    records = list(reference_amg.read(path).records)
    assert compare(copy.deepcopy(records), records).problems() == []


def photo_of(golden: reference_amg.Golden) -> NDArray[np.uint8]:
    return reference_amg.read_rgb(reference_amg.PHOTOS / f"{golden.photo}.jpg")


# The comparison on made-up records: discs of falling score on a 200 x 300 image.

HEIGHT, WIDTH = 200, 300


def disc(x: float, y: float, radius: float, score: float, *, crop: tuple[int, int, int, int] | None = None) -> Record:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return record((columns - x) ** 2 + (rows - y) ** 2 <= radius**2, (x, y), score, crop or (0, 0, WIDTH, HEIGHT))


def record(bits_HW: NDArray[np.bool_], point: tuple[float, float], score: float, crop: tuple[int, ...]) -> Record:
    counts = coco.encode(np.asfortranarray(bits_HW.astype(np.uint8)))["counts"]
    rows, columns = np.nonzero(bits_HW)
    x, y = (int(axis.min(initial=10**6)) if axis.size else 0 for axis in (columns, rows))
    right, bottom = (int(axis.max(initial=0)) for axis in (columns, rows))
    return {
        "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts.decode() if isinstance(counts, bytes) else counts},
        "area": int(bits_HW.sum()),
        "bbox": [x, y, right - x, bottom - y],
        "predicted_iou": score,
        "point_coords": [list(point)],
        "stability_score": 0.97,
        "crop_box": list(crop),
    }


def scene() -> list[Record]:
    return [
        disc(60.5, 60.5, 40, 1.01),
        disc(200.5, 60.5, 30, 0.96),
        disc(120.5, 140.5, 50, 0.95),
        disc(250.5, 150.5, 20, 0.9496),
        disc(30.5, 170.5, 9, 0.90),
    ]


def broken(change: Callable[[list[Record]], object]) -> list[str]:
    """The problems of a scene changed in one way."""
    ours = scene()
    change(ours)
    return all_problems(compare(ours, scene()))


def all_problems(parity: Parity) -> list[str]:
    return [*parity.problems(), *too_few_identical([parity])]


def test_equal_records_have_no_problem() -> None:
    parity = compare(scene(), scene())
    assert parity == Parity(
        pixels=HEIGHT * WIDTH,
        ours=5,
        reference=5,
        matched=5,
        min_iou=1.0,
        identical_share=1.0,
        predicted_iou_difference=0.0,
        stability_difference=0.0,
        other_area=0,
        other_crop_box=0,
        other_point_coords=0,
        other_bbox=0,
        swaps=0,
    )
    assert parity.problems() == []


def test_integers_and_floats_of_one_value_are_equal() -> None:
    assert broken(lambda ours: ours[0].update(bbox=[float(side) for side in ours[0]["bbox"]])) == []


def test_missing_record_is_caught() -> None:
    problems = broken(lambda ours: ours.pop(2))
    assert problems[:2] == ["4 masks, the reference has 5", "1 of the reference's 5 masks have no mask of ours"]


def test_extra_record_is_caught() -> None:
    problems = broken(lambda ours: ours.append(disc(150.5, 20.5, 8, 0.89)))
    assert "6 masks, the reference has 5" in problems
    assert "1 of our 6 masks have no mask of the reference" in problems


def test_mask_told_twice_is_caught() -> None:
    def tell_twice(ours: list[Record]) -> None:
        ours[1] = copy.deepcopy(ours[0])

    problems = broken(tell_twice)
    assert "1 of the reference's 5 masks have no mask of ours" in problems
    assert "1 of our 5 masks have no mask of the reference" in problems


def test_wrong_mask_is_caught() -> None:
    wrong = disc(120.5, 140.5, 49, 0.95)
    problems = broken(lambda ours: ours[2].update(segmentation=wrong["segmentation"]))
    assert any(problem.startswith("the worst matched IoU is 0.9") for problem in problems)
    assert "80.0% of the RLE strings are identical, want >= 95%" in problems


def test_few_other_pixels_are_a_problem_in_many_masks_of_an_image_up_to_two_megapixels() -> None:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    bits_HW = (columns - 120.5) ** 2 + (rows - 140.5) ** 2 <= 50**2
    bits_HW[140, 100:106] = False
    ours = scene()
    ours[2] = record(bits_HW, (120.5, 140.5), 0.95, (0, 0, WIDTH, HEIGHT))
    parity = compare(ours, scene())
    assert 0.999 < parity.min_iou < 1
    assert all_problems(parity) == ["80.0% of the RLE strings are identical, want >= 95%"]
    assert all_problems(dataclasses.replace(parity, pixels=2_160_000)) == []
    assert too_few_identical([parity, *[compare(scene(), scene())] * 2]) == [
        "93.3% of the RLE strings are identical, want >= 95%"
    ]
    assert too_few_identical([parity, *[compare(scene(), scene())] * 3]) == []


def test_shifted_box_is_caught() -> None:
    problems = broken(lambda ours: ours[1]["bbox"].__setitem__(2, ours[1]["bbox"][2] + 1))
    assert problems == ["1 of 5 matched masks have another bbox"]


def test_wrong_area_is_caught() -> None:
    problems = broken(lambda ours: ours[1].update(area=ours[1]["area"] + 1))
    assert problems == ["1 of 5 matched masks have another area"]


def test_other_point_is_caught() -> None:
    problems = broken(lambda ours: ours[1].update(point_coords=[[200.5, 61.5]]))
    assert problems == ["1 of 5 matched masks have another point_coords"]


def test_other_crop_is_caught() -> None:
    problems = broken(lambda ours: ours[1].update(crop_box=[0, 0, WIDTH, HEIGHT - 1]))
    assert problems == ["1 of 5 matched masks have another crop_box"]


@pytest.mark.parametrize("value", [0.962, float("nan")])
def test_other_predicted_iou_is_caught(value: float) -> None:
    (problem,) = broken(lambda ours: ours[1].update(predicted_iou=value))
    assert problem.startswith("predicted_iou differs by up to")


def test_other_stability_is_caught() -> None:
    (problem,) = broken(lambda ours: ours[1].update(stability_score=0.972))
    assert problem == "stability differs by up to 2.00e-03, want <= 0.001"


def test_scores_within_the_bar_are_no_problem() -> None:
    assert broken(lambda ours: ours[1].update(predicted_iou=0.9605, stability_score=0.9705)) == []


def test_swapped_order_is_caught() -> None:
    problems = broken(lambda ours: ours.insert(0, ours.pop(1)))
    assert problems == ["1 pairs of masks come in the other order, want none but near ties"]


def test_swap_of_near_ties_is_no_problem() -> None:
    assert broken(lambda ours: ours.insert(2, ours.pop(3))) == []


def test_swap_of_near_ties_in_different_crops_is_caught() -> None:
    left, right = (0, 0, 200, HEIGHT), (100, 0, 200, HEIGHT)
    reference = [disc(60.5, 60.5, 40, 0.95, crop=left), disc(240.5, 60.5, 40, 0.95, crop=right)]
    (problem,) = compare(reference[::-1], reference).problems()
    assert "other order" in problem


def test_equal_masks_are_matched_by_point_and_score() -> None:
    """A mask of one pixel has a box without area, which NMS never suppresses: two points may give the same one."""
    bits_HW = np.zeros((HEIGHT, WIDTH), np.bool_)
    bits_HW[5, 7] = True
    whole = (0, 0, WIDTH, HEIGHT)
    reference = [record(bits_HW, (x, 5.5), score, whole) for x, score in [(7.5, 0.99), (9.5, 0.95), (11.5, 0.92)]]
    assert compare(copy.deepcopy(reference), reference).problems() == []


def test_images_without_masks_agree() -> None:
    assert compare([], []).problems() == []
    assert all_problems(compare([], scene())) == [
        "0 masks, the reference has 5",
        "5 of the reference's 5 masks have no mask of ours",
        "0.0% of the RLE strings are identical, want >= 95%",
    ]


def test_masks_without_pixels_are_equal() -> None:
    empty = record(np.zeros((HEIGHT, WIDTH), np.bool_), (1.5, 1.5), 0.9, (0, 0, WIDTH, HEIGHT))
    assert compare([copy.deepcopy(empty)], [empty]).problems() == []


def test_a_photo_or_a_folder_of_photos_is_listed(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.PNG", "notes.md"):
        (tmp_path / name).touch()
    assert [path.name for path in photos_in(tmp_path)] == ["a.PNG", "b.jpg"]
    assert photos_in(tmp_path / "b.jpg") == [tmp_path / "b.jpg"]


def test_golden_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    golden = reference_amg.Golden(
        photo="made-up",
        case="default",
        arguments={"points_per_side": 16},
        size=(HEIGHT, WIDTH),
        pixels_sha256="0" * 64,
        versions={"torch": "2"},
        command="none",
        seconds=1.5,
        records=tuple(scene()),
    )
    path = tmp_path / f"{golden.stem}.json.gz"
    reference_amg.write(golden, path)
    assert reference_amg.read(path) == golden


# The commands, with a made-up side in place of ours.


def fake_ours(monkeypatch: pytest.MonkeyPatch, change: Callable[[list[Record]], object]) -> None:
    """Ours answers with the records of coffee--grid16, changed."""
    records = list(reference_amg.read(GOLDEN["coffee--grid16"]).records)
    change(records)
    monkeypatch.setattr(parity_command, "load_ours", lambda *_: None)
    monkeypatch.setattr(parity_command, "run_ours", lambda *_: records)


@pytest.mark.parametrize(("change", "status"), [(lambda _: None, 0), (lambda ours: ours.pop(), 1)])
def test_golden_command_says_what_is_broken(
    change: Callable[[list[Record]], object],
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake_ours(monkeypatch, change)
    arguments = ["--golden", "--case", "grid16", "--weights", "unused.pt"]
    assert parity_command.main(arguments) == status
    *lines, last = capsys.readouterr().out.splitlines()
    (photo,) = json.loads(last)["photos"]
    assert [line.split(":")[0] for line in lines] == ["coffee--grid16", *(["all photos"] if status else [])]
    assert bool(photo["problems"]) == bool(status)
    assert ("the reference has 9" in lines[0]) == bool(status)


def test_live_command_runs_both_on_every_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_ours(monkeypatch, lambda _: None)
    golden = list(reference_amg.read(GOLDEN["coffee--grid16"]).records)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(reference_amg, "load_reference", lambda *_: None)
    monkeypatch.setattr(reference_amg, "run_reference", lambda *given: asked.append(given[-1]) or golden)
    for name in ("one.jpg", "two.jpg"):
        (tmp_path / name).write_bytes((reference_amg.PHOTOS / "coffee.jpg").read_bytes())
    arguments = ["--photos", str(tmp_path), "--weights", "unused.pt", "--set", "points_per_side=16"]
    assert parity_command.main(arguments) == 0
    assert asked == [{"points_per_side": 16}] * 2
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()[:-1]] == ["one", "two"]


def test_commands_refuse_what_they_cannot_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--golden", "--set", "points_per_side=16"], ["--photos", str(tmp_path)], ["--set", "loose"]):
        with pytest.raises(SystemExit, match="2"):
            parity_command.main(arguments)
    assert "holds no file with one of the suffixes" in capsys.readouterr().err
