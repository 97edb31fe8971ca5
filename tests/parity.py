"""Are our masks the reference's? The comparison, its bars, and a command for any folder of photos.

    python -m tests.parity --photos FOLDER [--weights mobile_sam.pt] [--set points_per_side=16 ...]
    python -m tests.parity --golden [--case default] [--weights mobile_sam.pt]

The first runs the reference and ours on each photo, the second compares ours with the recorded runs in `tests/golden`.
One line a photo, one JSON line last; exit status 1 when a bar is broken.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from tests import reference_amg
from tests.reference_amg import Record

# The bars. Arithmetic in another order (1e-6 in the encoder, 1e-4 in logits) moves a pixel on an edge now and then;
# more than that is another mask.
MIN_MATCHED_IOU = 0.999
MIN_IDENTICAL_SHARE = 0.95
IDENTICAL_UP_TO_PIXELS = 2_000_000
MAX_SCORE_DIFFERENCE = 1e-3
POINT_TOLERANCE_PIXELS = 1e-6  # a rounding of float64, not a place

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"})


@dataclass(frozen=True, slots=True)
class Parity:
    """How two lists of records of one image agree. The counts are of matched pairs."""

    pixels: int
    ours: int
    reference: int
    matched: int  # pairs that share a pixel
    min_iou: float  # over those pairs; 1 when there are none
    identical_share: float  # pairs of the same RLE string, of the longer list; 1 when both are empty
    predicted_iou_difference: float  # the largest
    stability_difference: float  # the largest
    other_area: int  # of those with the same RLE string
    other_crop_box: int
    other_point_coords: int
    other_bbox: int
    swaps: int  # pairs of masks in the other order, near ties aside (see `count_swaps`)

    def problems(self) -> list[str]:
        """One sentence for each broken bar but that of identical strings, which is over many masks."""
        found = [*self._counts(), *self._pixels(), *self._scores(), *self._fields()]
        if self.swaps:
            found.append(f"{self.swaps} pairs of masks come in the other order, want none but near ties")
        return found

    def _counts(self) -> Iterator[str]:
        if self.ours != self.reference:
            yield f"{self.ours} masks, the reference has {self.reference}"
        if self.matched != self.reference:
            yield f"{self.reference - self.matched} of the reference's {self.reference} masks have no mask of ours"
        if self.matched != self.ours:
            yield f"{self.ours - self.matched} of our {self.ours} masks have no mask of the reference"

    def _pixels(self) -> Iterator[str]:
        if self.min_iou < MIN_MATCHED_IOU:
            yield f"the worst matched IoU is {self.min_iou:.6f}, want >= {MIN_MATCHED_IOU}"

    def _scores(self) -> Iterator[str]:
        for name in ("predicted_iou", "stability"):
            difference = getattr(self, f"{name}_difference")
            if not difference <= MAX_SCORE_DIFFERENCE:  # NaN is a difference too
                yield f"{name} differs by up to {difference:.2e}, want <= {MAX_SCORE_DIFFERENCE}"

    def _fields(self) -> Iterator[str]:
        for name in ("area", "crop_box", "point_coords", "bbox"):
            differing = getattr(self, f"other_{name}")
            if differing:
                yield f"{differing} of {self.matched} matched masks have another {name}"


def too_few_identical(images: Iterable[Parity]) -> list[str]:
    """The bar of identical RLE strings, over all masks of the images that are small enough for it.

    Over all, since in an image of 19 masks a single pixel on an edge would already break it.
    """
    small = [image for image in images if image.pixels <= IDENTICAL_UP_TO_PIXELS]
    masks = sum(max(image.ours, image.reference) for image in small)
    identical = share(round(sum(image.identical_share * max(image.ours, image.reference) for image in small)), masks)
    if identical < MIN_IDENTICAL_SHARE:
        return [f"{identical:.1%} of the RLE strings are identical, want >= {MIN_IDENTICAL_SHARE:.0%}"]
    return []


def compare(ours: list[Record], reference: list[Record]) -> Parity:
    """Match the records of one image one to one by mask IoU and compare every field of each pair.

    Both lists are as `SamAutomaticMaskGenerator(output_mode="coco_rle")` gives them, `bbox` in SA-1B's style.
    """
    ious = iou_matrix(ours, reference)
    pairs = match(ious, ours, reference)
    both = [(ours[i], reference[j]) for i, j in pairs]
    identical = sum(a["segmentation"] == b["segmentation"] for a, b in both)
    return Parity(
        pixels=image_pixels(ours, reference),
        ours=len(ours),
        reference=len(reference),
        matched=len(pairs),
        min_iou=min((float(ious[i, j]) for i, j in pairs), default=1.0),
        identical_share=share(identical, max(len(ours), len(reference))),
        predicted_iou_difference=largest_difference(both, "predicted_iou"),
        stability_difference=largest_difference(both, "stability_score"),
        other_area=sum(a["area"] != b["area"] for a, b in both if a["segmentation"] == b["segmentation"]),
        other_crop_box=sum(a["crop_box"] != b["crop_box"] for a, b in both),
        other_point_coords=sum(not same_points(a["point_coords"], b["point_coords"]) for a, b in both),
        other_bbox=sum(a["bbox"] != b["bbox"] for a, b in both),
        swaps=count_swaps(pairs, reference),
    )


def iou_matrix(ours: list[Record], reference: list[Record]) -> NDArray[np.float64]:
    """Mask IoU, one row a mask of ours. Two masks without pixels count as equal (pycocotools says 0)."""
    if not ours or not reference:
        return np.zeros((len(ours), len(reference)))
    ours_rles, reference_rles = ([record["segmentation"] for record in records] for records in (ours, reference))
    empty_ours, empty_reference = (
        np.array([coco.area(rle) == 0 for rle in rles]) for rles in (ours_rles, reference_rles)
    )
    ious = np.array(coco.iou(ours_rles, reference_rles, [0] * len(reference)), np.float64)
    return np.where(empty_ours[:, None] & empty_reference[None, :], 1.0, ious)


def match(ious: NDArray[np.float64], ours: list[Record], reference: list[Record]) -> list[tuple[int, int]]:
    """(ours, reference) of the assignment with the largest sum of IoU, without pairs that share no pixel.

    Where masks are equal (degenerate boxes escape NMS) the pair with the same crop, point and predicted IoU is taken.
    """
    alike = np.zeros_like(ious)
    for i, a in enumerate(ours):
        for j in np.flatnonzero(ious[i] > MIN_MATCHED_IOU):
            b = reference[j]
            same_prompt = a["crop_box"] == b["crop_box"] and same_points(a["point_coords"], b["point_coords"])
            near = abs(a["predicted_iou"] - b["predicted_iou"]) <= MAX_SCORE_DIFFERENCE
            alike[i, j] = 1e-6 * same_prompt + 1e-6 * near
    rows, columns = linear_sum_assignment(ious + alike, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if ious[i, j] > 0]


def count_swaps(pairs: list[tuple[int, int]], reference: list[Record]) -> int:
    """Pairs of matched masks that stand in one order in ours and in the other in the reference.

    The lists are compared as they come. Each is already a stable sort by the last NMS's score: predicted IoU for a
    single crop; with crops the smaller crop, then the earlier crop, then predicted IoU; with clean-up unchanged masks
    before changed ones. One swap is excused: between two masks of one crop whose predicted IoU in the reference differ
    by at most 1e-3, since our scores may differ by as much. The reference's own order of equal scores is arbitrary when
    more than 1000 boxes enter one NMS; a photo with so many may show swaps here that are not ours.
    """
    if len(pairs) < 2:
        return 0
    in_our_order = [j for _, j in sorted(pairs)]
    place = np.array(in_our_order)
    score = np.array([reference[j]["predicted_iou"] for j in in_our_order])
    crops = [tuple(reference[j]["crop_box"]) for j in in_our_order]
    crop = np.array([crops.index(box) for box in crops])
    swapped = np.triu(place[:, None] > place[None, :], k=1)
    near_tie = (crop[:, None] == crop[None, :]) & (np.abs(score[:, None] - score[None, :]) <= MAX_SCORE_DIFFERENCE)
    return int((swapped & ~near_tie).sum())


def same_points(ours: list[list[float]], reference: list[list[float]]) -> bool:
    a, b = np.array(ours, np.float64), np.array(reference, np.float64)
    return a.shape == b.shape and bool((np.abs(a - b) <= POINT_TOLERANCE_PIXELS).all())


def largest_difference(both: list[tuple[Record, Record]], field: str) -> float:
    """NaN where one of the two is."""
    return float(np.max([abs(a[field] - b[field]) for a, b in both], initial=0.0))


def share(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def image_pixels(ours: list[Record], reference: list[Record]) -> int:
    """0 where neither list has a mask; an image has one size."""
    sizes = {tuple(record["segmentation"]["size"]) for record in [*ours, *reference]}
    assert len(sizes) <= 1, f"masks of images of different sizes: {sorted(sizes)}"
    return int(np.prod(sizes.pop())) if sizes else 0


def run_ours(sam: Any, pixels_HWC: NDArray[np.uint8], settings: dict[str, Any]) -> list[Record]:
    """Our records in the reference's form; `settings` are the reference's arguments."""
    import amg

    return amg.generate_masks(pixels_HWC, sam, **settings).to_dicts(bbox_style="sa1b")


@dataclass(frozen=True, slots=True)
class Run:
    """One photo through both."""

    name: str
    settings: dict[str, Any]
    parity: Parity
    seconds_ours: float
    seconds_reference: float

    def line(self) -> str:
        parity = self.parity
        return (
            f"{self.name}: {parity.ours}/{parity.reference} masks, worst IoU {parity.min_iou:.6f}, "
            f"{parity.identical_share:.1%} identical, {self.seconds_ours:.1f} s / {self.seconds_reference:.1f} s: "
            + ("; ".join(parity.problems()) or "ok")
        )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    runs = []
    for run in golden_runs(options) if options.golden else live_runs(options):
        print(run.line(), flush=True)
        runs.append(run)
    of_all = too_few_identical(run.parity for run in runs)
    for problem in of_all:
        print(f"all photos: {problem}")
    broken = sum(bool(run.parity.problems()) for run in runs) + len(of_all)
    print(json.dumps(summary(runs, broken)))
    return 1 if broken or not runs else 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=reference_amg.PHOTOS, help="a folder of photos, or one photo")
    parser.add_argument("--weights", type=Path, help="mobile_sam.pt; without it, the weights of this project's cache")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=reference_amg.setting
    )
    parser.add_argument("--golden", action="store_true", help="compare with the recorded runs in tests/golden")
    parser.add_argument("--case", help="with --golden: only this case")
    options = parser.parse_args(arguments)
    if options.golden and options.settings:
        parser.error("--set does not go with --golden: a recorded run has its own settings")
    if not options.golden and not photos_in(options.photos):
        parser.error(f"{options.photos} holds no file with one of the suffixes {' '.join(sorted(IMAGE_SUFFIXES))}")
    return options


def live_runs(options: argparse.Namespace) -> Iterator[Run]:
    weights = find_weights(options.weights)
    sam, model = load_ours(weights), reference_amg.load_reference(weights)
    settings = dict(options.settings)
    for photo in photos_in(options.photos):
        pixels_HWC = reference_amg.read_rgb(photo)
        started = time.perf_counter()
        theirs = reference_amg.run_reference(model, pixels_HWC, settings)
        seconds_reference = time.perf_counter() - started
        yield run(photo.stem, sam, pixels_HWC, settings, theirs, seconds_reference)


def golden_runs(options: argparse.Namespace) -> Iterator[Run]:
    sam = load_ours(find_weights(options.weights))
    for path in sorted(reference_amg.GOLDEN.glob(f"*--{options.case or '*'}.json.gz")):
        golden = reference_amg.read(path)
        pixels_HWC = reference_amg.read_rgb(options.photos / f"{golden.photo}.jpg")
        yield run(golden.stem, sam, pixels_HWC, golden.arguments, list(golden.records), golden.seconds)


def run(
    name: str,
    sam: Any,
    pixels_HWC: NDArray[np.uint8],
    settings: dict[str, Any],
    theirs: list[Record],
    seconds_reference: float,
) -> Run:
    started = time.perf_counter()
    ours = run_ours(sam, pixels_HWC, settings)
    seconds_ours = time.perf_counter() - started
    return Run(name, settings, compare(ours, theirs), seconds_ours, seconds_reference)


def photos_in(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return sorted(entry for entry in path.iterdir() if entry.suffix.lower() in IMAGE_SUFFIXES)


def find_weights(given: Path | None) -> Path:
    if given is not None:
        return given
    from amg.sam import weights

    return weights.fetch("mobile-sam")


def load_ours(weights: Path) -> Any:
    import amg

    return amg.load_sam(weights)


def summary(runs: Iterable[Run], broken: int) -> dict[str, Any]:
    return {
        "broken": broken,
        "versions": {name: version(name) for name in reference_amg.PACKAGES},
        "threads": torch.get_num_threads(),
        "photos": [asdict(run) | {"problems": run.parity.problems()} for run in runs],
    }


if __name__ == "__main__":
    sys.exit(main())
