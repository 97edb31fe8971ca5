"""The row that holds our generator on a ViT-B against the `mask-generation` pipeline of transformers.

Both have the same random encoder and MobileSAM's decoder, which is fed with MobileSAM's embedding of the photo
(`model_sides.py`). Ours runs before and after the pipeline. The two do not give the same masks to the pixel: the
pipeline resizes the logits in another way and compares stability by `>`.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import reference_amg
from tests.bench import model_sides
from tests.bench.agreement import agree
from tests.bench.children import Measured, ours, run_side, tell
from tests.bench.options import Options

BAR = 15.0
NAMES = {"points_per_side": "points_per_crop"}
"""The pipeline's names of settings, where they are others."""

Row = dict[str, Any]


def row(options: Options) -> Row:
    arguments = {NAMES.get(name, name): value for name, value in options.settings.items()}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        embedding = model_sides.prepare_vit_b(folder, options.weights, options.photo)
        job = options.job(folder=str(folder), embedding=str(embedding), arguments=arguments)
        before = tell("ours", run_side("vit-b-ours", job, ours()))
        theirs = tell("pipeline", run_side("vit-b-pipeline", job))
        after = tell("ours", run_side("vit-b-ours", job, ours()))
    return summarize(before, theirs, after, options) | {"settings": options.settings}


def summarize(before: Measured, theirs: Measured, after: Measured, options: Options) -> Row:
    height, width = reference_amg.read_rgb(options.photo).shape[:2]
    found = agree(before.result, theirs.result)
    our_seconds = (before.middle + after.middle) / 2
    speedup = theirs.middle / our_seconds
    return {
        "photo": options.photo.name,
        "size": [height, width],
        "ours_before": before.brief() | {"masks": len(before.result)},
        "ours_after": after.brief() | {"masks": len(after.result)},
        "pipeline": theirs.brief() | {"masks": len(theirs.result)},
        "our_seconds": our_seconds,
        "speedup": speedup,
        "memory_ratio": theirs.peak_above_mb / max(before.peak_above_mb, after.peak_above_mb),
        "agreement": asdict(found) | {"f1": found.f1},
        "bar": BAR,
        "passed": speedup >= BAR,
    }


def lines(row: Row) -> list[str]:
    found = row["agreement"]
    return [
        f"{row['speedup']:.1f}x the speed (bar {row['bar']:.0f}x), {row['memory_ratio']:.1f}x less memory",
        f"masks: {found['ours']} and {found['theirs']}, {found['matched']} of them matched at IoU 0.9 "
        f"(F1 {found['f1']:.3f}, worst of those {found['worst_iou']:.4f})",
    ]
