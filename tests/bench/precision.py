"""`model.precision: fast` against `parity`: how far their masks are the same, and what each takes.

    python -m tests.bench.precision --photos FOLDER [--weights mobile_sam.pt] [--set points_per_side=16 ...]

Masks are matched one to one; F1 counts the pairs whose IoU is at least 0.9. With it stands the seconds of the image
encoder, the part that `fast` changes, and of the whole. One line a photo; the last line is one JSON document. Exit
status 1 when the F1 over all photos is below its bar.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from numpy.typing import NDArray

import amg
from tests import parity, reference_amg
from tests.bench import options, results
from tests.bench.agreement import Agreement, agree, over_all
from tests.bench.options import Options
from tests.reference_amg import Record

MIN_F1 = 0.97
WARM_UP = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Labeled:
    """One photo's masks, as records, with the seconds of the encoder and of all of it."""

    records: list[Record]
    encoder_seconds: float
    seconds: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_options(parser)
    told = options.from_arguments(parser.parse_args(arguments))
    document = results.finished("precision", row(told), told.threads)
    for line in lines(document):
        print(line)
    print(json.dumps(document, default=reference_amg.plain))
    return 0 if document["passed"] else 1


def row(options: Options) -> Row:
    """Both models in this process, photo by photo, so that what else the machine does hits both alike."""
    torch.set_num_threads(options.threads)
    sams = {name: amg.load_sam(options.weights, precision=name) for name in ("parity", "fast")}
    for sam in sams.values():
        label(sam, reference_amg.read_rgb(options.photo), WARM_UP)
    photos = {}
    for path in parity.photos_in(options.photos):
        pixels_HWC = reference_amg.read_rgb(path)
        found = {name: label(sam, pixels_HWC, options.settings) for name, sam in sams.items()}
        photos[path.name] = compared(found["parity"], found["fast"])
        print(f"  {path.name}: {line(photos[path.name])}", flush=True)
    return summarize(photos, {name: sam.precision for name, sam in sams.items()}, options)


def label(sam: amg.Sam, pixels_HWC: NDArray[Any], settings: dict[str, Any]) -> Labeled:
    started = time.perf_counter()
    masks = amg.generate_masks(pixels_HWC, sam, **settings)
    seconds = time.perf_counter() - started
    return Labeled(masks.to_dicts(bbox_style="sa1b"), masks.seconds["encode"], seconds)


def compared(exact: Labeled, fast: Labeled) -> Row:
    agreement = agree(fast.records, exact.records)
    return {
        "agreement": asdict(agreement),
        "f1": agreement.f1,
        "encoder_seconds": {"parity": exact.encoder_seconds, "fast": fast.encoder_seconds},
        "seconds": {"parity": exact.seconds, "fast": fast.seconds},
    }


def summarize(photos: dict[str, Row], arithmetic: dict[str, str], options: Options) -> Row:
    total = over_all(Agreement(**photo["agreement"]) for photo in photos.values())

    def summed(what: str) -> dict[str, float]:
        return {name: sum(photo[what][name] for photo in photos.values()) for name in ("parity", "fast")}

    return {
        "settings": options.settings,
        "arithmetic": arithmetic,
        "photos": photos,
        "agreement": asdict(total),
        "f1": total.f1,
        "worst_f1": min((photo["f1"] for photo in photos.values()), default=1.0),
        "encoder_seconds": summed("encoder_seconds"),
        "seconds": summed("seconds"),
        "bar": MIN_F1,
        "passed": bool(photos) and total.f1 >= MIN_F1,
    }


def lines(row: Row) -> list[str]:
    return [
        *(f"{name}: {words}" for name, words in row["arithmetic"].items()),
        f"{len(row['photos'])} photos: {line(row)}; worst photo {row['worst_f1']:.4f} (bar {row['bar']} over all)",
    ]


def line(row: Row) -> str:
    found, encoder, whole = row["agreement"], row["encoder_seconds"], row["seconds"]
    return (
        f"F1 {row['f1']:.4f} at IoU 0.9, {found['ours']} masks fast, {found['theirs']} parity; encoder "
        f"{encoder['fast']:.2f} s fast, {encoder['parity']:.2f} s parity; all {whole['fast']:.2f} and "
        f"{whole['parity']:.2f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
