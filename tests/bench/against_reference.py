"""Ours against the reference generator in one run: seconds and peak memory on the same photo, with the same weights.

    python -m tests.bench.against_reference --weights mobile_sam.pt [--photo PHOTO] [--set points_per_side=16 ...]

Each side runs alone in a fresh process: it imports, loads the model, notes its resident memory, then generates the
masks of the photo once. The seconds are of that one call, from the RGB array to the list of records: neither imports,
nor loading, nor decoding of the photo. Ours is called once before, on a tiny image with a 2 x 2 grid and no filter, so
that just-in-time compilation is not counted; what that call leaves in memory counts against ours, since the memory is
noted before it. Peak memory is the largest resident size (`VmHWM`, set back when the memory is noted) less the noted
one. Linux only.

Prints both sides, the ratios and whether the masks are the same; the last line is one JSON document. Exit status 1 when
a bar below is missed or the masks differ.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import amg
from tests import parity, reference_amg
from tests.reference_amg import Record

MIN_SPEEDUP = 3.0
MIN_MEMORY_RATIO = 6.0
DEFAULT_PHOTO = reference_amg.PHOTOS / "studio.jpg"  # 1200 x 1800
SIDES = ("ours", "reference")
WARM_UP = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@dataclass(frozen=True, slots=True)
class Measured:
    """What one side's process reports."""

    seconds: float
    peak_mb: float  # above `loaded_mb`, in units of 2^20 bytes
    loaded_mb: float  # resident after imports and model
    warm_up_mb: float  # of `peak_mb`, what the warm-up left resident: mostly compiled code and its compiler
    high_water_reset: bool  # False: the peak may be one of the imports
    records: list[Record]


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.side:
        measured = measure(options.side, options.photo, options.weights, dict(options.settings), options.threads)
        options.report.write_text(json.dumps(asdict(measured), default=reference_amg.plain))
        return 0
    weights = parity.find_weights(options.weights)
    ours, reference = (in_fresh_process(side, weights, options) for side in SIDES)
    summary = summarize(ours, reference, options)
    for side in SIDES:
        print(f"{side:>9}: {{masks}} masks, {{seconds:.2f}} s, peak {{peak_mb:.0f}} MB".format(**summary[side]))
    print(f"    ratio: {summary['speedup']:.2f}x the speed, {summary['memory_ratio']:.2f}x less memory")
    print("    masks: " + ("; ".join(summary["parity_problems"]) or "the same"))
    print(json.dumps(summary))
    return 0 if summary["passed"] else 1


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=DEFAULT_PHOTO)
    parser.add_argument("--weights", type=Path, help="mobile_sam.pt; without it, the weights of this project's cache")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=reference_amg.setting
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both; all cores")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--report", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def in_fresh_process(side: str, weights: Path, options: argparse.Namespace) -> Measured:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-W", "ignore", "-m", "tests.bench.against_reference", "--side", side]
        command += [
            "--report",
            str(report),
            "--weights",
            str(weights.resolve()),
            "--photo",
            str(options.photo.resolve()),
        ]
        command += ["--threads", str(options.threads)]
        command += [f"--set={name}={json.dumps(value)}" for name, value in options.settings]
        # Ours runs as its command does; the reference as it comes.
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ} if side == "ours" else dict(os.environ)
        subprocess.run(command, check=True, cwd=reference_amg.TESTS.parent, env=environment)
        return Measured(**json.loads(report.read_text()))


def measure(side: str, photo: Path, weights: Path, settings: dict[str, Any], threads: int) -> Measured:
    """In the child: everything is loaded before the memory is noted."""
    import numpy as np
    import torch

    torch.set_num_threads(threads)
    pixels_HWC = reference_amg.read_rgb(photo)
    generate = load(side, weights)
    reset = reset_high_water()
    loaded_mb = status_mb("VmRSS")
    if side == "ours":
        noise_HWC = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
        generate(noise_HWC, settings | WARM_UP)
    warm_up_mb = status_mb("VmRSS") - loaded_mb
    started = time.perf_counter()
    records = generate(pixels_HWC, settings)
    seconds = time.perf_counter() - started
    return Measured(seconds, status_mb("VmHWM") - loaded_mb, loaded_mb, warm_up_mb, reset, records)


def load(side: str, weights: Path) -> Callable[[Any, dict[str, Any]], list[Record]]:
    if side == "ours":
        sam = parity.load_ours(weights)
        return lambda pixels_HWC, settings: parity.run_ours(sam, pixels_HWC, settings)
    model = reference_amg.load_reference(weights)
    return lambda pixels_HWC, settings: reference_amg.run_reference(model, pixels_HWC, settings)


def reset_high_water() -> bool:
    """Set `VmHWM` back to the present size; some containers forbid it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def status_mb(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process, in units of 2^20 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this measurement needs Linux")


def summarize(ours: Measured, reference: Measured, options: argparse.Namespace) -> dict[str, Any]:
    height, width = reference_amg.read_rgb(options.photo).shape[:2]
    found = parity.compare(ours.records, reference.records)
    speedup, memory_ratio = reference.seconds / ours.seconds, reference.peak_mb / ours.peak_mb
    problems = found.problems()
    return {
        "photo": options.photo.name,
        "size": [height, width],
        "settings": dict(options.settings),
        "threads": options.threads,
        "versions": {
            "python": platform.python_version(),
            "sam-amg": amg.__version__,
            **{name: version(name) for name in reference_amg.PACKAGES},
        },
        "ours": side_summary(ours),
        "reference": side_summary(reference),
        "speedup": speedup,
        "memory_ratio": memory_ratio,
        "parity": asdict(found),
        "parity_problems": problems,
        "bars": {"speedup": MIN_SPEEDUP, "memory_ratio": MIN_MEMORY_RATIO},
        "passed": speedup >= MIN_SPEEDUP and memory_ratio >= MIN_MEMORY_RATIO and not problems,
    }


def side_summary(measured: Measured) -> dict[str, Any]:
    fields = asdict(measured)
    return {name: value for name, value in fields.items() if name != "records"} | {"masks": len(fields["records"])}


if __name__ == "__main__":
    sys.exit(main())
