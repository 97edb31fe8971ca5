"""The row of stages: seconds, operations and bytes of each, and the share of this machine's measured ceiling.

A stage's share is its operations at the ceiling's rate, over its seconds. Only `encode` and `prompt` are matrix
products; the others are seconds that have no share.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from typing import Any

from amg.config import default_points_per_batch, generate_settings
from amg.geometry import Size
from tests import reference_amg
from tests.bench.children import ROOT, ours, run_side
from tests.bench.flops import Counted, count
from tests.bench.options import Options

GOAL = 0.40
ARCHITECTURE = "vit_t"

Row = dict[str, Any]


def row(options: Options) -> Row:
    rates = gemm(options.threads)
    print("  products: " + ", ".join(f"{name} {rate:.0f} GFLOP/s" for name, rate in rates.items()), flush=True)
    measured = run_side("stages", options.job(), ours())
    print("  calls: " + ", ".join(f"{seconds:.2f} s" for seconds in measured.seconds), flush=True)
    counted = count(ARCHITECTURE, Size(*reference_amg.read_rgb(options.photo).shape[:2]))
    return summarize(measured.middle, measured.result["stages"], counted, rates, options) | {
        "ours": measured.brief() | {"masks": measured.result["masks"]}
    }


def gemm(threads: int) -> dict[str, float]:
    """In a process of its own, with our environment."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.gemm", "--threads", str(threads)],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **ours()},
    )
    return json.loads(done.stdout.splitlines()[-1])


def summarize(
    wall: float, stages: dict[str, float], counted: Counted, rates: dict[str, float], options: Options
) -> Row:
    ceiling = max(rates.values())
    work = operations(counted, options)
    rows = {
        name: {"seconds": seconds, **work.get(name, {})}
        | ({"share": work[name]["gflop"] / ceiling / seconds} if name in work and seconds else {})
        for name, seconds in stages.items()
    }
    total = sum(stage["gflop"] for stage in work.values())
    share = total / ceiling / wall
    return {
        "photo": options.photo.name,
        "settings": options.settings,
        "rates_gflops": rates,
        "ceiling_gflops": ceiling,
        "counted": asdict(counted),
        "stages": rows,
        "outside_stages_seconds": wall - sum(stages.values()),
        "gflop": total,
        "seconds": wall,
        "share": share,
        "goal": GOAL,
        "passed": share >= GOAL,
    }


def operations(counted: Counted, options: Options) -> dict[str, dict[str, float]]:
    """GFLOP and GB of the stages that have some: the whole image, and its crops."""
    settings = generate_settings(options.settings)
    points = [4**layer * count for layer, count in enumerate(settings.points_by_layer)]
    crops = sum(4**layer for layer in range(settings.crop_n_layers + 1))
    chunk = settings.points_per_batch or default_points_per_batch("cpu")
    chunks = sum(4**layer * -(-count // chunk) for layer, count in enumerate(settings.points_by_layer))
    logits = sum(points) * counted.logit_bytes / 1e9
    # half of the factors are written by the first pass, half by the second, which reads the first; the third reads all
    factors = sum(points) * 2.5 * counted.factor_bytes / 1e9
    return {
        "encode": {"gflop": crops * (counted.encode + counted.share) / 1e9},
        "prompt": {
            "gflop": sum(points) * counted.point / 1e9,
            "gigabytes": chunks * counted.tile_bytes / 1e9 + factors + logits,
        },
        "score": {"gflop": 0.0, "gigabytes": logits},
    }


def lines(row: Row) -> list[str]:
    told = [f"ceiling {row['ceiling_gflops']:.0f} GFLOP/s"]
    for name, stage in row["stages"].items():
        told.append(
            f"{name}: {stage['seconds']:.3f} s"
            + (f", {stage['gflop']:.0f} GFLOP, {stage['share']:.0%} of the ceiling" if stage.get("gflop") else "")
            + (f", {stage['gigabytes']:.1f} GB" if "gigabytes" in stage else "")
        )
    return [
        *told,
        f"whole image: {row['seconds']:.2f} s, {row['gflop']:.0f} GFLOP, {row['share']:.0%} of the ceiling "
        f"(goal {row['goal']:.0%}), {row['outside_stages_seconds']:.3f} s in no stage",
    ]
