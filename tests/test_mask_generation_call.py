"""`MaskGeneration` against the steps of the `mask-generation` pipeline of transformers, on networks of known masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from numpy.typing import NDArray

from amg import MaskGeneration, SamImageProcessor, SamProcessor, generate_masks
from amg.errors import ConfigError, SourceError
from amg.geometry import Box
from tests.fakes import DiscSam, FakeSam, NothingSam, RoughSam
from tests.same import assert_same

PHOTOS = Path(__file__).parent / "photos"
MODEL_DEFAULTS = {
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "mask_threshold": 0.0,
    "stability_score_offset": 1.0,
}


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pipeline(image: NDArray[np.uint8], fake: FakeSam, **named: Any) -> dict[str, Any]:
    """What the pipeline does, step by step, on the class of transformers that does its work."""
    processor = transformers.SamImageProcessor()
    filters = MODEL_DEFAULTS | {name: value for name, value in named.items() if name in MODEL_DEFAULTS}
    crops = (named.get("crops_n_layers", 0), 512 / 1500, named.get("points_per_crop", 8), 1)
    boxes, points, cut, _ = processor.generate_crop_boxes(image, 1024, *crops)
    found = []
    for number, crop in enumerate(cut):
        drawn = [
            fake.draw(np.round(xy, 2), Box(0, 0, *crop.shape[:0:-1]).size)
            for xy in points[0, :, number].double().numpy()
        ]
        logits, scores = torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn])
        sizes = processor(crop, return_tensors="pt", input_data_format="channels_first")
        masks = processor.post_process_masks(
            logits[None], sizes["original_sizes"], sizes["reshaped_input_sizes"], binarize=False
        )
        found.append(processor.filter_masks(masks[0], scores, image.shape[:2], boxes[number], *filters.values()))
    kept = [record for masks, _, _ in found for record in masks]
    scores, kept_boxes = (torch.cat([part[column] for part in found]) for column in (1, 2))
    names = ("masks", "scores", "rle_mask", "bounding_boxes")
    made = processor.post_process_for_mask_generation(kept, scores, kept_boxes, named.get("crops_nms_thresh", 0.7))
    return dict(zip(names, made, strict=True))


BOTH = {"output_rle_mask": True, "output_bboxes_mask": True}


@pytest.mark.parametrize("size", [(60, 80), (90, 64)])
@pytest.mark.parametrize(
    "named",
    [
        {},
        {"pred_iou_thresh": 0.95, "stability_score_thresh": 0.8},
        {"pred_iou_thresh": 0.0, "stability_score_offset": 2.5, "crops_nms_thresh": 0.4},
        {"mask_threshold": 0.5, "points_per_crop": 5, "points_per_batch": 3},
    ],
    ids=str,
)
def test_masks_scores_run_lengths_and_boxes_are_the_pipelines(size: tuple[int, int], named: dict[str, Any]) -> None:
    image = pixels(*size)
    found = MaskGeneration(RoughSam().as_sam())(image, **({"points_per_crop": 8} | named), **BOTH)
    wanted = pipeline(image, RoughSam(), **named)
    assert len(wanted["masks"]) > 1
    assert_same(found, wanted)


def test_with_crops_the_same_objects_are_found() -> None:
    """Which of two doubles from two crops stays is not the pipeline's choice; where no doubles are, all is equal."""
    image, fake = pixels(60, 80), DiscSam(radius=12.0, iou=(0.99, 0.98, 0.97))
    named = {"crops_n_layers": 1, "crops_nms_thresh": 1.0, "stability_score_thresh": 0.0, "points_per_crop": 3}
    found = MaskGeneration(fake.as_sam())(image, **named, **BOTH)
    wanted = pipeline(image, fake, **named)
    kinds = [
        sorted((tuple(r["counts"]), round(float(s), 6)) for r, s in zip(o["rle_mask"], o["scores"], strict=True))
        for o in (found, wanted)
    ]
    assert len(kinds[0]) > 20 and set(kinds[0]) == set(kinds[1])


def test_every_downscale_factor_works() -> None:
    fake = DiscSam()
    named = {"crops_n_layers": 1, "points_per_crop": 9, "crop_n_points_downscale_factor": 2}
    found = MaskGeneration(fake.as_sam())(pixels(200, 160), **named)
    wanted = generate_masks(
        pixels(200, 160), fake.as_sam(), points_per_side=9, crop_n_layers=1, crop_n_points_downscale_factor=2
    )
    assert len(found["masks"]) == len(wanted) > 0


def test_a_mask_exactly_as_stable_as_the_threshold_stays() -> None:
    masks = generate_masks(pixels(60, 80), RoughSam().as_sam(), points_per_side=8, stability_score_thresh=0.5)
    threshold = float(np.sort(masks.stability_K)[len(masks) // 2])
    named = {
        "points_per_crop": 8,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": threshold,
        "crops_nms_thresh": 1.0,
    }
    found, wanted = (
        MaskGeneration(RoughSam().as_sam())(pixels(60, 80), **named),
        pipeline(pixels(60, 80), RoughSam(), **named),
    )
    assert len(found["masks"]) > len(wanted["masks"])


def test_the_best_come_first_and_masks_belong_to_their_scores() -> None:
    found = MaskGeneration(DiscSam().as_sam())(pixels(60, 80), points_per_crop=4, crops_n_layers=1, **BOTH)
    assert (found["scores"].diff() <= 0).all() and found["scores"].dtype == torch.float32
    for mask, record, (x0, y0, x1, y1) in zip(found["masks"], found["rle_mask"], found["bounding_boxes"], strict=True):
        assert mask.dtype == torch.bool and mask.shape == (60, 80) and record["size"] == [60, 80]
        assert sum(record["counts"][1::2]) == int(mask.sum())
        rows, columns = torch.nonzero(mask, as_tuple=True)
        assert [columns.min(), rows.min(), columns.max(), rows.max()] == [x0, y0, x1, y1]


def test_without_wishes_there_are_masks_and_scores_alone() -> None:
    assert list(MaskGeneration(DiscSam().as_sam())(pixels(60, 80), points_per_crop=2)) == ["masks", "scores"]


def test_nothing_found_is_a_result() -> None:
    found = MaskGeneration(NothingSam().as_sam())(pixels(60, 80), points_per_crop=2, **BOTH)
    assert found["masks"] == [] and found["rle_mask"] == []
    assert found["scores"].shape == (0,) and found["bounding_boxes"].shape == (0, 4)


def test_paths_pictures_arrays_and_lists_give_the_same(tmp_path: Path) -> None:
    image = pixels(60, 80)
    PIL.Image.fromarray(image).save(tmp_path / "a.png")
    generator = MaskGeneration(DiscSam().as_sam(), points_per_crop=4)
    wanted = generator(image)
    sources = [tmp_path / "a.png", str(tmp_path / "a.png"), PIL.Image.fromarray(image), image]
    for source in sources:
        assert_same(generator(source), wanted)
    assert_same(generator(sources, batch_size=2, num_workers=1), [wanted] * 4)
    lazily = generator(iter(sources))
    assert not isinstance(lazily, list)
    assert_same(list(lazily), [wanted] * 4)


def test_pictures_are_turned_upright() -> None:
    turned = PIL.Image.fromarray(pixels(60, 80))
    turned.getexif()[0x0112] = 6
    found = MaskGeneration(DiscSam().as_sam(), points_per_crop=2)(turned)
    assert found["masks"][0].shape == (80, 60)


def test_arguments_of_the_call_win_over_those_of_the_generator() -> None:
    fake = DiscSam()
    generator = MaskGeneration(fake.as_sam(), points_per_crop=2, points_per_batch=4)
    generator(pixels(60, 80))
    generator(pixels(60, 80), points_per_crop=4, points_per_batch=5)
    assert fake.calls == [4, 5, 5, 5, 1]


def test_our_own_settings_go_through() -> None:
    generator = MaskGeneration(DiscSam().as_sam(), point_grids=[[(0.5, 0.5)]])
    assert len(generator(pixels(60, 80), crops_nms_thresh=1.0, stability_score_thresh=0.0)["masks"]) == 3


def test_a_whole_network_finds_what_the_generator_finds() -> None:
    from tests.sam_reference import mobile_pair

    _, sam = mobile_pair()
    image = PIL.Image.open(PHOTOS / "coffee.jpg").convert("RGB").resize((160, 120))
    named = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_batch": 4}
    found = MaskGeneration(sam, SamProcessor())(image, points_per_crop=3, **named)
    wanted = generate_masks(np.asarray(image), sam, points_per_side=3, **named)
    assert len(found["masks"]) == len(wanted) > 0
    assert sorted(int(mask.sum()) for mask in found["masks"]) == sorted(wanted.area_K.tolist())


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"points_per_side": 3}, "there is no argument 'points_per_side'.*arguments: points_per_batch"),
        ({"pred_iou_tresh": 0.5}, "there is no argument 'pred_iou_tresh'; did you mean 'pred_iou_thresh'"),
        ({"max_hole_area": 4}, "there is no argument 'max_hole_area'"),
        ({"points_per_batch": 0}, "generate.points_per_batch is 0"),
        ({"crops_n_layers": -1}, "generate.crop_n_layers is -1"),
        ({"stability_score_thresh": float("nan")}, "generate.stability_score_thresh is nan"),
    ],
)
def test_wrong_arguments_are_named(named: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskGeneration(DiscSam().as_sam())(pixels(6, 8), **named)
    with pytest.raises(ConfigError, match=message):
        MaskGeneration(DiscSam().as_sam(), **named)


def test_what_is_no_picture_is_named() -> None:
    generator = MaskGeneration(DiscSam().as_sam())
    with pytest.raises(ConfigError, match="image: a int; wanted a path"):
        generator(3)  # type: ignore[arg-type]
    with pytest.raises(SourceError, match=r"'missing.png' is no picture that can be read"):
        generator("missing.png")


def test_a_processor_that_the_generator_would_not_follow_is_refused() -> None:
    model = DiscSam().as_sam()
    assert MaskGeneration(model, image_processor=SamImageProcessor()).image_processor.do_pad
    with pytest.raises(ConfigError, match=r"processor: image_mean \[0.5, 0.5, 0.5\]; the generator wants"):
        MaskGeneration(model, SamProcessor(SamImageProcessor(image_mean=[0.5, 0.5, 0.5])))
    with pytest.raises(ConfigError, match=r"processor: size {'longest_edge': 512}; the generator wants"):
        MaskGeneration(model, SamImageProcessor(size={"longest_edge": 512}))
