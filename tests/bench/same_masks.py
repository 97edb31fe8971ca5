"""The rows of parity: are the masks of a folder of photos the reference's? By the comparison of `tests/parity.py`.

On one larger photo: do ours agree with the reference's as well as the reference does with itself at another batch size?
Where a pixel is a fraction of a logit wide, rounding decides about more of them.

The reference takes minutes a photo. With a folder for its records it is asked once for each photo and settings; the
files are those of `tests/reference_amg.py`.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from tests import parity, reference_amg
from tests.bench.options import Options

MIN_IDENTICAL = 0.97
MOST_PIXELS = 2_000_000
OTHER_BATCH = 4
"""Points a batch of the reference against itself, whose default is 64."""

Row = dict[str, Any]


def row(options: Options) -> Row:
    sam, model = parity.load_ours(options.weights), quietly(options.weights)
    runs = []
    for photo in parity.photos_in(options.photos):
        pixels_HWC = reference_amg.read_rgb(photo)
        if pixels_HWC.shape[0] * pixels_HWC.shape[1] > MOST_PIXELS:
            print(f"  {photo.name}: left out, it has more than 2 megapixels", flush=True)
            continue
        theirs, seconds = reference_records(model, photo, options)
        runs.append(parity.run(photo.stem, sam, pixels_HWC, options.settings, theirs, seconds))
        print("  " + runs[-1].line(), flush=True)
    return summarize(runs, options)


def itself_row(options: Options) -> Row:
    model = quietly(options.weights)
    pixels_HWC = reference_amg.read_rgb(options.photo)
    theirs, _ = reference_records(model, options.photo, options)
    other = replace(options, settings=options.settings | {"points_per_batch": OTHER_BATCH})
    again, _ = reference_records(model, options.photo, other)
    run = parity.run(options.photo.stem, parity.load_ours(options.weights), pixels_HWC, options.settings, theirs, 0.0)
    return held_against_itself(run.parity, parity.compare(again, theirs), options, pixels_HWC.shape[:2])


def held_against_itself(ours: parity.Parity, itself: parity.Parity, options: Options, size: tuple[int, int]) -> Row:
    """`passed` when no field that tells of agreement is below the reference's with itself."""
    not_below = (
        ours.matched >= itself.matched,
        ours.ours - ours.matched <= itself.ours - itself.matched,
        ours.min_iou >= min(itself.min_iou, parity.MIN_MATCHED_IOU),
        ours.identical_share >= itself.identical_share,
    )
    return {
        "settings": options.settings,
        "photo": options.photo.name,
        "size": list(size),
        "other_batch": OTHER_BATCH,
        "ours": asdict(ours),
        "itself": asdict(itself),
        "passed": all(not_below),
    }


def itself_lines(row: Row) -> list[str]:
    return [
        f"{name}: {found['matched']} of {found['reference']} masks matched, worst IoU {found['min_iou']:.6f}, "
        f"{found['identical_share']:.1%} identical"
        for name, found in (
            ("ours against the reference", row["ours"]),
            (f"the reference with {row['other_batch']} points a batch against itself with 64", row["itself"]),
        )
    ]


def quietly(weights: Path) -> Any:
    """The reference, whose import warns a dozen times."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return reference_amg.load_reference(weights)


def reference_records(model: Any, photo: Path, options: Options) -> tuple[list[reference_amg.Record], float]:
    """The reference's records of a photo, and the seconds that they took, now or when they were kept."""
    pixels_HWC = reference_amg.read_rgb(photo)
    if options.reference_records is None:
        return timed(lambda: reference_amg.run_reference(model, pixels_HWC, options.settings))
    known = json.dumps([reference_amg.digest(pixels_HWC), options.settings], sort_keys=True)
    path = options.reference_records / f"{photo.stem}--{hashlib.sha256(known.encode()).hexdigest()[:16]}.json.gz"
    if not path.exists():
        options.reference_records.mkdir(parents=True, exist_ok=True)
        reference_amg.write(reference_amg.make(model, photo, "bench", options.settings), path)
    golden = reference_amg.read(path)
    return list(golden.records), golden.seconds


def timed(work: Callable[[], list[reference_amg.Record]]) -> tuple[list[reference_amg.Record], float]:
    started = time.perf_counter()
    records = work()
    return records, time.perf_counter() - started


def summarize(runs: list[parity.Run], options: Options) -> Row:
    """`passed` when no photo has a problem and enough of all masks have the same run lengths."""
    masks = sum(max(run.parity.ours, run.parity.reference) for run in runs)
    identical = sum(run.parity.identical_share * max(run.parity.ours, run.parity.reference) for run in runs)
    share = parity.share(round(identical), masks)
    problems = {run.name: run.parity.problems() for run in runs if run.parity.problems()}
    return {
        "settings": options.settings,
        "photos": len(runs),
        "same_count": sum(run.parity.ours == run.parity.reference for run in runs),
        "masks": masks,
        "worst_iou": min((run.parity.min_iou for run in runs), default=1.0),
        "identical": share,
        "problems": problems,
        "bar_identical": MIN_IDENTICAL,
        "bar_iou": parity.MIN_MATCHED_IOU,
        "passed": bool(runs) and not problems and share >= MIN_IDENTICAL,
    }


def lines(row: Row) -> list[str]:
    return [
        f"{row['photos']} photos, {row['masks']} masks: the same number on {row['same_count']}, worst IoU "
        f"{row['worst_iou']:.6f} (bar {row['bar_iou']}), {row['identical']:.1%} identical "
        f"(bar {row['bar_identical']:.0%})",
        *(f"{name}: {'; '.join(found)}" for name, found in row["problems"].items()),
    ]
