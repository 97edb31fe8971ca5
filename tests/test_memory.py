"""What a job may take of the machine's memory: bounded by settings, and what happens where there is not enough."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from numpy.typing import NDArray

from amg.generate import generate_masks
from amg.generation.memory import OUT_OF_MEMORY
from amg.tensors import Embedding, MaskLogits, Points
from amg.values import Failure, MaskSet, Status
from tests import parity, reference_amg
from tests.bench import memory
from tests.bench.children import ROOT
from tests.bench.options import Options
from tests.fakes import RoughSam

GRID = {"points_per_side": 8, "crop_n_layers": 1, "points_per_batch": 16}

BYTES_PER_PIXEL = 7
"""Of an image while it is decoded: Pillow's 4 and the array's 3; once it is labeled, the array's and drawn masks'."""

MEASURE = """
import sys
from pathlib import Path
import numpy as np
from amg.decode import decode
from amg.generate import generate_masks
from amg.values import ImageRef
from tests.bench.children import reset_high_water, status_mb
from tests.fakes import DiscSam

everything = DiscSam(radius=2000).as_sam()
settings = dict(points_per_side=2, crop_n_layers=1, pred_iou_thresh=0)
generate_masks(np.zeros((90, 120, 3), np.uint8), everything, settings=None, **settings)
for file in sys.argv[1:]:
    ref, data = ImageRef(0, file, file), Path(file).read_bytes()
    began_mb, could = status_mb("VmRSS"), reset_high_water()
    masks = generate_masks(decode(ref, data), everything, **settings)
    assert len(masks) and int(masks.area_K.max()) == masks.size.pixels
    print(status_mb("VmHWM") - began_mb if could else "", flush=True)
    del masks, data
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
def test_a_larger_image_takes_a_few_bytes_a_pixel_more(tmp_path: Path) -> None:
    """Decoded, turned, cut into crops, resized and with masks that cover all of it: never a second copy on top."""
    small, large = (2000, 2000), (5000, 4800)
    files = []
    for mode, orientation in (("RGB", 1), ("RGB", 6), ("CMYK", 3)):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        for size in (small, large):
            files.append(tmp_path / f"{mode}-{orientation}-{size[0]}.jpg")
            PIL.Image.linear_gradient("L").resize(size).convert("RGB").convert(mode).save(files[-1], exif=exif)
    command = [sys.executable, "-W", "ignore", "-c", MEASURE, *files]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    if len(said) < len(files):
        pytest.skip("this system does not let a process set its peak back")
    peaks_mb = [float(text) for text in said]
    more_bytes = [(peaks_mb[n + 1] - peaks_mb[n]) * 2**20 for n in range(0, len(files), 2)]
    more_pixels = large[0] * large[1] - small[0] * small[1]
    assert max(more_bytes) / more_pixels < BYTES_PER_PIXEL + 1


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is read from /proc")
@pytest.mark.parametrize("megapixels", memory.BARS_GB)
@pytest.mark.parametrize(
    "settings", [{}, {"points_per_side": 8, "crop_n_layers": 1, "min_mask_region_area": 100}], ids=["default", "crops"]
)
def test_the_command_labels_large_images_in_bounded_memory(megapixels: int, settings: dict[str, int]) -> None:
    weights = parity.find_weights(None)
    options = Options(
        photo=reference_amg.PHOTOS / "studio.jpg", photos=reference_amg.PHOTOS, weights=weights,
        settings=settings, threads=2, repeats=1, reference_records=None,
    )  # fmt: skip
    found = memory.peak(options, megapixels)
    assert found["ok"]
    assert found["masks"] > 5
    assert found["peak_gb"] <= memory.BARS_GB[megapixels]


@dataclass(slots=True)
class HungrySam(RoughSam):
    """Has memory for so many points at once."""

    room: int = 64
    error: BaseException = field(default_factory=MemoryError)

    def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
        if len(points) > self.room:
            self.calls.append(len(points))
            raise self.error
        return RoughSam.decode(self, image, points, workspace)


def picture(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("error", [MemoryError("no room"), torch.OutOfMemoryError("no room")])
@pytest.mark.parametrize(("room", "tried"), [(16, [16]), (8, [16, 8]), (3, [16, 8, 4, 2]), (1, [16, 8, 4, 2, 1])])
def test_chunks_are_halved_until_they_fit_and_the_masks_are_the_same(
    error: BaseException, room: int, tried: list[int]
) -> None:
    assert isinstance(error, OUT_OF_MEMORY)
    expected = generate_masks(picture(120, 160), RoughSam().as_sam(), **GRID)
    hungry = HungrySam(room=room, error=error)
    found = generate_masks(picture(120, 160), hungry.as_sam(), **GRID)
    assert list(dict.fromkeys(hungry.calls)) == tried
    assert np.array_equal(found.runs_R, expected.runs_R)
    assert found.funnel == expected.funnel


def test_smaller_chunks_do_not_keep_the_memory_of_larger_ones() -> None:
    seen: dict[int, set[int]] = {}
    kept: list[object] = []

    class Notes(HungrySam):
        def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
            kept.append(workspace)  # so that no other one takes its place in memory
            seen.setdefault(len(points), set()).add(id(workspace))
            return HungrySam.decode(self, image, points, workspace)

    generate_masks(picture(120, 160), Notes(room=8).as_sam(), **GRID)
    assert not seen[16] & seen[8]


def test_a_single_image_that_does_not_fit_point_by_point_raises() -> None:
    hungry = HungrySam(room=0, error=MemoryError("not even one"))
    with pytest.raises(MemoryError, match="not even one"):
        generate_masks(picture(40, 50), hungry.as_sam(), **GRID)
    assert set(hungry.calls) >= {16, 8, 4, 2, 1}


def test_in_an_iterator_it_is_a_row_and_the_others_are_labeled() -> None:
    class OneIsTooMuch(HungrySam):
        def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
            self.room = 0 if image.crops[0].box.size.width == 99 else 64
            return HungrySam.decode(self, image, points, workspace)

    sam = OneIsTooMuch(error=MemoryError("the heap is full"))
    results = list(generate_masks([picture(9, 50), picture(9, 99), picture(9, 50)], sam.as_sam(), points_per_side=2))
    assert [type(result) for result in results] == [MaskSet, Failure, MaskSet]
    assert isinstance(results[1], Failure)
    assert results[1].status is Status.OUT_OF_MEMORY
    assert results[1].reason == "no memory left for an image of 99x9: the heap is full"


def test_every_image_is_tried_with_whole_chunks_first() -> None:
    """What did not fit once is not remembered: the masks of an image do not depend on those before it."""
    hungry = HungrySam(room=4)

    def images() -> Iterator[NDArray[np.uint8]]:
        for _ in range(2):
            hungry.calls.clear()
            yield picture(120, 160)
            assert max(hungry.calls) == 16
            assert 4 in hungry.calls

    assert all(isinstance(result, MaskSet) for result in generate_masks(images(), hungry.as_sam(), **GRID))
