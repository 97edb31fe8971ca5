"""The generation loop against segment-anything's generator, on masks that a stand-in for the network makes for both."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import amg
from amg.config import generate_settings
from amg.errors import AmgError, ConfigError
from amg.generate import MaskGenerator, generate_masks
from amg.values import Failure, ImageRef, MaskSet, Status
from tests.fakes import DiscSam, FakeSam, NothingSam, PredictorForReference, RoughSam


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def reference_records(fake: FakeSam, pixels: np.ndarray, **settings: object) -> list[dict]:
    from segment_anything import SamAutomaticMaskGenerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = SamAutomaticMaskGenerator(PredictorForReference(fake), output_mode="coco_rle", **settings)
        generator.predictor = PredictorForReference(fake)
        return generator.generate(pixels)


CASES = {
    "default": {"points_per_side": 4},
    "no filters": {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0},
    "thresholds": {"points_per_side": 4, "pred_iou_thresh": 0.85, "stability_score_thresh": 0.8, "box_nms_thresh": 0.4},
    "offset": {"points_per_side": 4, "stability_score_offset": 0.3, "points_per_batch": 5},
    "crops": {"points_per_side": 4, "crop_n_layers": 1},
    "two layers": {"points_per_side": 4, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
    "overlap": {"points_per_side": 5, "crop_n_layers": 1, "crop_overlap_ratio": 0.1, "crop_nms_thresh": 0.9},
    "cleanup": {"points_per_side": 4, "min_mask_region_area": 150, "stability_score_thresh": 0.5},
    "cleanup in crops": {
        "points_per_side": 4,
        "crop_n_layers": 1,
        "min_mask_region_area": 300,
        "stability_score_thresh": 0.5,
        "crop_nms_thresh": 0.6,
    },
    "own grids": {"points_per_side": None, "point_grids": [np.array([[0.2, 0.3], [0.7, 0.6]])]},
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [(150, 200), (260, 90)])
def test_masks_are_those_of_the_reference_in_its_order(name: str, size: tuple[int, int]) -> None:
    settings = CASES[name]
    fake = RoughSam()
    theirs = reference_records(fake, picture(*size), **settings)
    named = (
        {**settings, "point_grids": [g.tolist() for g in settings["point_grids"]]}
        if "point_grids" in settings
        else settings
    )
    ours = generate_masks(picture(*size), fake.as_sam(), **named).to_dicts()
    assert theirs
    assert [r["segmentation"] for r in ours] == [r["segmentation"] for r in theirs]
    for key in ("area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"):
        assert [r[key] for r in ours] == [r[key] for r in theirs], key


def test_what_a_chunk_or_the_room_for_logits_is_changes_nothing() -> None:
    calm = generate_masks(picture(300, 200), RoughSam().as_sam(), points_per_side=6, crop_n_layers=1)
    for batch, room in ((1, 256), (7, 256), (64, 256), (7, 1)):
        fake = RoughSam()
        other = generate_masks(
            picture(300, 200),
            fake.as_sam(),
            points_per_side=6,
            crop_n_layers=1,
            points_per_batch=batch,
            candidates_mb=room,
        )
        assert max(fake.calls) == min(batch, 36)
        assert np.array_equal(other.runs_R, calm.runs_R)
        assert np.array_equal(other.box_K4, calm.box_K4)
        assert other.funnel == calm.funnel
    assert sum(fake.calls) > 36 * 5, "with 1 MiB some survivors are decoded twice"


def test_every_disc_is_found_once_with_its_area_and_its_point() -> None:
    masks = generate_masks(picture(512, 512), DiscSam(radius=40).as_sam(), points_per_side=4, box_nms_thresh=0.9)
    assert len(masks) == 16 * 3
    np.testing.assert_allclose(masks.area_K[:16], np.pi * 20**2, rtol=0.02)
    middle = (masks.box_K4[:, :2] + masks.box_K4[:, 2:]) / 2
    np.testing.assert_allclose(middle, masks.point_K2, atol=1)
    assert sorted(set(masks.mask_index_K.tolist())) == [0, 1, 2]
    assert masks.funnel.candidates == 48 == masks.funnel.kept


def test_the_funnel_accounts_for_every_candidate() -> None:
    masks = generate_masks(
        picture(300, 400), RoughSam().as_sam(), points_per_side=8, crop_n_layers=1, min_mask_region_area=50,
        max_mask_area_fraction=0.3, drop_small_masks=True,
    )  # fmt: skip
    f = masks.funnel
    dropped = [getattr(f, name) for name in f.__dataclass_fields__ if name.startswith("dropped")]
    assert f.candidates - sum(dropped) == f.kept == len(masks)
    assert all(d > 0 for d in dropped[:6])


def test_masks_over_the_area_fraction_go_before_nms() -> None:
    everything = DiscSam(radius=2000, iou=(0.99, 0.95, 0.95))
    assert generate_masks(picture(64, 64), everything.as_sam(), points_per_side=1).area_K.max() == 64 * 64
    kept = generate_masks(picture(64, 64), everything.as_sam(), points_per_side=1, max_mask_area_fraction=0.95)
    assert len(kept) == 1
    assert kept.area_K.max() < 0.95 * 64 * 64


def test_masks_all_of_small_regions_go_or_keep_their_largest() -> None:
    small = DiscSam(radius=20, iou=(0.99, 0.1, 0.1))
    keeping = generate_masks(picture(100, 100), small.as_sam(), points_per_side=2, min_mask_region_area=500)
    dropping = generate_masks(
        picture(100, 100), small.as_sam(), points_per_side=2, min_mask_region_area=500, drop_small_masks=True
    )
    assert len(keeping) == 4
    assert len(dropping) == 0
    assert dropping.funnel.dropped_small == 4


def test_between_crops_the_deeper_or_the_smaller_crop_wins() -> None:
    discs = DiscSam(radius=100, iou=(0.99, 0.1, 0.1))
    by_layer = generate_masks(
        picture(301, 301), discs.as_sam(), points_per_side=3, crop_n_layers=1, rank_crops_by="layer"
    )
    layers = [by_layer.crops[c].layer for c in by_layer.crop_K]
    assert layers == sorted(layers, reverse=True)
    by_area = generate_masks(picture(301, 301), discs.as_sam(), points_per_side=3, crop_n_layers=1)
    areas = [by_area.crops[c].box.size.pixels for c in by_area.crop_K]
    assert areas == sorted(areas)


@pytest.mark.parametrize("size", [(1, 1), (3, 10000), (10000, 3), (1, 2), (2, 1), (7, 5)])
@pytest.mark.parametrize("layers", [0, 2])
def test_tiny_and_thin_images_are_normal(size: tuple[int, int], layers: int) -> None:
    masks = generate_masks(
        picture(*size), RoughSam().as_sam(), points_per_side=3, crop_n_layers=layers, min_mask_region_area=2
    )
    for record in masks.to_dicts():
        assert record["segmentation"]["size"] == list(size)
        assert 0 <= record["area"] <= size[0] * size[1]
    assert int(masks.runs_R.sum()) == len(masks) * size[0] * size[1]


@pytest.mark.parametrize(
    "settings", [{}, {"crop_n_layers": 1}, {"min_mask_region_area": 100}, {"stability_score_thresh": 0.0}]
)
def test_images_without_masks_are_normal(settings: dict) -> None:
    masks = generate_masks(picture(50, 70), NothingSam().as_sam(), points_per_side=3, **settings)
    if settings.get("stability_score_thresh") == 0.0:
        assert masks.area_K.tolist() == [0] * len(masks)
        assert masks.to_dicts()[0]["bbox"] == [0, 0, 0, 0]
    else:
        assert len(masks) == 0
        assert masks.to_dicts() == []


def test_an_iterator_gives_a_result_for_each_image_in_order() -> None:
    failure = Failure(ImageRef(1, "b", ""), Status.DECODE_ERROR, "broken")
    images = [picture(20, 30), failure, PIL.Image.new("L", (30, 20))]
    results = list(generate_masks(iter(images), DiscSam().as_sam(), points_per_side=1))
    assert [type(r) for r in results] == [MaskSet, Failure, MaskSet]
    assert results[1] is failure


def test_an_image_without_memory_fails_alone() -> None:
    class Greedy(DiscSam):
        def encode(self, batch):  # type: ignore[no-untyped-def]
            if batch.crops[0].box.size.width == 99:
                raise torch.OutOfMemoryError("tried to allocate 80 GiB")
            return DiscSam.encode(self, batch)

    results = list(generate_masks([picture(9, 99), picture(9, 9)], Greedy().as_sam(), points_per_side=1))
    assert isinstance(results[0], Failure)
    assert results[0].status is Status.OUT_OF_MEMORY
    assert "99x9" in results[0].reason
    assert isinstance(results[1], MaskSet)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        torch.zeros(4, 4, 3, dtype=torch.uint8),
        DiscSam(),
        None,
        3,
    ],
    ids=lambda given: f"{type(given).__name__} {getattr(given, 'shape', '')}",
)
def test_what_is_no_image_is_refused_with_what_it_is(pixels: Any) -> None:
    with pytest.raises(AmgError, match=r"wanted uint8 RGB of shape \(height, width, 3\)"):
        generate_masks(pixels, DiscSam().as_sam())


@pytest.mark.parametrize("path", ["photo.jpg", Path("photo.jpg")], ids=["str", "Path"])
def test_a_path_is_refused_with_what_opens_it(path: Any) -> None:
    with pytest.raises(AmgError, match=r"came as \w+; .* open a file with PIL\.Image\.open"):
        generate_masks(path, DiscSam().as_sam())
    with pytest.raises(AmgError, match=r"open a file with PIL\.Image\.open"):
        list(generate_masks([path], DiscSam().as_sam()))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_pixels_of_more_than_8_bits_are_not_cut_off_silently(dtype: Any) -> None:
    deep = PIL.Image.fromarray(np.full((30, 40), 300, dtype))
    for label in (partial(generate_masks, sam=DiscSam().as_sam()), amg.MaskGeneration(DiscSam().as_sam())):
        with pytest.raises(ConfigError, match=r"a PIL image of mode (I;16|I|F), .* wanted 8 bits a channel"):
            label(deep)


def test_what_is_no_model_is_refused_by_all_that_take_one() -> None:
    for use in (partial(generate_masks, picture(4, 4)), amg.MaskGenerator, amg.MaskGeneration, amg.Predictor):
        with pytest.raises(ConfigError, match=r"sam: a str; wanted a model, as amg\.load_sam"):
            use("mobile-sam")


def test_other_wrong_arguments_are_named() -> None:
    sam = DiscSam().as_sam()
    with pytest.raises(ConfigError, match=r"settings: a dict; wanted GenerateSettings, or each by its name"):
        generate_masks(picture(4, 4), sam, {"points_per_side": 2})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"candidates_mb is -1; wanted 0 or more"):
        generate_masks(picture(4, 4), sam, candidates_mb=-1)
    with pytest.raises(ConfigError, match=r"output_mode is 'rle', wanted one of coco_rle"):
        amg.MaskGenerator(sam, output_mode="rle")
    with pytest.raises(ConfigError, match=r"bbox_style is 'coco', wanted one of"):
        amg.MaskGenerator(sam, bbox_style="coco")


def test_settings_come_by_name_or_as_an_object_but_not_both() -> None:
    with pytest.raises(AmgError, match="came twice"):
        generate_masks(picture(4, 4), DiscSam().as_sam(), generate_settings({}), points_per_side=1)
    with pytest.raises(ConfigError, match=r"did you mean 'generate\.points_per_side'"):
        generate_masks(picture(4, 4), DiscSam().as_sam(), points_per_sid=1)


def test_the_class_of_the_original_package_has_its_arguments_and_records() -> None:
    generator = amg.MaskGenerator(DiscSam().as_sam(), points_per_side=2, pred_iou_thresh=0.9, output_mode="binary_mask")
    records = generator.generate(picture(60, 80))
    assert records[0]["segmentation"].shape == (60, 80)
    assert records[0]["segmentation"].dtype == np.bool_
    assert set(records[0]) == {
        "segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box",
    }  # fmt: skip
    own = MaskGenerator(DiscSam().as_sam(), point_grids=[[[0.5, 0.5]]]).generate(picture(60, 80))
    assert own[0]["point_coords"] == [[40, 30]]
