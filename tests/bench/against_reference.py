"""The rows that hold our generator against the reference generator: one photo, the same weights, the same run.

Ours runs before and after the reference, in three fresh processes; the ratio is of the mean of ours. The seconds are
those of one call, from the RGB array to the list of records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tests import parity, reference_amg
from tests.bench.children import TUNED, Measured, ours, run_side, tell
from tests.bench.options import Options

BATCHES = (1, 2, 4, 8, 16)
SEARCH_GRID = 8
BARS = {"reference": 30.0, "tuned": 10.0, "sa1b": 20.0}

Row = dict[str, Any]


def default_row(options: Options) -> Row:
    """Against the reference at its defaults: 64 points a batch, the allocator as it comes."""
    return compared(options, options.settings, bar=BARS["reference"])


def tuned_row(options: Options) -> Row:
    """Against the reference at its best batch size, with an allocator that keeps its memory.

    The batch size is the fastest of `BATCHES` on the same photo with a grid of 8 x 8, everything else as measured.
    """
    grid = {"points_per_side": min(SEARCH_GRID, options.settings.get("points_per_side", SEARCH_GRID))}
    seconds = {}
    for batch in BATCHES:
        settings = options.settings | grid | {"points_per_batch": batch}
        seconds[batch] = run_side("reference", options.job(settings=settings), TUNED).middle
        print(f"  batch {batch:>2} on a grid of {grid['points_per_side']}: {seconds[batch]:.1f} s", flush=True)
    best = min(seconds, key=lambda batch: seconds[batch])
    theirs = options.settings | {"points_per_batch": best}
    found = compared(options, options.settings, theirs, environment=TUNED, bar=BARS["tuned"])
    return found | {"best_batch": best, "search_grid": grid["points_per_side"], "search_seconds": seconds}


def sa1b_row(options: Options) -> Row:
    """With the preset `sa1b`, as far as the reference has its settings: 21 crops, 3072 points, clean-up.

    The two filters that the preset has beyond them, on the largest area and on small masks, only drop masks.
    """
    settings = reference_amg.CASES["sa1b"] | options.settings
    return compared(options, settings, bar=BARS["sa1b"])


def compared(
    options: Options,
    settings: Mapping[str, Any],
    reference_settings: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    bar: float,
) -> Row:
    """Ours, the reference, ours again."""
    job = options.job(settings=dict(settings))
    theirs_job = options.job(settings=dict(reference_settings or settings))
    before = tell("ours", run_side("ours", job, ours()))
    theirs = tell("reference", run_side("reference", theirs_job, environment))
    after = tell("ours", run_side("ours", job, ours()))
    return summarize(before, theirs, after, options, bar=bar) | {
        "settings": dict(settings),
        "reference_settings": theirs_job["settings"],
        "reference_environment": dict(environment or {}),
        "our_environment": ours(),
    }


def summarize(before: Measured, theirs: Measured, after: Measured, options: Options, *, bar: float) -> Row:
    """`passed` when faster than the bar and the masks are the same, both times."""
    height, width = reference_amg.read_rgb(options.photo).shape[:2]
    found = parity.compare(before.result, theirs.result)
    problems = found.problems()
    if after.result != before.result:
        problems.append("our records before and after the reference differ")
    our_seconds = (before.middle + after.middle) / 2
    speedup = theirs.middle / our_seconds
    return {
        "photo": options.photo.name,
        "size": [height, width],
        "ours_before": side(before),
        "ours_after": side(after),
        "reference": side(theirs),
        "our_seconds": our_seconds,
        "speedup": speedup,
        "memory_ratio": theirs.peak_above_mb / max(before.peak_above_mb, after.peak_above_mb),
        "parity": asdict(found),
        "parity_problems": problems,
        "bar": bar,
        "passed": speedup >= bar and not problems,
    }


def side(measured: Measured) -> Row:
    return measured.brief() | {"masks": len(measured.result)}


def lines(row: Row) -> list[str]:
    told = [f"{row['speedup']:.1f}x the speed (bar {row['bar']:.0f}x), {row['memory_ratio']:.1f}x less memory"]
    if row["reference_environment"]:
        told.append("reference with " + " ".join(f"{k}={v}" for k, v in row["reference_environment"].items()))
    if "best_batch" in row:
        told.append(f"reference with {row['best_batch']} points a batch, its best")
    return [*told, "masks: " + ("; ".join(row["parity_problems"]) or "the same")]
