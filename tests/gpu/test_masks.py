"""Whole images on a GPU against the CPU: the masks of `parity`, how many of `fast`, and the same ones every time."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch

import amg
from amg.values import MaskSet
from tests.bench.agreement import agree, over_all
from tests.bench.on_gpu_rows import LEAST_MEAN_IOU, MOST_OTHER_COUNTS, compared
from tests.gpu.photos import GRID, photos, pixels, records_on_cpu
from tests.reference_amg import CASES

pytestmark = pytest.mark.gpu

MIN_F1 = 0.97


@pytest.fixture(scope="module")
def exact() -> amg.Sam:
    return amg.load_sam("mobile-sam", device="cuda")


def labeled(sam: amg.Sam, **settings: object) -> list[MaskSet]:
    results = list(amg.generate_masks((pixels(path) for path in photos()), sam, **settings))
    assert all(isinstance(result, MaskSet) for result in results), results
    return results  # type: ignore[return-value]


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_parity_gives_the_masks_of_the_cpu(kernels: Any) -> None:
    sam = amg.load_sam("mobile-sam", device="cuda", kernels=kernels)
    found = [masks.to_dicts(bbox_style="sa1b") for masks in labeled(sam, **GRID)]
    seen = compared(found, [records_on_cpu(path) for path in photos()])
    assert seen["images"] - seen["same_count"] <= MOST_OTHER_COUNTS
    assert seen["mean_iou"] >= LEAST_MEAN_IOU


@pytest.mark.parametrize("kernels", ["torch", "triton"])
def test_fast_gives_most_of_them(kernels: Any) -> None:
    sam = amg.load_sam("mobile-sam", device="cuda", precision="fast", kernels=kernels)
    found = [masks.to_dicts(bbox_style="sa1b") for masks in labeled(sam, **GRID)]
    total = over_all(agree(ours, records_on_cpu(path)) for ours, path in zip(found, photos(), strict=True))
    print(f"fast on a GPU with {kernels}: F1 {total.f1:.4f} at IoU 0.9, {total.ours} masks for {total.theirs}")
    assert total.f1 >= MIN_F1


def test_the_same_rows_come_every_time(exact: amg.Sam) -> None:
    names = [field.name for field in fields(MaskSet) if field.name != "seconds"]
    first, second = labeled(exact, **GRID), labeled(exact, **GRID)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names), one.ref


def test_an_image_does_not_depend_on_those_beside_it(exact: amg.Sam) -> None:
    together = labeled(exact, **GRID)
    for path, masks in zip(photos(), together, strict=True):
        alone = amg.generate_masks(pixels(path), exact, **GRID)
        assert np.array_equal(alone.runs_R, masks.runs_R), path.name


def test_crops_and_cleaning_give_the_masks_of_the_cpu(exact: amg.Sam) -> None:
    settings = CASES["crops1-cleanup-grid16"]
    path = photos()[0]
    cpu = amg.load_sam("mobile-sam")
    found, wanted = (amg.generate_masks(pixels(path), sam, **settings).to_dicts() for sam in (exact, cpu))
    seen = compared([found], [wanted])
    assert seen["same_count"] == 1
    assert seen["mean_iou"] >= LEAST_MEAN_IOU


def test_the_seconds_of_the_gpu_are_no_more_than_passed(exact: amg.Sam) -> None:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    results = labeled(exact, **GRID)
    torch.cuda.synchronize()
    end.record()
    end.synchronize()
    busy = sum(masks.seconds["gpu_busy"] for masks in results)
    assert 0 < busy <= 1.02 * begin.elapsed_time(end) / 1000
