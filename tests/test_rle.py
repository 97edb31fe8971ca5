"""Run lengths against pycocotools, in bulk."""

from __future__ import annotations

import re

import numpy as np
import pytest
from pycocotools import mask as coco

from amg import rle
from amg.errors import ConfigError, FormatError
from amg.geometry import Box, Crop, Size
from amg.values import Funnel, ImageRef, MaskSet

# pycocotools' own: it does not know numpy 2's `copy` keyword yet
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_runs(rng: np.random.Generator) -> tuple[np.ndarray, int, int]:
    """Runs that cover a random size exactly: long and short ones, some of length zero, sometimes a first zero."""
    height, width = (int(n) for n in rng.integers(1, rng.choice([3, 30, 3000]), 2))
    n = int(rng.integers(1, min(400, height * width + 2)))
    cuts = np.sort(rng.integers(0, height * width + 1, n - 1))
    return np.diff(np.concatenate([[0], cuts, [height * width]])).astype(np.uint32), height, width


def as_coco(runs: np.ndarray, height: int, width: int) -> dict:
    return coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)


def mask_set_of(masks: list[np.ndarray]) -> MaskSet:
    size, k = Size(*masks[0].shape), len(masks)
    runs = [rle.from_mask(mask) for mask in masks]
    crops = (Crop(Box(0, 0, size.width, size.height), 0, 0), Crop(Box(1, 2, size.width, size.height), 1, 1))
    return MaskSet(
        ref=ImageRef(3, "a.jpg", "/a.jpg"),
        size=size,
        original=size,
        orientation=1,
        crops=crops,
        runs_R=np.concatenate(runs),
        offsets_K1=np.cumsum([0, *map(len, runs)]).astype(np.int64),
        box_K4=np.array([rle.box(r, size.height) for r in runs], np.int32),
        area_K=np.array([rle.area(r) for r in runs], np.int64),
        predicted_iou_K=np.linspace(0.9, 1, k, dtype=np.float32),
        stability_K=np.linspace(0.95, 1, k, dtype=np.float32),
        point_K2=np.arange(2 * k).reshape(k, 2) + 0.25,
        crop_K=np.arange(k, dtype=np.int32) % 2,
        point_index_K=np.arange(k, dtype=np.int32),
        mask_index_K=(np.arange(k) % 3).astype(np.int8),
        changed_K=np.arange(k) % 2 == 1,
        funnel=Funnel(candidates=k, kept=k),
    )


def test_strings_area_and_box_equal_pycocotools_on_random_runs():
    rng = np.random.default_rng(1)
    for _ in range(2000):
        runs, height, width = random_runs(rng)
        theirs = as_coco(runs, height, width)
        assert rle.encode(runs) == theirs["counts"].decode()
        assert np.array_equal(rle.decode(theirs["counts"], size=Size(height, width)), runs)
        assert rle.area(runs) == coco.area(theirs)
        if (runs[1:] > 0).all():  # pycocotools gives garbage for runs of length zero
            x0, y0, x1, y1 = rle.box(runs, height)
            assert [x0, y0, x1 - x0, y1 - y0] == coco.toBbox(theirs).tolist(), (runs, height)
        elif height * width < 1000:
            canonical = rle.from_mask(rle.to_mask(runs, Size(height, width)))
            assert rle.box(runs, height) == rle.box(canonical, height)


def test_runs_of_any_length_survive_the_string():
    # no further: pycocotools reserves six characters a run and writes past them from 2**29 on
    edges = sorted({max(0, 2**p + d) for p in (0, 4, 5, 9, 10, 14, 15, 19, 24, 28) for d in (-1, 0, 1)})
    rng = np.random.default_rng(2)
    for _ in range(300):
        runs = rng.choice(edges, int(rng.integers(1, 12))).astype(np.uint32)
        theirs = as_coco(runs, 1, 1)["counts"].decode()
        assert rle.encode(runs) == theirs
        assert np.array_equal(rle.decode(theirs), runs)
    largest = np.array([0, 2**32 - 1, 0, 0, 2**32 - 1], np.uint32)
    assert np.array_equal(rle.decode(rle.encode(largest)), largest)


def test_dense_masks_round_trip_and_equal_pycocotools():
    rng = np.random.default_rng(3)
    for density in (0, 0.02, 0.5, 0.98, 1):
        for _ in range(40):
            mask = rng.random(rng.integers(1, 40, 2)) < density
            runs = rle.from_mask(mask)
            theirs = coco.encode(np.asfortranarray(mask, np.uint8))
            assert rle.encode(runs) == theirs["counts"].decode()
            assert np.array_equal(rle.to_mask(runs, Size(*mask.shape)), mask)


@pytest.mark.parametrize(
    "counts",
    ["", "zzzz", "0\n", "é", "P", "0P", b"\xff", "PPPPPPPP0", "O", "00O", "ooooooO", "oooooo?"],
)
def test_malformed_strings_are_refused(counts):
    with pytest.raises(FormatError, match="COCO run-length string"):
        rle.decode(counts)


def test_random_text_never_becomes_other_runs_than_it_says():
    rng = np.random.default_rng(4)
    accepted = 0
    for _ in range(3000):
        text = bytes(rng.integers(44, 116, int(rng.integers(1, 9))).astype(np.uint8))
        try:
            runs = rle.decode(text)
        except FormatError:
            continue
        accepted += 1
        assert np.array_equal(rle.decode(rle.encode(runs)), runs)
    assert 30 < accepted < 3000


def test_runs_of_another_size_are_refused_with_both_sizes():
    with pytest.raises(FormatError, match=re.escape("cover 6 pixels, wanted 2 x 4 = 8")):
        rle.to_mask(np.array([2, 4], np.uint32), Size(2, 4))
    with pytest.raises(FormatError, match="cover 6 pixels"):
        rle.decode(rle.encode(np.array([2, 4], np.uint32)), size=Size(2, 4))


def test_strings_of_a_mask_set_equal_those_of_its_masks():
    rng = np.random.default_rng(5)
    masks = [rng.random((9, 7)) < density for density in (0, 1, 0.5, 0.1, 0, 0.9)]
    mask_set = mask_set_of(masks)
    assert rle.strings(mask_set) == [rle.encode(rle.from_mask(mask)) for mask in masks]
    _, offsets_K1 = rle.encode_all(mask_set.runs_R[:0], np.zeros(1, np.int64))
    assert offsets_K1.tolist() == [0]


def test_records_are_the_reference_dicts():
    block, empty = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    block[10:20, 5:25] = True
    first, second = mask_set_of([block, empty]).to_dicts()
    assert list(first) == [
        "segmentation",
        "area",
        "bbox",
        "predicted_iou",
        "point_coords",
        "stability_score",
        "crop_box",
    ]
    assert first["bbox"] == [5, 10, 19, 9]
    assert second["bbox"] == [0, 0, 0, 0]
    assert second["crop_box"] == [1, 2, 39, 28]
    assert first["point_coords"] == [[0.25, 1.25]]
    assert (first["area"], type(first["area"]), type(first["predicted_iou"])) == (200, int, float)
    assert coco.decode(first["segmentation"]).sum() == 200
    exact = mask_set_of([block, empty]).to_dicts(bbox_style="exact")
    assert [record["bbox"] for record in exact] == [[5, 10, 20, 10], [0, 0, 0, 0]]


def test_records_come_in_three_forms_of_the_same_mask():
    rng = np.random.default_rng(6)
    mask = rng.random((8, 5)) < 0.5
    mask_set = mask_set_of([mask])
    (dense,) = mask_set.to_dicts(output_mode="binary_mask")
    (plain,) = mask_set.to_dicts(output_mode="uncompressed_rle")
    assert dense["segmentation"].dtype == bool
    assert np.array_equal(dense["segmentation"], mask)
    assert sum(plain["segmentation"]["counts"]) == 40
    assert np.array_equal(coco.decode(coco.frPyObjects(plain["segmentation"], 8, 5)), mask)


def test_unknown_forms_are_refused_with_what_is_there():
    mask_set = mask_set_of([np.ones((2, 2), bool)])
    with pytest.raises(ConfigError, match="output_mode is 'png', wanted one of coco_rle"):
        mask_set.to_dicts(output_mode="png")
    with pytest.raises(ConfigError, match="bbox_style is 'coco', wanted one of exact, sa1b"):
        mask_set.to_dicts(bbox_style="coco")
