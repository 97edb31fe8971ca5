"""The loop for GPUs on a CPU: the same masks as the host's, whatever shares a batch, in whatever order threads end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

import amg
from amg import generate
from amg.config import load_config
from amg.errors import ConfigError
from amg.generate import generate_masks
from amg.generation import device as on_device
from amg.run.leases import Lease
from amg.run.local import run_local
from amg.run.plan import Shard
from amg.run.progress import Silent
from amg.run.shard import Job, label_shard
from amg.sources.source import Source
from amg.storage.url import open_store
from amg.streams import Busy, Streams
from amg.tensors import Batch, Embedding, MaskLogits, Points
from amg.values import Failure, ImageRef, MaskSet, Status
from tests import parity, reference_amg
from tests.fakes import DiscSam, FakeSam, NothingSam, RedSam, RoughSam, label_with
from tests.test_generate import CASES, picture
from tests.test_memory import HungrySam
from tests.test_run import rows


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate_masks` does as on a GPU."""
    monkeypatch.setattr(generate, "scores_on_host", lambda kind: False)


def same(ours: MaskSet | Failure, wanted: MaskSet | Failure) -> bool:
    """All columns but the seconds."""
    assert isinstance(ours, MaskSet) and isinstance(wanted, MaskSet)
    names = [f.name for f in fields(MaskSet) if f.name != "seconds"]
    return all(np.array_equal(getattr(ours, name), getattr(wanted, name)) for name in names)


def grids(settings: dict) -> dict:
    return settings | (
        {"point_grids": [g.tolist() for g in settings["point_grids"]]} if "point_grids" in settings else {}
    )


@pytest.mark.parametrize("name", CASES)
def test_masks_are_those_of_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = grids(CASES[name])
    wanted = generate_masks(picture(260, 90), RoughSam().as_sam(), **settings)
    monkeypatch.setattr(generate, "scores_on_host", lambda kind: False)
    ours = generate_masks(picture(260, 90), RoughSam().as_sam(), **settings)
    assert len(wanted) > 0
    assert same(ours, wanted)


@pytest.mark.usefixtures("device")
def test_where_there_is_no_room_for_logits_survivors_are_decoded_again() -> None:
    few, many = RoughSam(), RoughSam()
    settings = {"points_per_side": 6, "points_per_batch": 5}
    without = generate_masks(picture(300, 200), few.as_sam(), candidates_mb=0, **settings)
    some = generate_masks(picture(300, 200), RoughSam().as_sam(), candidates_mb=8, **settings)
    enough = generate_masks(picture(300, 200), many.as_sam(), **settings)
    assert same(without, enough) and same(some, enough)
    assert sum(many.calls) == 36 < sum(few.calls)


@pytest.mark.usefixtures("device")
def test_an_image_without_masks_has_none() -> None:
    assert len(generate_masks(picture(30, 20), NothingSam().as_sam(), points_per_side=2)) == 0


@dataclass(slots=True)
class BatchedSam(RedSam):
    """Notes how many crops it was given, and how many places there were for them."""

    batches: list[tuple[int, int]] = field(default_factory=list)

    def encode(self, batch: Batch) -> Embedding:
        self.batches.append((len(batch), len(batch.pixels_N3SS)))
        return RedSam.encode(self, batch)


def pictures(count: int) -> list[NDArray[np.uint8]]:
    rng = np.random.default_rng(7)
    return [rng.integers(0, 256, (40 + n, 50, 3), dtype=np.uint8) for n in range(count)]


@pytest.mark.usefixtures("device")
def test_crops_of_several_images_share_batches_that_are_always_full() -> None:
    sam = BatchedSam()
    settings = {"points_per_side": 2, "crop_n_layers": 1, "encoder_batch": 4}
    found = list(generate_masks(pictures(5), sam.as_sam(), **settings))
    assert sorted(sam.batches) == [(1, 4)] + [(4, 4)] * 6
    alone = [generate_masks(p, RedSam().as_sam(), **settings) for p in pictures(5)]
    for row, (ours, wanted) in enumerate(zip(found, alone, strict=True)):
        assert isinstance(ours, MaskSet) and ours.ref.row == row
        assert np.array_equal(ours.runs_R, wanted.runs_R)


@pytest.mark.usefixtures("device")
def test_results_come_in_order_and_failures_pass_through() -> None:
    missing = Failure(ImageRef(2, "gone", ""), Status.MISSING, "it is gone")
    items = [*pictures(2), missing, *pictures(9)]
    found = list(generate_masks(items, RedSam().as_sam(), points_per_side=2, encoder_batch=2))
    assert found[2] is missing
    sizes = [result.size.height for result in found if isinstance(result, MaskSet)]
    assert sizes == [40, 41, *range(40, 49)]


@pytest.mark.usefixtures("device")
def test_large_images_do_not_wait_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "GROUP_BYTES", 40 * 50 * 3)
    sam = BatchedSam()
    list(generate_masks(pictures(3), sam.as_sam(), points_per_side=2, encoder_batch=4))
    assert sam.batches == [(1, 4)] * 3


@pytest.mark.usefixtures("device")
def test_some_images_are_under_way_at_once() -> None:
    together = threading.Barrier(on_device.GROUPS, timeout=20)

    class Waits(RedSam):
        def encode(self, batch: Batch) -> Embedding:
            together.wait()
            return RedSam.encode(self, batch)

    assert (
        len(list(generate_masks(pictures(on_device.GROUPS), Waits().as_sam(), points_per_side=2, encoder_batch=1))) == 3
    )


@pytest.mark.usefixtures("device")
def test_no_more_images_are_taken_than_are_under_way() -> None:
    taken = 0

    def images() -> Iterator[NDArray[np.uint8]]:
        nonlocal taken
        for each in pictures(20):
            taken += 1
            yield each

    results = generate_masks(images(), RedSam().as_sam(), points_per_side=2, encoder_batch=2)
    next(results)
    assert taken <= on_device.GROUPS * 2
    results.close()


@dataclass(slots=True)
class Crowded(HungrySam):
    """Has memory for so many crops at once, and notes how many it was given."""

    crops: int = 64
    batches: list[int] = field(default_factory=list)

    def encode(self, batch: Batch) -> Embedding:
        self.batches.append(len(batch.pixels_N3SS))
        if len(batch.pixels_N3SS) > self.crops:
            raise self.error
        return FakeSam.encode(self, batch)


@pytest.mark.usefixtures("device")
def test_what_fits_is_remembered_for_the_next_images(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_device, "GROUPS", 1)
    sam = Crowded(error=torch.OutOfMemoryError("full"), crops=2, room=4)
    found = list(generate_masks(pictures(3), sam.as_sam(), encoder_batch=8, points_per_batch=16, points_per_side=4))
    assert all(isinstance(result, MaskSet) for result in found)
    assert sam.batches[:3] == [8, 4, 2]
    calls = sam.calls
    first_that_fits = calls.index(4)
    assert max(calls[:first_that_fits]) == 16
    assert max(calls[first_that_fits:]) == 4
    calm = generate_masks(pictures(3), RoughSam().as_sam(), points_per_side=4)
    assert all(same(ours, wanted) for ours, wanted in zip(found, calm, strict=True))


@pytest.mark.usefixtures("device")
def test_an_image_that_is_too_much_fails_alone() -> None:
    class OneIsTooMuch(HungrySam):
        def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
            if image.crops[0].box.size.width == 99:
                raise MemoryError("the memory is full")
            return HungrySam.decode(self, image, points, workspace)

    images = [picture(9, 50), picture(9, 99), picture(9, 50)]
    results = list(generate_masks(images, OneIsTooMuch().as_sam(), points_per_side=2))
    assert [type(result) for result in results] == [MaskSet, Failure, MaskSet]
    assert isinstance(results[1], Failure)
    assert results[1].reason == "no memory left for an image of 99x9: the memory is full"
    with pytest.raises(MemoryError, match="the memory is full"):
        generate_masks(images[1], OneIsTooMuch().as_sam(), points_per_side=2)


@pytest.mark.usefixtures("device")
def test_an_error_of_the_model_ends_the_iteration() -> None:
    class Breaks(RedSam):
        def encode(self, batch: Batch) -> Embedding:
            raise RuntimeError("the model is broken")

    with pytest.raises(RuntimeError, match="the model is broken"):
        list(generate_masks(pictures(4), Breaks().as_sam(), points_per_side=2))


def test_wanted_is_one_crop_at_least() -> None:
    with pytest.raises(ConfigError, match="encoder_batch is 0; wanted 1 or more"):
        generate_masks(picture(4, 4), RedSam().as_sam(), encoder_batch=0)


@pytest.mark.usefixtures("device")
def test_seconds_say_how_long_the_device_had_work() -> None:
    (masks,) = generate_masks([picture(60, 80)], DiscSam().as_sam(), points_per_side=2)
    assert isinstance(masks, MaskSet)
    assert 0 < masks.seconds["gpu_busy"] <= sum(masks.seconds[name] for name in ("encode", "prompt", "score", "draw"))


def test_time_in_which_two_threads_work_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    marks = iter([0.0, 10.0, 13.0, 12.0, 15.0, 20.0, 21.0])
    monkeypatch.setattr("amg.streams.time.perf_counter", lambda: next(marks))
    busy = Busy(torch.device("cpu"))
    added = []
    for _ in range(3):
        with busy.work():
            pass
        added.append(busy.settle())
    assert added == [3.0, 2.0, 1.0]
    assert busy.settle() == 0.0


def test_devices_without_float64_leave_the_scores_to_the_host() -> None:
    assert [kind for kind in ("cpu", "cuda", "mps") if not generate.scores_on_host(kind)] == ["cuda"]


def test_on_a_cpu_there_are_no_streams() -> None:
    with Streams(torch.device("cpu")).own():
        assert torch.zeros(1).device.type == "cpu"


def write_pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for n, pixels in enumerate(pictures(count)):
        PIL.Image.fromarray(pixels).save(folder / f"{n}.png")
    return folder


def test_a_job_has_the_hosts_rows_and_tells_how_long_the_gpu_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_with(RedSam(), monkeypatch, tmp_path)
    photos = write_pictures(tmp_path / "photos", 7)
    config = load_config(overrides={"generate.points_per_side": 2, "shards.images_per_shard": 3, "run.device": "cpu"})
    host = run_local([str(photos)], str(tmp_path / "host"), config, observer=Silent())
    monkeypatch.setattr(generate, "scores_on_host", lambda kind: False)
    there = run_local([str(photos)], str(tmp_path / "there"), config, observer=Silent())
    assert rows(tmp_path / "there") == rows(tmp_path / "host")
    assert host.gpu_idle is None
    assert there.gpu_idle is not None and 0 < there.gpu_idle < 1


@pytest.mark.usefixtures("device")
def test_tried_alone_no_image_is_begun_before_the_one_before_it_is_done(tmp_path: Path) -> None:
    files = sorted(write_pictures(tmp_path / "photos", 4).iterdir())

    class Files:
        def read(self, ref: ImageRef) -> bytes:
            return files[ref.row].read_bytes()

    refs = tuple(ImageRef(row, file.name, str(file)) for row, file in enumerate(files))
    store = open_store(tmp_path / "out", create=True)
    job = Job(cast(Source, Files()), store, load_config(), {"weights.sha256": "0"})
    heard: list[tuple[str, int]] = []
    label_shard(
        Lease(Shard(0, refs), isolated=True),
        job,
        partial(generate_masks, sam=RedSam().as_sam(), points_per_side=2),
        seen=lambda result: heard.append(("seen", result.ref.row)),
        begin=lambda ref: heard.append(("begun", ref.row)),
    )
    assert heard == [(word, row) for row in range(4) for word in ("begun", "seen")]


def test_with_real_weights_masks_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    sam = amg.load_sam(parity.find_weights(None))
    with PIL.Image.open(reference_amg.PHOTOS / "coffee.jpg") as photo:
        pixels = np.asarray(photo.convert("RGB"))
    settings = {"points_per_side": 5}
    with one_core():  # on several, the order in which the host's threads add is another
        wanted = generate_masks(pixels, sam, **settings)
        monkeypatch.setattr(generate, "scores_on_host", lambda kind: False)
        ours = generate_masks(pixels, sam, encoder_batch=1, **settings)
    assert len(wanted) > 1
    assert same(ours, wanted)


@contextmanager
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_with_triton_kernels_masks_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"points_per_side": 1, "min_mask_region_area": 100, "stability_score_thresh": 0.5}
    wanted = generate_masks(picture(30, 40), RoughSam().as_sam(), **settings)
    monkeypatch.setattr(generate, "scores_on_host", lambda kind: False)
    ours = generate_masks(picture(30, 40), RoughSam(kernels="triton").as_sam(), **settings)
    assert len(wanted) > 1
    assert same(ours, wanted)
