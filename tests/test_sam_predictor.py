"""`Predictor` against MobileSAM's `SamPredictor`, the same random weights in both."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from amg.errors import ConfigError
from amg.sam.predictor import Predictor
from tests.sam_reference import assert_near, mobile_pair, mobile_sam

WHOLE_MODEL = 3e-5
"""Of the range: the encoder's rounding, seen through the decoder and two resamplings."""


def photo(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@cache
def predictors(size: tuple[int, int], image_format: str) -> tuple[Any, Predictor]:
    reference, sam = mobile_pair()
    theirs, ours = mobile_sam.SamPredictor(reference), Predictor(sam)
    for predictor in (theirs, ours):
        predictor.set_image(photo(*size), image_format)
    return theirs, ours


def prompts(size: tuple[int, int]) -> dict[str, dict[str, Any]]:
    height, width = size
    points = {"point_coords": np.array([[width * 0.3, height * 0.6], [5, 7]]), "point_labels": np.array([1, 0])}
    box = {"box": np.array([3, 4, width - 9, height // 2])}
    mask = {"mask_input": 9 * np.random.default_rng(1).standard_normal((1, 256, 256)).astype(np.float32)}
    return {
        "point": {"point_coords": np.array([[11, 13]]), "point_labels": np.array([1])},
        "points and padding": {
            "point_coords": np.array([[width * 0.3, height * 0.6], [5, 7], [0, 0]]),
            "point_labels": np.array([1, 0, -1]),
        },
        "box": box,
        "points, box and mask": points | box | mask,
        "points, single mask": points | {"multimask_output": False},
        "mask, single mask": mask | {"multimask_output": False},
        "nothing": {},
    }


@pytest.mark.parametrize("kind", prompts((1, 1)))
@pytest.mark.parametrize(("size", "image_format"), [((97, 61), "RGB"), ((211, 1031), "BGR")])
def test_predict_gives_the_originals_results(size: tuple[int, int], image_format: str, kind: str) -> None:
    theirs, ours = predictors(size, image_format)
    prompt = prompts(size)[kind]
    wanted_logits, wanted_iou, wanted_low_res = theirs.predict(**prompt, return_logits=True)
    logits, iou, low_res = ours.predict(**prompt, return_logits=True)
    assert logits.shape[1:] == size
    for found, wanted in ((logits, wanted_logits), (iou, wanted_iou), (low_res, wanted_low_res)):
        assert found.dtype == np.float32
        assert_near(torch.from_numpy(found), torch.from_numpy(wanted), WHOLE_MODEL)


def test_masks_are_the_logits_above_zero() -> None:
    _, ours = predictors((97, 61), "RGB")
    masks, *_ = ours.predict([[11, 13]], [1])
    logits, *_ = ours.predict([[11, 13]], [1], return_logits=True)
    assert masks.dtype == np.bool_
    assert np.array_equal(masks, logits > 0)


def test_the_embedding_is_the_originals() -> None:
    theirs, ours = predictors((97, 61), "RGB")
    assert_near(ours.get_image_embedding(), theirs.get_image_embedding())


def test_lists_are_taken_as_well_as_arrays() -> None:
    _, ours = predictors((97, 61), "RGB")
    from_lists = ours.predict([[11, 13]], [1], [1, 2, 30, 40])
    from_arrays = ours.predict(np.array([[11, 13]]), np.array([1]), np.array([[1, 2, 30, 40]]))
    assert all(np.array_equal(a, b) for a, b in zip(from_lists, from_arrays, strict=True))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ({"point_coords": [1, 2], "point_labels": [1]}, r"point_coords: shape \(2,\); wanted .* \(N, 2\)"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, r"point_labels: shape \(2,\); wanted .* \(1,\)"),
        ({"point_coords": [[1, 2]]}, "only point_coords came"),
        ({"point_labels": [1]}, "only point_labels came"),
        ({"point_coords": [[1, 2]], "point_labels": [5]}, "wanted 1 "),
        ({"point_coords": [[1, np.nan]], "point_labels": [1]}, "finite"),
        ({"point_coords": "here", "point_labels": [1]}, "point_coords: str"),
        ({"box": [1, 2, 3]}, r"box: shape \(3,\); wanted .* \(4,\)"),
        ({"box": np.zeros((2, 4))}, r"box: shape \(2, 4\)"),
        ({"box": [30, 40, 10, 20]}, r"box: \[30.0, 40.0, 10.0, 20.0\]; wanted x0 <= x1 and y0 <= y1"),
        ({"box": [61, 2, 70, 40]}, r"box: .* lies outside the image of 97 x 61"),
        ({"box": [-9, -9, 0, 40]}, r"box: .* lies outside the image of 97 x 61"),
        ({"mask_input": np.zeros((256, 256))}, r"mask_input: shape \(256, 256\); wanted .* \(1, 256, 256\)"),
    ],
)
def test_wrong_prompts_are_refused_with_what_came_and_what_was_wanted(prompt: dict[str, Any], said: str) -> None:
    _, ours = predictors((97, 61), "RGB")
    with pytest.raises(ConfigError, match=said):
        ours.predict(**prompt)


@pytest.mark.parametrize(
    ("image", "image_format", "said"),
    [
        (np.zeros((4, 5), np.uint8), "RGB", r"shape \(4, 5\); wanted"),
        (np.zeros((4, 5, 4), np.uint8), "RGB", r"shape \(4, 5, 4\); wanted"),
        (np.zeros((4, 5, 3)), "RGB", "float64 .* wanted uint8"),
        (np.zeros((0, 5, 3), np.uint8), "RGB", r"shape \(0, 5, 3\)"),
        (np.zeros((4, 5, 3), np.uint8), "HSV", "image_format 'HSV'"),
        ("photo.jpg", "RGB", "image: the path 'photo.jpg'; wanted pixels"),
    ],
)
def test_wrong_images_are_refused(image: Any, image_format: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Predictor(mobile_pair()[1]).set_image(image, image_format)


def test_prompts_need_an_image() -> None:
    predictor = Predictor(mobile_pair()[1])
    with pytest.raises(ConfigError, match="no image is set"):
        predictor.predict([[1, 2]], [1])
    with pytest.raises(ConfigError, match="no image is set"):
        predictor.get_image_embedding()
