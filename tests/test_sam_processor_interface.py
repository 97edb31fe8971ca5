"""`SamProcessor` against the class of the same name in transformers: equal prompts, and what is refused by name."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from numpy.typing import NDArray

from amg import SamImageProcessor, SamProcessor
from amg.errors import ConfigError
from amg.sam.batch_feature import BatchFeature
from tests.same import assert_same

SIZES = {"size": {"longest_edge": 96}, "pad_size": {"height": 96, "width": 96}}
Settings = dict[str, Any]


def pixels(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), dtype=np.uint8)


def both(**settings: Any) -> tuple[SamProcessor, Any]:
    settings = SIZES | settings
    return (
        SamProcessor(SamImageProcessor(**settings)),
        transformers.SamProcessor(transformers.SamImageProcessor(**settings)),
    )


ONE, TWO = [pixels(40, 61)], [pixels(40, 61), pixels(80, 33)]
POINTS: dict[str, tuple[list[Any], Settings]] = {
    "one point": (ONE, {"input_points": [[[20, 30]]]}),
    "one point, label": (ONE, {"input_points": [[[20, 30]]], "input_labels": [[1]]}),
    "background": (ONE, {"input_points": [[[20, 30], [4.5, 7.25]]], "input_labels": [[1, 0]]}),
    "float labels": (ONE, {"input_points": [[[20, 30], [4, 7]]], "input_labels": [[1.0, 0.0]]}),
    "prompts": (ONE, {"input_points": [[[[20, 30]], [[1, 2]], [[60, 39]]]], "input_labels": [[[1], [0], [1]]]}),
    "prompts of two": (
        TWO,
        {
            "input_points": [[[[2, 3], [4, 5]], [[1, 2], [3, 4]]], [[[20, 3], [14, 5]], [[1, 22], [3, 34]]]],
            "input_labels": [[[1, 0], [1, 1]], [[0, 1], [-1, -10]]],
        },
    ),
    "two images": (TWO, {"input_points": [[[20, 30]], [[11, 70]]], "input_labels": [[1], [0]]}),
    "unequal": (TWO, {"input_points": [[[2, 3]], [[1, 2], [3, 4]]], "input_labels": [[1], [1, 0]]}),
    "unequal the other way": (TWO, {"input_points": [[[2, 3], [5, 6]], [[1, 2]]], "input_labels": [[1, 0], [0]]}),
    "unequal, own padding": (
        TWO,
        {"input_points": [[[2, 3]], [[1, 2], [3, 4]]], "input_labels": [[1], [1, 0]], "point_pad_value": -20},
    ),
    "three prompts on one image": (
        ONE,
        {"input_points": [[[2, 3]], [[4, 5]], [[6, 7]]], "input_labels": [[1], [1], [0]]},
    ),
    "tensor": (ONE, {"input_points": torch.tensor([[[20, 30]]]), "input_labels": torch.tensor([[1]])}),
    "float tensor": (ONE, {"input_points": torch.tensor([[[[20.1, 30.7]]]]), "input_labels": torch.tensor([[[1]]])}),
    "box": (ONE, {"input_boxes": [[[1, 2, 30, 39]]]}),
    "boxes": (TWO, {"input_boxes": [[[1.3, 2, 30, 39], [0, 0, 61, 40]], [[5, 6, 7, 8], [0, 0, 33, 80]]]}),
    "boxes of another depth": (ONE, {"input_boxes": [[[[1, 2, 30, 39]], [[3, 4, 5, 6]]]]}),
    "box tensor": (ONE, {"input_boxes": torch.tensor([[[1.37, 2.11, 30.9, 39.99]]], dtype=torch.float64)}),
    "three boxes on one image": (ONE, {"input_boxes": [[[1, 2, 3, 4]], [[2, 3, 4, 5]], [[6, 7, 8, 9]]]}),
    "point and box": (
        ONE,
        {"input_points": [[[20, 30]]], "input_labels": [[1]], "input_boxes": [[[1, 2, 30, 39]]]},
    ),
    "maps": (ONE, {"segmentation_maps": [pixels(40, 61)[..., 0]], "input_boxes": [[[1, 2, 30, 39]]]}),
    "images_kwargs": (ONE, {"images_kwargs": {"do_normalize": False}, "input_points": [[[20, 30]]]}),
    "other size for one call": (ONE, {"size": {"longest_edge": 64}, "input_points": [[[20, 30]]]}),
    "no resize": (ONE, {"do_resize": False, "input_points": [[[20, 30]]]}),
}


@pytest.mark.parametrize("name", POINTS)
def test_prompts_are_the_same(name: str) -> None:
    images, prompts = POINTS[name]
    ours, theirs = both()
    assert_same(
        ours(images, return_tensors="pt", **copy.deepcopy(prompts)),
        theirs(images, return_tensors="pt", **copy.deepcopy(prompts)),
    )


@pytest.mark.parametrize("return_tensors", [None, "np"])
@pytest.mark.parametrize("name", POINTS)
def test_prompts_in_lists_and_arrays_are_the_same(name: str, return_tensors: str | None) -> None:
    images, prompts = POINTS[name]
    ours, theirs = both()
    assert_same(
        ours(images, return_tensors=return_tensors, **copy.deepcopy(prompts)),
        theirs(images, return_tensors=return_tensors, **copy.deepcopy(prompts)),
    )


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 33), (1, 7), (683, 1024)])
@pytest.mark.parametrize("edge", [96, 100, 1024])
def test_prompts_are_scaled_to_the_same_place(size: tuple[int, int], edge: int) -> None:
    settings = {"size": {"longest_edge": edge}, "pad_size": {"height": edge, "width": edge}}
    ours, theirs = both(**settings)
    height, width = size
    points = [[[0, 0], [width, height], [width / 3, height / 7]]]
    boxes = [[[0, 0, width, height], [width / 3, height / 7, width / 2, height / 2]]]
    prompts: Settings = {"input_points": points, "input_boxes": boxes, "return_tensors": "pt"}
    if size[0] == 1:  # theirs takes such an array for channels first
        prompts["input_data_format"] = "channels_last"
    assert_same(ours(pixels(*size), **prompts), theirs(pixels(*size), **prompts))


def test_the_arguments_have_their_places() -> None:
    ours, theirs = both()
    given = (pixels(40, 61), None, pixels(40, 61)[..., 0], [[[2, 3]]], [[1]], [[[1, 2, 3, 4]]])
    assert_same(ours(*given), theirs(*given))
    with_pil = PIL.Image.fromarray(pixels(40, 61))
    assert_same(ours(with_pil, input_points=[[[2, 3]]]), theirs(with_pil, input_points=[[[2, 3]]]))


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda nested: tuple(map(tuple, nested))])
def test_arrays_tensors_and_tuples_are_prompts_like_lists(kind: Any) -> None:
    ours, _ = both()
    points, labels, boxes = [[[20, 30], [1, 2]]], [[1, 0]], [[[1, 2, 30, 39]]]
    wanted = ours(ONE, input_points=points, input_labels=labels, input_boxes=boxes, return_tensors="pt")
    found = ours(
        ONE, input_points=kind(points), input_labels=kind(labels), input_boxes=kind(boxes), return_tensors="pt"
    )
    assert_same(found, wanted)


def test_points_of_unequal_number_are_filled_up_wherever_they_are() -> None:
    ours, _ = both()
    points = [[[[2, 3]], [[4, 5], [6, 7], [8, 9]]], [[[1, 1]]]]
    found = ours(TWO, input_points=points, input_labels=[[[1], [0, 1, 1]], [[1]]], return_tensors="pt")
    assert found["input_points"].shape == (2, 2, 3, 2)
    assert found["input_labels"].tolist() == [[[1, -10, -10], [0, 1, 1]], [[1, -10, -10], [-10, -10, -10]]]
    assert (found["input_points"][found["input_labels"] == -10] == -10).all()
    alone = ours(TWO[1], input_points=[[[1, 1]]], return_tensors="pt")
    assert torch.equal(found["input_points"][1, 0, 0], alone["input_points"][0, 0, 0])


def test_points_of_unequal_number_without_labels_are_foreground() -> None:
    ours, _ = both()
    for return_tensors, shape in (("pt", (2, 1, 3)), (None, (2, 3))):
        found = ours(TWO, input_points=[[[2, 3]], [[1, 2], [3, 4], [5, 6]]], return_tensors=return_tensors)
        assert tuple(found["input_labels"].shape) == shape
        assert found["input_labels"].ravel().tolist() == [1, -10, -10, 1, 1, 1]


def test_what_was_passed_in_is_left_as_it_is() -> None:
    ours, _ = both()
    prompts = copy.deepcopy(POINTS["unequal"][1])
    ours(TWO, **prompts)
    assert prompts == POINTS["unequal"][1]


NAN = float("nan")
WRONG: dict[str, tuple[list[Any], Settings, str]] = {
    "no batch": (ONE, {"input_points": [[20, 30]]}, r"input_points: shape \(1, 2\); wanted \(images, points, 2\)"),
    "no numbers": (ONE, {"input_points": [[["20", "30"]]]}, r"input_points: .* wanted numbers of shape \(images"),
    "a point alone": (ONE, {"input_points": [20, 30]}, r"input_points: shape \(2,\); wanted \(images, points, 2\)"),
    "a number": (ONE, {"input_points": 20}, "input_points: a int; wanted nested lists"),
    "too deep": (ONE, {"input_points": [[[[[2, 3]]]]]}, r"input_points: shape \(1, 1, 1, 1, 2\); wanted"),
    "array without batch": (ONE, {"input_points": np.ones((4, 2))}, r"input_points: shape \(4, 2\); wanted"),
    "three numbers": (
        ONE,
        {"input_points": [[[2, 3, 4]]]},
        r"input_points: shape \(1, 1, 3\); wanted finite numbers of",
    ),
    "ragged point": (ONE, {"input_points": [[[2, 3], [4]]]}, r"input_points: shape \(1, 2, 1-2\); wanted"),
    "words": (ONE, {"input_points": [[["a", "b"]]]}, r"input_points: shape \(1, 1, 2\); wanted"),
    "nothing": (ONE, {"input_points": []}, r"input_points: shape \(0,\), an empty list; wanted"),
    "no point": (ONE, {"input_points": [[]]}, r"input_points: shape \(1, 0\); wanted"),
    "no point of two": (TWO, {"input_points": [[[1, 2]], []]}, r"input_points: shape \(2, 0-1, 2\); wanted"),
    "nan": (
        ONE,
        {"input_points": [[[NAN, 2]]]},
        r"input_points: shape \(1, 1, 2\) with NaN or infinite values; wanted",
    ),
    "inf tensor": (ONE, {"input_points": torch.full((1, 1, 2), torch.inf)}, r"input_points: .* with NaN or infinite"),
    "images": (TWO, {"input_points": [[[1, 2]]]}, r"input_points: shape \(1, 1, 2\); wanted .* with 2 images"),
    "more images": (TWO, {"input_points": [[[1, 2]]] * 3}, r"input_points: shape \(3, 1, 2\); wanted .* with 2 images"),
    "labels alone": (ONE, {"input_labels": [[1]]}, r"input_labels: shape \(1, 1\) without input_points; wanted points"),
    "labels flat": (
        ONE,
        {"input_points": [[[1, 2]]], "input_labels": [1]},
        r"input_labels: shape \(1,\); wanted one label for each point.*the points have \(1, 1\)",
    ),
    "label": (ONE, {"input_points": [[[1, 2]]], "input_labels": 1}, "input_labels: a int; wanted nested lists"),
    "labels too many": (
        ONE,
        {"input_points": [[[1, 2]]], "input_labels": [[1, 1]]},
        r"input_labels: shape \(1, 2\); wanted .* the points have \(1, 1\)",
    ),
    "labels too few": (
        TWO,
        {"input_points": [[[1, 2]], [[1, 2], [3, 4]]], "input_labels": [[1], [1]]},
        r"input_labels: shape \(2, 1\); wanted .* the points have \(2, 1-2\)",
    ),
    "labels of prompts": (
        ONE,
        {"input_points": [[[[1, 2]], [[3, 4]]]], "input_labels": [[1, 1]]},
        r"input_labels: shape \(1, 2\); wanted .* the points have \(1, 2, 1\)",
    ),
    "labels unknown": (
        ONE,
        {"input_points": [[[1, 2]]], "input_labels": [[7]]},
        r"input_labels: \[7.0\]; wanted 1 \(foreground\), 0 \(background\), -1 \(no point\) or -10 \(padding\)",
    ),
    "labels nothing": (ONE, {"input_points": [[[1, 2]]], "input_labels": []}, r"input_labels: shape \(0,\), an empty"),
    "box flat": (ONE, {"input_boxes": [[1, 2, 3, 4]]}, r"input_boxes: shape \(1, 4\); wanted \(images, boxes, 4\)"),
    "box tensor flat": (ONE, {"input_boxes": torch.ones(2, 4)}, r"input_boxes: shape \(2, 4\); wanted"),
    "box of three": (ONE, {"input_boxes": [[[1, 2, 3]]]}, r"input_boxes: shape \(1, 1, 3\); wanted finite numbers"),
    "box nothing": (ONE, {"input_boxes": [[]]}, r"input_boxes: shape \(1, 0\); wanted"),
    "box nan": (
        ONE,
        {"input_boxes": [[[1, 2, NAN, 4]]]},
        r"input_boxes: shape \(1, 1, 4\) with NaN or infinite values",
    ),
    "boxes unequal": (
        TWO,
        {"input_boxes": [[[1, 2, 3, 4]], [[1, 2, 3, 4], [5, 6, 7, 8]]]},
        r"input_boxes: shape \(2, 1-2, 4\); wanted .*as many boxes for every image",
    ),
    "boxes ragged": (ONE, {"input_boxes": [[[1, 2, 3, 4], [1, 2]]]}, r"input_boxes: shape \(1, 2, 2-4\); wanted"),
    "box outside": (
        ONE,
        {"input_boxes": [[[1, 2, 3, 4], [1, 2, 500, 39]]]},
        r"input_boxes\[0\]: \[1.0, 2.0, 500.0, 39.0\] lies 439 pixels outside its picture of 40 x 61; wanted 0 <= x",
    ),
    "box above": (TWO, {"input_boxes": [[[1, 2, 3, 4]], [[1, -9, 30, 39]]]}, r"input_boxes\[1\]: .* lies 9 pixels out"),
    "box as width": (ONE, {"input_boxes": [[[30, 20, 5, 5]]]}, "wanted x0 <= x1 and y0 <= y1, not x, y, width, height"),
    "text": (ONE, {"text": "a cat"}, "text: a str; SAM takes points, boxes and masks"),
    "setting": (ONE, {"input_point": [[[1, 2]]]}, "there is no setting 'input_point'"),
    "tensors": (ONE, {"return_tensors": "tf"}, "return_tensors: 'tf'; wanted"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_prompts_are_named_with_their_shape_and_the_shape_wanted(name: str) -> None:
    images, prompts, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        both()[0](images, **prompts)


def test_prompts_without_a_picture_are_refused() -> None:
    with pytest.raises(ConfigError, match="images: None; wanted the pictures that the prompts are for"):
        both()[0](input_points=[[[1, 2]]])


def test_a_box_may_reach_a_pixel_beyond_its_picture() -> None:
    ours, theirs = both()
    boxes = [[[-0.4, -1, 61.9, 41]]]
    assert_same(ours(ONE, input_boxes=boxes), theirs(ONE, input_boxes=boxes))


def test_folders_go_both_ways(tmp_path: Path) -> None:
    ours, theirs = both(do_normalize=False)
    assert [Path(path).name for path in ours.save_pretrained(tmp_path / "new")] == ["processor_config.json"]
    assert [Path(path).name for path in ours.save_pretrained(tmp_path / "old", layout="old")] == [
        "preprocessor_config.json"
    ]
    theirs.save_pretrained(tmp_path / "theirs")
    wanted = theirs(ONE, input_points=[[[2, 3]]], return_tensors="pt")
    for folder in ("new", "old", "theirs"):
        mine = SamProcessor.from_pretrained(str(tmp_path / folder))
        its = transformers.SamProcessor.from_pretrained(tmp_path / folder)
        assert mine.target_size == its.target_size == 96
        assert mine.to_dict() == ours.to_dict() == json.loads(its.to_json_string())
        assert_same(mine(ONE, input_points=[[[2, 3]]], return_tensors="pt"), wanted)
        assert_same(its(ONE, input_points=[[[2, 3]]], return_tensors="pt"), wanted)


def test_a_published_folder_of_the_old_layout_is_read(tmp_path: Path) -> None:
    """The file of facebook/sam-vit-base as of 2023, its values typed in."""
    published = {
        "do_convert_rgb": True, "do_normalize": True, "do_pad": True, "do_rescale": True, "do_resize": True,
        "image_mean": [0.485, 0.456, 0.406], "image_processor_type": "SamImageProcessor",
        "image_std": [0.229, 0.224, 0.225], "pad_size": {"height": 1024, "width": 1024},
        "processor_class": "SamProcessor", "resample": 2, "rescale_factor": 0.00392156862745098,
        "size": {"longest_edge": 1024},
    }  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(published))
    assert SamProcessor.from_pretrained(tmp_path).to_dict() == SamProcessor().to_dict()


def test_settings_by_name_win_over_the_folder(tmp_path: Path) -> None:
    both()[0].save_pretrained(tmp_path)
    processor = SamProcessor.from_pretrained(tmp_path, size={"longest_edge": 50}, local_files_only=True)
    assert processor.target_size == 50 and processor.image_processor.size == {"longest_edge": 50}


def test_a_name_on_the_hub_is_read_from_its_cache_without_a_network(tmp_path: Path) -> None:
    commit = "0" * 40
    snapshot = tmp_path / "models--someone--tiny-sam" / "snapshots" / commit
    both()[0].save_pretrained(snapshot, layout="old")
    refs = tmp_path / "models--someone--tiny-sam" / "refs"
    refs.mkdir()
    (refs / "main").write_text(commit)
    read = SamProcessor.from_pretrained("someone/tiny-sam", cache_dir=tmp_path, local_files_only=True)
    assert read.target_size == 96


def test_wrong_parts_and_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"image_processor: a dict; wanted amg.SamImageProcessor"):
        SamProcessor({"size": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layout: 'oldest'; wanted 'new'"):
        SamProcessor().save_pretrained(tmp_path, layout="oldest")  # type: ignore[arg-type]


def test_masks_and_names_are_asked_of_the_processor_too() -> None:
    ours, theirs = both()
    logits = torch.randn(1, 1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert_same(
        ours.post_process_masks(logits, [[40, 61]], [[63, 96]]),
        theirs.post_process_masks(logits, [[40, 61]], [[63, 96]]),
    )
    assert ours.model_input_names == theirs.model_input_names
    assert "longest_edge" in repr(ours) and "SamImageProcessor" in repr(ours.image_processor)


def test_processors_can_be_pickled() -> None:
    ours, _ = both()
    again = pickle.loads(pickle.dumps(ours))
    assert again.to_dict() == ours.to_dict() and again.target_size == ours.target_size


def test_the_batch_is_a_mapping_with_attributes() -> None:
    ours, _ = both()
    batch = ours(ONE, input_points=[[[2, 3]]], return_tensors="pt")
    assert isinstance(batch, BatchFeature)
    assert batch.pixel_values is batch["pixel_values"] and "input_points" in dir(batch)
    assert (lambda **named: sorted(named))(**batch) == sorted(batch)
    with pytest.raises(AttributeError, match="BatchFeature has no 'input_masks'; it has pixel_values"):
        _ = batch.input_masks
    assert_same(pickle.loads(pickle.dumps(batch)), batch)
    assert_same(copy.deepcopy(batch), batch)
    assert batch.pop("input_points") is not None and "input_points" not in batch


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ((torch.float16,), {}),
        (("meta",), {}),
        ((torch.device("meta"), torch.bfloat16), {}),
        (("cpu",), {"dtype": torch.float32}),
        ((), {"device": "meta", "non_blocking": True}),
    ],
)
def test_the_batch_moves_as_theirs_does(where: tuple[Any, ...], named: Settings) -> None:
    ours, theirs = both()
    prompts: Settings = {"input_points": [[[2, 3]]], "input_labels": [[1]], "return_tensors": "pt"}
    mine, its = ours(ONE, **prompts), theirs(ONE, **prompts)
    assert mine.to(*where, **named) is mine
    its.to(*where, **named)
    assert {k: (v.dtype, v.device.type) for k, v in mine.items()} == {
        k: (v.dtype, v.device.type) for k, v in its.items()
    }
    assert mine["input_labels"].dtype == torch.int64


def test_a_batch_of_lists_moves_its_tensors_and_leaves_the_rest() -> None:
    batch = both()[0](TWO).to("meta", torch.float16)
    assert [(v.device.type, v.dtype) for v in batch["pixel_values"]] == [("meta", torch.float16)] * 2
    assert batch["original_sizes"] == [(40, 61), (80, 33)]
    with pytest.raises(ConfigError, match=r"to\(\) got a tensor; wanted a device"):
        batch.to(torch.zeros(1))


def test_lists_become_tensors_later() -> None:
    ours, theirs = both()
    mine, its = ours(TWO, input_boxes=[[[1, 2, 3, 4]]] * 2), theirs(TWO, input_boxes=[[[1, 2, 3, 4]]] * 2)
    assert_same(mine.convert_to_tensors("pt"), its.convert_to_tensors("pt"))
