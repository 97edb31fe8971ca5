"""Our `SamModel` against transformers': the encoder on one image, and 64 points on it to masks.

    python -m tests.bench.library [--threads N] [--repeats N] [--save docs/performance.json]

A ViT-B with the same random weights for both, float32. Each call has fresh processes: ours, theirs, ours again; in each
it is made once, then `--repeats` times with the clock, and the middle one counts. The ratio is of the mean of ours. The
last line is one JSON document. Exit status 1 when a bar is missed or the outputs differ.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench import results
from tests.bench.children import Measured, ours, run_side
from tests.bench.model_sides import CALLS, POINTS, random_vit_b

BARS = {"encoder": 1.3, "masks": 3.0}
MAX_DIFFERENCE = 1e-4
"""Of the range of what transformers gives."""

Row = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        random_vit_b().save_pretrained(folder / "model")
        found = {call: row(call, folder, options.threads, options.repeats) for call in CALLS}
    document = results.finished("library", {"calls": found, "points": POINTS, "passed": passed(found)}, options.threads)
    for line in lines(document):
        print(line)
    results.save({"library": document}, options.save)
    print(json.dumps(document))
    return 0 if document["passed"] else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both; all cores")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--save", type=Path, help="put the results into this file, beside others that are there")
    return parser.parse_args(arguments)


def row(call: str, folder: Path, threads: int, repeats: int) -> Row:
    job = {"folder": str(folder / "model"), "call": call, "threads": threads, "repeats": repeats}
    outputs = {side: folder / f"{call}-{side}.npy" for side in ("ours", "theirs", "again")}
    before = tell(call, "ours", run_side("library-ours", {**job, "outputs": str(outputs["ours"])}, ours()))
    theirs = tell(call, "transformers", run_side("library-transformers", {**job, "outputs": str(outputs["theirs"])}))
    after = tell(call, "ours", run_side("library-ours", {**job, "outputs": str(outputs["again"])}, ours()))
    our_seconds = (before.middle + after.middle) / 2
    found = {
        "ours_before": before.brief(),
        "ours_after": after.brief(),
        "transformers": theirs.brief(),
        "our_seconds": our_seconds,
        "their_seconds": theirs.middle,
        "speedup": theirs.middle / our_seconds,
        "difference": difference(np.load(outputs["ours"]), np.load(outputs["theirs"])),
        "bar": BARS[call],
    }
    return found | {"passed": found["speedup"] >= BARS[call] and found["difference"] <= MAX_DIFFERENCE}


def tell(call: str, side: str, measured: Measured) -> Measured:
    seconds = ", ".join(f"{each:.2f}" for each in measured.seconds)
    print(f"  {call} of {side}: {seconds} s, peak {measured.peak_mb:.0f} MB", flush=True)
    return measured


def difference(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> float:
    """The largest, as a share of the range of theirs."""
    assert ours.shape == theirs.shape, f"{ours.shape}, transformers gives {theirs.shape}"
    return float(np.abs(ours - theirs).max() / (theirs.max() - theirs.min()))


def passed(found: dict[str, Row]) -> bool:
    return all(each["passed"] for each in found.values())


def lines(row: Row) -> list[str]:
    return [
        f"{call}: {each['our_seconds']:.3f} s, transformers {each['their_seconds']:.3f} s: {each['speedup']:.2f}x "
        f"(bar {each['bar']}x); outputs differ by {each['difference']:.1e} of their range"
        for call, each in row["calls"].items()
    ]


if __name__ == "__main__":
    sys.exit(main())
