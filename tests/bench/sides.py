"""What the children of the benchmarks do, one function a side: from a job to what was measured.

    python -m tests.bench.sides SIDE REPORT < job.json

Imports, loading and decoding of the photo are not timed. Ours is warmed up on a tiny image with a 2 x 2 grid and no
filter, so that just-in-time compilation is not timed either; the others have none, and are not warmed up.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests import parity, reference_amg
from tests.bench import model_sides
from tests.bench.children import Measured, measure

WARM_UP = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}

Job = Mapping[str, Any]


def main(arguments: list[str]) -> int:
    side, report = arguments
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    measured = SIDES[side](job)
    Path(report).write_text(json.dumps(asdict(measured), default=reference_amg.plain))
    return 0


def ours(job: Job) -> Measured:
    """Our generator; the result is its list of records."""
    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    sam = parity.load_ours(Path(job["weights"]))
    return measure(
        lambda: partial(parity.run_ours, sam, pixels_HWC, job["settings"]),
        warm_up=lambda: parity.run_ours(sam, noise(), WARM_UP),
        to_json=list,
    )


def reference(job: Job) -> Measured:
    """The reference generator; the result is its list of records."""
    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    return measure(
        lambda: partial(
            reference_amg.run_reference,
            reference_amg.load_reference(Path(job["weights"])),
            pixels_HWC,
            job["settings"],
        ),
        to_json=list,
    )


def stages(job: Job) -> Measured:
    """Our generator several times; the result is the seconds of the stages in the call of the middle."""
    import amg

    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    sam = parity.load_ours(Path(job["weights"]))
    calls: list[Any] = []

    def generate() -> None:
        calls.append(amg.generate_masks(pixels_HWC, sam, **job["settings"]))

    measured = measure(lambda: generate, warm_up=lambda: parity.run_ours(sam, noise(), WARM_UP), repeats=job["repeats"])
    chosen = calls[measured.seconds.index(measured.middle)]
    found = {"stages": chosen.seconds, "candidates": chosen.funnel.candidates, "masks": len(chosen)}
    return replace(measured, result=found)


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)


SIDES: dict[str, Callable[[Job], Measured]] = {
    "ours": ours,
    "reference": reference,
    "stages": stages,
    "vit-b-ours": model_sides.vit_b_ours,
    "vit-b-pipeline": model_sides.vit_b_pipeline,
    "library-ours": model_sides.library_ours,
    "library-transformers": model_sides.library_transformers,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
