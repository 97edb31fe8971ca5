"""A GPU with little memory: a bound is kept, less is done at once, and the masks are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import amg
from amg.config import load_config
from amg.generate import as_image
from amg.run.local import open_label, run_local
from amg.run.progress import Silent
from amg.sam import weights
from amg.values import Image, MaskSet, Status
from tests.bench.agreement import agree
from tests.gpu.photos import GRID, photos, pixels

pytestmark = pytest.mark.gpu

MB = 2**20


def fraction_of(megabytes: float, device: torch.device) -> float:
    return megabytes * MB / torch.cuda.get_device_properties(device).total_memory


def needed_mb(sam: amg.Sam, **settings: object) -> float:
    """What a photo needs beside what is there before it."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    amg.generate_masks(pixels(photos()[0]), sam, **settings)
    return torch.cuda.max_memory_reserved() / MB


def test_a_worker_takes_no_more_than_its_share(cuda: torch.device) -> None:
    config = load_config(overrides={"memory.fraction": fraction_of(300, cuda), "run.threads": 2})
    open_label(weights.fetch("mobile-sam"), config, "cuda:0")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(400 * MB, dtype=torch.uint8, device=cuda)
    assert torch.cuda.memory_reserved(cuda) <= 300 * MB


def test_where_memory_is_short_less_is_done_at_once_and_the_masks_are_the_same(cuda: torch.device) -> None:
    sam = amg.load_sam("mobile-sam", device=cuda)
    settings = {**GRID, "points_per_batch": 256}
    wanted = amg.generate_masks(pixels(photos()[0]), sam, **settings)
    most, least = needed_mb(sam, **settings), needed_mb(sam, **{**settings, "points_per_batch": 16})
    assert most > 1.5 * least, "the chunk does not decide the memory: this test bounds the wrong thing"
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction_of((most + least) / 2, cuda), cuda)
    found = amg.generate_masks(pixels(photos()[0]), sam, **settings)
    assert torch.cuda.memory_reserved(cuda) / MB <= (most + least) / 2
    seen = agree(found.to_dicts(), wanted.to_dicts())
    assert seen.ours == seen.theirs == seen.matched
    assert seen.worst_iou > 0.999


def test_an_image_that_is_too_much_alone_becomes_a_failure_and_the_others_are_labeled(cuda: torch.device) -> None:
    sam = amg.load_sam("mobile-sam", device=cuda)
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(cuda) + 8 * MB) / total(cuda), cuda)
    failures = list(amg.generate_masks([pixels(path) for path in photos()[:2]], sam, **GRID))
    assert [getattr(result, "status", None) for result in failures] == [Status.OUT_OF_MEMORY] * 2
    torch.cuda.set_per_process_memory_fraction(1.0, cuda)
    (result,) = amg.generate_masks([pixels(photos()[0])], sam, **GRID)
    assert isinstance(result, MaskSet) and len(result)


def total(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory


def test_a_job_within_a_bound_ends_with_every_row(tmp_path: Path, cuda: torch.device) -> None:
    named = {
        "run.device": "cuda",
        "memory.fraction": fraction_of(6000, cuda),
        **{f"generate.{name}": value for name, value in GRID.items()},
    }
    summary = run_local(
        [str(photos()[0].parent)], str(tmp_path / "out"), load_config(overrides=named), observer=Silent()
    )
    assert summary.rows == {"ok": len(photos())}
    assert torch.cuda.max_memory_reserved(cuda) <= 6000 * MB


def test_photos_of_many_sizes_leave_no_pieces(cuda: torch.device) -> None:
    """What is held after many sizes is hardly more than what the largest one alone needs."""
    sam = amg.load_sam("mobile-sam", device=cuda)
    images: list[Image] = [as_image(pixels(path)) for path in photos()]
    largest = max(images, key=lambda image: image.pixels_HWC.size)
    for _ in amg.generate_masks([largest] * 4, sam, **GRID):
        pass
    alone = torch.cuda.max_memory_reserved(cuda)
    for _ in range(3):
        for result in amg.generate_masks(images, sam, **GRID):
            assert isinstance(result, MaskSet)
    assert torch.cuda.max_memory_reserved(cuda) <= 1.5 * alone
