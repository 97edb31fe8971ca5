"""What PyTorch makes of logits where they are, against the kernels of the host: not one pixel may differ."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from amg.geometry import Size, fit_longest_side
from amg.kernels import resample, runs, torch_resample, torch_runs
from amg.kernels.resample import Axis
from tests import reference

SIZES = [
    (600, 900), (900, 600), (480, 640), (1, 1), (2, 2), (3, 1000), (1000, 3), (1, 5000), (300, 451), (77, 77),
    (1024, 1024), (256, 256), (16, 4000), (50, 20), (1333, 1000),
]  # fmt: skip
PLACES = [("as the image", 0, 0, 0, 0), ("right", 5, 0, 0, 9), ("below", 0, 3, 3, 0), ("inside", 7, 2, 9, 8)]
"""Where a crop lies in its image: a name, the corner, rows and columns that the image has more."""


def axes_of(height: int, width: int) -> tuple[Axis, Axis]:
    resized = fit_longest_side(Size(height, width), 1024)
    return resample.plan_axis(width, resized.width), resample.plan_axis(height, resized.height)


def masks_of_all_kinds(height: int, width: int) -> Tensor:
    """A smooth and a rough blob, their opposites, a mask without a pixel, and one of all pixels."""
    rng = np.random.default_rng(height * 7 + width)
    blobs = torch.cat([reference.smooth_logits(rng, 1, noise=noise) for noise in (0.0, 0.5)])
    return torch.cat([blobs, -blobs, -blobs[:1].abs() - 2, blobs[:1].abs() + 2])


def check_scores(
    logits: Tensor, height: int, width: int, *, low: float = -1, middle: float = 0, high: float = 1
) -> None:
    x, y = axes_of(height, width)
    count, box = torch_resample.score(logits, x, y, low=low, middle=middle, high=high)
    wanted = resample.score(logits.numpy(), np.arange(len(logits)), x, y, low=low, middle=middle, high=high)
    assert count.dtype == box.dtype == torch.int64
    np.testing.assert_array_equal(count.numpy(), wanted.count_K3)
    np.testing.assert_array_equal(box.numpy(), wanted.box_K4)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_equal_those_on_the_host(height: int, width: int) -> None:
    check_scores(masks_of_all_kinds(height, width), height, width)


@pytest.mark.parametrize("thresholds", [(-0.5, 0.25, 1.0), (0.1, 0.1, 0.1), (-3.0, -2.0, -1.0), (-1000.0, 0.0, 1000.0)])
def test_scores_hold_at_other_thresholds(thresholds: tuple[float, float, float]) -> None:
    low, middle, high = thresholds
    check_scores(masks_of_all_kinds(333, 500), 333, 500, low=low, middle=middle, high=high)


@pytest.mark.parametrize(("height", "width"), [(60, 80), (270, 290), (7, 900)])
def test_values_on_a_threshold_are_evaluated_as_the_reference_does(height: int, width: int) -> None:
    """Logits of few whole numbers: no end of pixels are a threshold but for rounding, or exactly."""
    whole = torch.from_numpy(np.random.default_rng(width).integers(-2, 3, (3, 256, 256)).astype(np.float32))
    thirds = whole / 3
    flat = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1).expand(3, 256, 256)
    uneven = torch.nextafter(flat[::2], whole[::2])
    check_scores(torch.cat([whole, thirds, flat, uneven]), height, width)
    check_scores(thirds, height, width, low=-1 / 3, middle=0.1, high=1 / 3)


@pytest.mark.parametrize("size", [1e-30, 1e30, 3e38])
def test_small_and_large_logits_are_scored_alike(size: float) -> None:
    check_scores(signs() * size, 90, 120)


@pytest.mark.parametrize("size", [1e-45, 3e-45, 1e-40, 1e-38, 1.0])
def test_looking_closer_at_every_pixel_changes_nothing(size: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first two looks decide is what the third would have said, also where float32 has few digits left."""
    x, y = axes_of(90, 120)
    count, box = torch_resample.score(signs() * size, x, y, low=-size, middle=0, high=size / 2)
    monkeypatch.setattr(torch_resample, "ROUNDING", np.float32(1e9))
    closer_count, closer_box = torch_resample.score(signs() * size, x, y, low=-size, middle=0, high=size / 2)
    assert torch.equal(count, closer_count) and torch.equal(box, closer_box)


def signs() -> Tensor:
    """Masks of -1, 0 and 1; of 0 and 1; of -1 and 0."""
    drawn = torch.from_numpy(np.random.default_rng(8).integers(-1, 2, (2, 256, 256)).astype(np.float32))
    return torch.cat([drawn, drawn.abs(), -drawn.abs()])


def test_pieces_do_not_change_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_resample, "MASKS_AT_ONCE", 4)
    monkeypatch.setattr(torch_resample, "PIXELS_AT_ONCE", 1000)
    check_scores(masks_of_all_kinds(300, 451), 300, 451)


def test_no_masks_have_no_scores_and_no_runs() -> None:
    x, y = axes_of(30, 40)
    nothing = torch.zeros(0, 256, 256)
    count, box = torch_resample.score(nothing, x, y, low=-1, middle=0, high=1)
    assert count.shape == (0, 3) and box.shape == (0, 4)
    runs_R, offsets = torch_runs.run_lengths(nothing, box, x, y, threshold=0, corner=(0, 0), image=(30, 40))
    assert len(runs_R) == 0 and offsets.tolist() == [0]


def test_mixing_rounds_once_as_a_fused_multiplication_does() -> None:
    """Also where the sum of a product that just misses half a unit is rounded to float64 first."""
    rng = np.random.default_rng(9)
    w, a, b = (rng.standard_normal(20_000).astype(np.float32) for _ in range(3))
    w0, w1 = np.abs(w) % np.float32(1), np.float32(1) - np.abs(w) % np.float32(1)
    b[::2] *= np.float32(2) ** rng.integers(-60, 60, 10_000).astype(np.float32)
    tie = np.array([1, -1, 1, -1], np.float32)
    w0 = np.append(w0, tie * np.float32(2**-12 * (1 + 2**-23)))
    a = np.append(a, np.float32(2**-12 * (1 - 2**-23)) * np.array([1, 1, -1, -1], np.float32))
    w1, b = np.append(w1, tie), np.append(b, np.array([1, 1, -1, -1], np.float32) * np.float32(1 + 2**-23))
    wanted = np.array([resample._mix(*values) for values in zip(w0, a, w1, b, strict=True)], np.float32)
    found = torch_resample._mix(*(torch.from_numpy(v.astype(np.float32)) for v in (w0, a, w1, b)))
    np.testing.assert_array_equal(found.numpy(), wanted)
    in_float64 = (w0.astype(np.float64) * a + (w1 * b)).astype(np.float32)
    assert (in_float64[-4:] != wanted[-4:]).all()


def host_runs(
    logits: Tensor, box: Tensor, x: Axis, y: Axis, corner: tuple[int, int], image: tuple[int, int]
) -> list[int]:
    """Run lengths of one mask, by the kernels of the host."""
    if box[2] <= box[0]:
        return runs.run_lengths(np.zeros((0, 0), np.uint8), 0, 0, *image).tolist()
    row, column, rows, columns = (int(v) for v in resample.windows(box[None].numpy(), x, y)[0])
    part = logits[row : row + rows, column : column + columns].numpy()
    bits = resample.draw(part, (row, column), box.numpy(), x, y, threshold=0)
    return runs.run_lengths(bits, int(box[0]) + corner[0], int(box[1]) + corner[1], *image).tolist()


def check_runs(logits: Tensor, height: int, width: int, *, place: tuple[str, int, int, int, int]) -> None:
    _, left, top, more_rows, more_columns = place
    corner, image = (left, top), (height + more_rows, width + more_columns)
    x, y = axes_of(height, width)
    _, box = torch_resample.score(logits, x, y, low=-1, middle=0, high=1)
    found, offsets = torch_runs.run_lengths(logits, box, x, y, threshold=0, corner=corner, image=image)
    assert found.dtype == offsets.dtype == torch.int64
    assert offsets[0] == 0 and offsets[-1] == len(found)
    for k in range(len(logits)):
        assert found[offsets[k] : offsets[k + 1]].tolist() == host_runs(logits[k], box[k], x, y, corner, image)


@pytest.mark.parametrize("place", PLACES, ids=[p[0] for p in PLACES])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 1000), (1000, 3), (300, 451), (77, 77), (16, 4000)])
def test_run_lengths_equal_those_on_the_host(height: int, width: int, place: tuple[str, int, int, int, int]) -> None:
    check_runs(masks_of_all_kinds(height, width), height, width, place=place)


def test_run_lengths_of_values_on_the_threshold_equal_those_on_the_host() -> None:
    whole = torch.from_numpy(np.random.default_rng(11).integers(-1, 2, (4, 256, 256)).astype(np.float32))
    check_runs(whole, 130, 300, place=PLACES[0])


def test_pieces_do_not_change_the_run_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_runs, "BITS_AT_ONCE", 300 * 451 + 7)
    monkeypatch.setattr(torch_resample, "PIXELS_AT_ONCE", 1000)
    check_runs(masks_of_all_kinds(300, 451), 300, 451, place=PLACES[3])
    monkeypatch.setattr(torch_runs, "MASKS_AT_ONCE", 2)
    monkeypatch.setattr(torch_runs, "BITS_AT_ONCE", 2**25)
    check_runs(masks_of_all_kinds(40, 30), 40, 30, place=PLACES[3])


def test_boxes_that_cut_a_mask_cut_its_runs() -> None:
    """What is outside the box is not drawn, as on the host."""
    x, y = axes_of(64, 48)
    logits, box = torch.full((1, 256, 256), 5.0), torch.tensor([[10, 20, 13, 30]])
    found, _ = torch_runs.run_lengths(logits, box, x, y, threshold=0, corner=(0, 0), image=(64, 48))
    assert found.tolist() == [10 * 64 + 20, 10, 54, 10, 54, 10, 64 * 48 - (12 * 64 + 30)]
    assert found.tolist() == host_runs(logits[0], box[0], x, y, (0, 0), (64, 48))


def test_an_axis_is_copied_to_a_device_once() -> None:
    x, _ = axes_of(30, 40)
    device = torch.device("cpu")
    assert torch_resample.on_device(x, device) is torch_resample.on_device(x, device)
