"""The arithmetic between logits and run lengths, each fast routine against its obvious twin."""

import numpy as np
import pytest
import torch

from amg.config import generate_settings
from amg.geometry import Box, Crop, Size, fit_longest_side, plan_crops
from amg.kernels import resample
from amg.masks import grid, nms, regions, runs
from amg.masks.score import Lens, Shelf, inclusive, near_crop_edge, score, stability_score
from amg.tensors import Candidates, MaskLogits, Points
from tests import reference

SIZES = [
    (1200, 1800), (1800, 1200), (480, 640), (1, 1), (3, 1000), (1000, 3), (1, 5000), (300, 451),
    (2001, 1500), (77, 77), (1024, 1024), (256, 256), (2250, 1500), (1025, 1023), (16, 4000),
]  # fmt: skip


def lens_of(height: int, width: int) -> Lens:
    size = Size(height, width)
    return Lens.on(Crop(Box(0, 0, width, height), 0, 0), fit_longest_side(size, 1024), size)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_scores_and_bits_equal_the_full_size_masks(height: int, width: int, noise: float) -> None:
    rng = np.random.default_rng(height * 7 + width)
    logits = reference.smooth_logits(rng, 4, noise=noise)
    lens = lens_of(height, width)
    dense = reference.full_size_logits(logits, lens.image)
    scores = resample.score(logits.numpy(), np.arange(len(logits)), lens.x, lens.y, low=-1.0, middle=0.0, high=1.0)
    np.testing.assert_array_equal(scores.count_K3, reference.counts(dense, (-1.0, 0.0, 1.0)))
    for k, mask in enumerate((dense > 0).numpy()):
        assert scores.box_K4[k].tolist() == reference.box(mask)
        if not mask.any():
            continue
        row, column, rows, columns = resample.windows(scores.box_K4[k : k + 1], lens.x, lens.y)[0]
        part = logits[k, row : row + rows, column : column + columns].numpy()
        window = runs.draw(
            part.reshape(-1), np.array([row, column, rows, columns]), scores.box_K4[k], lens, threshold=0
        )
        bits, x0, y0 = window
        drawn = np.zeros((height, width), np.bool_)
        drawn[y0 : y0 + bits.shape[1], x0 : x0 + bits.shape[0]] = bits.T
        np.testing.assert_array_equal(drawn, mask)


@pytest.mark.parametrize("thresholds", [(-0.5, 0.25, 1.0), (0.0, 0.0, 0.0), (-3.0, -2.0, -1.0), (-1000.0, 0.0, 1000.0)])
def test_scores_hold_at_other_thresholds(thresholds: tuple[float, float, float]) -> None:
    logits = reference.smooth_logits(np.random.default_rng(5), 6, noise=0.3)
    lens = lens_of(333, 500)
    dense = reference.full_size_logits(logits, lens.image)
    scores = resample.score(
        logits.numpy(),
        np.arange(len(logits)),
        lens.x,
        lens.y,
        low=thresholds[0],
        middle=thresholds[1],
        high=thresholds[2],
    )
    np.testing.assert_array_equal(scores.count_K3, reference.counts(dense, thresholds))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, -1e30, 1e30])
def test_constant_logits_on_a_threshold_count_as_not_above_it(value: float) -> None:
    logits = torch.full((1, 256, 256), value)
    lens = lens_of(30, 40)
    dense = reference.full_size_logits(logits, lens.image)
    scores = resample.score(logits.numpy(), np.arange(len(logits)), lens.x, lens.y, low=-1.0, middle=0.0, high=1.0)
    np.testing.assert_array_equal(scores.count_K3, reference.counts(dense, (-1.0, 0.0, 1.0)))


def test_run_lengths_equal_those_counted_pixel_by_pixel() -> None:
    rng = np.random.default_rng(1)
    for _ in range(300):
        height, width = (int(v) for v in rng.integers(1, 9, 2))
        mask = rng.random((height, width)) < rng.choice([0.1, 0.5, 0.9, 1.0])
        x0, y0, x1, y1 = reference.box(mask)
        bits = mask[y0:y1, x0:x1].T.astype(np.uint8)
        assert runs.run_lengths((bits, x0, y0), Size(height, width)).tolist() == reference.run_lengths(mask)


def test_nms_equals_torchvision_and_its_twin() -> None:
    from torchvision.ops import nms as torchvision_nms

    rng = np.random.default_rng(2)
    for n in (0, 1, 2, 50, 400):
        corner = rng.integers(0, 60, (n, 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, 40, (n, 2))], axis=1)
        scores = rng.random(n).astype(np.float32)
        kept = nms.nms(boxes, scores, max_iou=0.5)
        theirs = torchvision_nms(torch.tensor(inclusive(boxes), dtype=torch.float32), torch.tensor(scores), 0.5)
        assert kept.tolist() == theirs.tolist()
        assert kept.tolist() == reference.nms(inclusive(boxes).astype(np.float32), scores, 0.5)


def test_ties_in_nms_keep_the_incoming_order_above_a_thousand_boxes() -> None:
    n = 1500
    boxes = np.stack([np.arange(n) * 20, np.zeros(n), np.arange(n) * 20 + 10, np.full(n, 10)], axis=1).astype(np.int64)
    scores = (np.arange(n) % 3 == 0).astype(np.float32)
    assert nms.nms(boxes, scores, max_iou=0.7).tolist() == sorted(range(n), key=lambda k: k % 3 != 0)


def test_boxes_without_area_are_never_suppressed() -> None:
    boxes = np.array([[5, 5, 6, 6], [5, 5, 6, 6], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)
    assert nms.nms(boxes, np.array([1, 0.5, 1, 0.5], np.float32), max_iou=0.1).tolist() == [0, 2, 1, 3]


def test_the_edge_rule_equals_the_reference() -> None:
    from segment_anything.utils.amg import is_box_near_crop_edge

    rng = np.random.default_rng(3)
    image = Size(700, 900)
    for crop in plan_crops(image, n_layers=2, overlap_ratio=512 / 1500):
        size = crop.box.size
        corner = rng.integers(0, [size.width - 1, size.height - 1], (200, 2))
        end = np.minimum(corner + rng.integers(0, 300, (200, 2)), [size.width - 1, size.height - 1])
        boxes = np.concatenate([corner, end], axis=1)
        edges = [crop.box.x0, crop.box.y0, crop.box.x1, crop.box.y1]
        theirs = is_box_near_crop_edge(torch.tensor(boxes), edges, [0, 0, image.width, image.height])
        np.testing.assert_array_equal(near_crop_edge(boxes, crop.box, image), theirs.numpy())


def test_grids_equal_the_reference_and_have_at_least_one_point() -> None:
    from segment_anything.utils.amg import build_all_layer_point_grids

    theirs = build_all_layer_point_grids(32, 2, 2)
    ours = grid.layer_grids(
        generate_settings({"points_per_side": 32, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2})
    )
    assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    tiny = grid.layer_grids(
        generate_settings({"points_per_side": 2, "crop_n_layers": 3, "crop_n_points_downscale_factor": 2})
    )
    assert [len(g) for g in tiny] == [4, 1, 1, 1]


def test_own_grids_are_placed_in_the_crop() -> None:
    points = grid.place(np.array([[0.25, 0.5]]), Crop(Box(100, 10, 300, 110), 1, 3), Size(512, 1024))
    assert points.xy_image_P2.tolist() == [[150, 60]]
    assert points.xy_P2.tolist() == [[256, 256]]


def test_stability_of_exactly_the_threshold_passes_and_nothing_over_nothing_fails() -> None:
    stability = stability_score(np.array([[20, 20, 19], [0, 0, 0], [20, 19, 18]]))
    np.testing.assert_array_equal(stability >= np.float32(0.95), [True, False, False])


def test_cleaning_equals_opencv_on_the_whole_image() -> None:
    rng = np.random.default_rng(4)
    outcomes = set()
    for _ in range(400):
        height, width = (int(v) for v in rng.integers(1, 24, 2))
        coarse = rng.random((height // 3 + 1, width // 3 + 1)) < rng.choice([0.15, 0.5, 0.85])
        mask = coarse.repeat(3, 0).repeat(3, 1)[:height, :width] ^ (rng.random((height, width)) < 0.05)
        min_area = int(rng.integers(1, 40))
        x0, y0, x1, y1 = reference.box(mask)
        window = (mask[y0:y1, x0:x1].T.astype(np.uint8), x0, y0)
        cleaned = regions.clean(window, Size(height, width), min_area=min_area)
        wanted, changed, small = reference.clean(mask, min_area)
        drawn = np.zeros((height, width), np.bool_)
        bits, x0, y0 = cleaned.window
        drawn[y0 : y0 + bits.shape[1], x0 : x0 + bits.shape[0]] = bits.T
        np.testing.assert_array_equal(drawn, wanted)
        assert (cleaned.changed, cleaned.small) == (changed, small)
        assert regions.bounding_box(cleaned.window).tolist() == reference.box(wanted)
        outcomes.add((changed, small))
    assert outcomes == {(False, False), (True, False), (True, True)}


def masks_of(logits: torch.Tensor, iou: list[float]) -> MaskLogits:
    n = len(iou) // 3
    points = Points(
        torch.zeros(n, 2, dtype=torch.float64),
        torch.zeros(n, 2, dtype=torch.float64),
        torch.arange(n, dtype=torch.int32),
    )
    return MaskLogits(logits.view(n, 3, 256, 256), torch.tensor(iou).view(n, 3), points)


def test_each_filter_counts_what_it_drops() -> None:
    sharp = torch.full((6, 256, 256), -10.0)
    sharp[:, 100:150, 100:150] = 10.0
    sharp[1] = 10.0  # the whole image: too large
    sharp[2, 60:200, 60:200] = torch.linspace(-1.5, 1.5, 140)  # not stable
    sharp[4, 40:60, :40] = 10.0  # runs into the crop's left edge, which is not the image's
    masks = masks_of(sharp, [0.9, 0.9, 0.9, 0.8, 0.9, 0.95])
    image, crop = Size(1000, 1500), Crop(Box(500, 0, 1500, 1000), 1, 2)
    settings = generate_settings({"max_mask_area_fraction": 0.6})
    candidates, funnel = score(masks, Lens.on(crop, Size(1024, 1024), image), settings, Shelf(10**6))
    assert candidates.crop_K.tolist() == [2, 2]
    assert list(zip(candidates.point_index_K.tolist(), candidates.mask_index_K.tolist(), strict=True)) == [
        (0, 0),
        (1, 2),
    ]
    assert (funnel.candidates, funnel.dropped_predicted_iou, funnel.dropped_stability) == (6, 1, 1)
    assert (funnel.dropped_max_area, funnel.dropped_crop_edge) == (1, 1)


def test_candidates_survive_selection_and_joining_with_their_logits() -> None:
    logits = reference.smooth_logits(np.random.default_rng(6), 6)
    lens = lens_of(200, 300)
    settings = generate_settings({"stability_score_thresh": 0, "pred_iou_thresh": 0})
    candidates, _ = score(masks_of(logits, [1.0] * 6), lens, settings, Shelf(10**6))
    assert len(candidates) == 6
    again = Candidates.concat([candidates.select(torch.tensor([4, 1])), candidates.select(torch.tensor([0]))])
    assert again.mask_index_K.tolist() == [1, 1, 0]
    for k, source in enumerate([4, 1, 0]):
        row, column, rows, columns = again.window_K4[k].tolist()
        start = int(again.start_K[k])
        kept = again.logits_V[start : start + rows * columns].view(rows, columns)
        assert torch.equal(kept, logits[source, row : row + rows, column : column + columns])


def test_what_has_no_room_is_marked_and_the_rest_is_kept() -> None:
    logits = reference.smooth_logits(np.random.default_rng(6), 6)
    settings = generate_settings({"stability_score_thresh": 0, "pred_iou_thresh": 0})
    candidates, _ = score(masks_of(logits, [1.0] * 6), lens_of(200, 300), settings, Shelf(100_000))
    held = candidates.start_K >= 0
    assert 0 < int(held.sum()) < 6
    assert len(candidates.logits_V) <= 100_000
    assert candidates.select(torch.arange(6)).start_K[~held].tolist() == [-1] * int((~held).sum())
