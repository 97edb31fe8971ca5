"""The reference generator, run as published, and the golden files that hold its records.

    python tests/reference_amg.py --weights mobile_sam.pt --golden          # every golden case that has no file yet
    python tests/reference_amg.py --weights mobile_sam.pt --golden --force  # all of them again
    python tests/reference_amg.py --weights mobile_sam.pt --set points_per_side=16 --out FOLDER photo.jpg ...

The reference is `SamAutomaticMaskGenerator` of the distribution `mobilesam-mirror` (import name `mobile_sam`) with the
published MobileSAM weights, on the CPU, float32. A golden file is `tests/golden/<photo>--<case>.json.gz`: a header
(what made it, with which arguments, on which photo) and one record a mask, in the reference's order and with its full
precision. Its `seconds` are of a busy machine: they tell long cases from short ones, no more.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

TESTS = Path(__file__).parent
PHOTOS = TESTS / "photos"
GOLDEN = TESTS / "golden"
PACKAGES = ("torch", "torchvision", "mobilesam-mirror", "timm", "numpy", "opencv-python-headless", "pillow")
THREADS = 2

Record = dict[str, Any]

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "grid16": {"points_per_side": 16},
    "crops1-grid16": {"points_per_side": 16, "crop_n_layers": 1},
    "crops2-grid16": {"points_per_side": 16, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2},
    "crops1-cleanup-grid16": {
        "points_per_side": 16,
        "crop_n_layers": 1,
        "crop_n_points_downscale_factor": 2,
        "min_mask_region_area": 100,
    },
    "cleanup": {"min_mask_region_area": 100},
    "cleanup-grid16": {"points_per_side": 16, "min_mask_region_area": 100},
    "sa1b": {"crop_n_layers": 2, "crop_n_points_downscale_factor": 2, "min_mask_region_area": 100},
}
"""Arguments that differ from the reference's own defaults, by the name a golden file carries."""

PLAN: tuple[tuple[str, str], ...] = (
    ("coffee", "grid16"),
    ("coffee", "cleanup-grid16"),
    ("coffee", "crops1-cleanup-grid16"),
    ("rocket", "crops1-grid16"),
    ("astronaut", "default"),
    ("temple", "default"),
    ("studio", "default"),
    ("rocket", "default"),
    ("raccoon", "default"),
    ("brushes", "default"),
    ("astronaut", "crops2-grid16"),
    ("temple", "cleanup"),
    ("astronaut", "sa1b"),
    ("coffee", "default"),
    ("dandelions", "default"),
)
"""(photo, case) of each golden file, in the order they are made: what the tests need first, first."""


@dataclass(frozen=True, slots=True)
class Golden:
    """The records of one run of the reference, and what made them."""

    photo: str
    case: str
    arguments: dict[str, Any]
    size: tuple[int, int]  # height, width
    pixels_sha256: str  # of the decoded RGB bytes: another JPEG decoder gives other masks
    versions: dict[str, str]
    command: str
    seconds: float
    records: tuple[Record, ...]

    @property
    def stem(self) -> str:
        return f"{self.photo}--{self.case}"


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    torch.set_num_threads(THREADS)
    model = load_reference(options.weights)
    options.out.mkdir(parents=True, exist_ok=True)
    for photo, case, settings in wanted(options):
        path = options.out / f"{photo.stem}--{case}.json.gz"
        if path.exists() and not options.force:
            continue
        golden = make(model, photo, case, settings)
        write(golden, path)
        print(f"{golden.stem}: {len(golden.records)} masks, {golden.seconds:.1f} s", flush=True)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="photos to run, instead of the golden ones")
    parser.add_argument("--weights", type=Path, required=True, help="mobile_sam.pt")
    parser.add_argument("--golden", action="store_true", help="make the golden files of PLAN")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=setting)
    parser.add_argument("--json", default="{}", help="the reference's arguments as one JSON object")
    parser.add_argument("--case", default="custom", help="the name of those arguments in the files' names")
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--force", action="store_true", help="make files again that are there")
    options = parser.parse_args(arguments)
    if options.golden == bool(options.photos):
        parser.error("give either --golden or photos")
    return options


def setting(text: str) -> tuple[str, Any]:
    """`NAME=VALUE`, the value read as JSON: `points_per_side=16`."""
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, json.loads(value)


def wanted(options: argparse.Namespace) -> Iterable[tuple[Path, str, dict[str, Any]]]:
    if options.golden:
        return [(PHOTOS / f"{photo}.jpg", case, CASES[case]) for photo, case in PLAN]
    settings = json.loads(options.json) | dict(options.settings)
    return [(photo, options.case, settings) for photo in options.photos]


def load_reference(weights: Path) -> Any:
    """The reference's `Sam`. Imported here, since that import alone warns a dozen times."""
    from mobile_sam import sam_model_registry

    return sam_model_registry["vit_t"](checkpoint=str(weights)).eval()


def read_rgb(photo: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(photo).convert("RGB"))


def run_reference(model: Any, pixels_HWC: NDArray[np.uint8], settings: dict[str, Any]) -> list[Record]:
    """The reference's records, with segmentations as COCO strings. `settings` are its own arguments.

    The reference writes boxes as floats where a batch of points kept no mask, as integers elsewhere: kept as they come.
    """
    from mobile_sam import SamAutomaticMaskGenerator

    return SamAutomaticMaskGenerator(model, output_mode="coco_rle", **settings).generate(pixels_HWC)


def make(model: Any, photo: Path, case: str, settings: dict[str, Any]) -> Golden:
    pixels_HWC = read_rgb(photo)
    started = time.perf_counter()
    records = run_reference(model, pixels_HWC, settings)
    return Golden(
        photo=photo.stem,
        case=case,
        arguments=settings,
        size=(pixels_HWC.shape[0], pixels_HWC.shape[1]),
        pixels_sha256=digest(pixels_HWC),
        versions={name: version(name) for name in PACKAGES},
        command=command(settings),
        seconds=round(time.perf_counter() - started, 1),
        records=tuple(records),
    )


def command(settings: dict[str, Any]) -> str:
    return f"SamAutomaticMaskGenerator(vit_t, output_mode='coco_rle', **{json.dumps(settings)}), {THREADS} threads"


def digest(pixels_HWC: NDArray[np.uint8]) -> str:
    return hashlib.sha256(np.ascontiguousarray(pixels_HWC).tobytes()).hexdigest()


def write(golden: Golden, path: Path) -> None:
    """One JSON document: the header's fields, then `records`. The gzip header carries no time."""
    header = {name: getattr(golden, name) for name in Golden.__slots__ if name != "records"}
    text = json.dumps(header | {"records": golden.records}, default=plain)
    partial = path.with_suffix(".partial")
    partial.write_bytes(gzip.compress(text.encode(), 9, mtime=0))
    partial.replace(path)


def plain(value: object) -> object:
    """Numbers of numpy and torch as Python's own."""
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no place in a golden file")


def read(path: Path) -> Golden:
    document = json.loads(gzip.decompress(path.read_bytes()))
    document["size"], document["records"] = tuple(document["size"]), tuple(document["records"])
    return Golden(**document)


if __name__ == "__main__":
    sys.exit(main())
