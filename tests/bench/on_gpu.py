"""What is claimed of a GPU, measured: ours against the original package and transformers, on one device in one run.

    python -m tests.bench.on_gpu [--rows default,sa1b] [--models vit_h,vit_t] [--save docs/gpu.json] [--tiny]

default    images/s and milliseconds by part at the reference's defaults, peak memory, share of the arithmetic limit
sa1b       the same with 21 crops and 3072 points
cold       seconds from the start of a process to its first image, with empty caches of compiled code and with full ones
idle       for how long of a folder of photos no kernel runs on the device
agreement  the masks of `parity` and of `fast` on the device against those of `parity` on the CPU

The photos are made of those in `tests/photos`. Everything is measured in fresh processes. The last line is one JSON
document. Exit status 1 when a row misses its bar. Without a CUDA device there is nothing to measure, and it says so;
`--tiny` shows on any machine that all of it works, with a model and photos so small that its numbers say nothing.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch

from tests import parity, reference_amg
from tests.bench import on_gpu_rows as rows
from tests.bench.measuring import Measurement, measure_rows, some_of
from tests.bench.on_gpu_photos import SIZES
from tests.bench.on_gpu_rows import Told

TINY = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


ROWS: Mapping[str, Measurement[Told]] = {
    "default": Measurement(rows.default_row, rows.speed_lines),
    "sa1b": Measurement(rows.sa1b_row, rows.speed_lines),
    "cold": Measurement(rows.cold_row, rows.cold_lines),
    "idle": Measurement(rows.idle_row, rows.idle_lines),
    "agreement": Measurement(rows.agreement_row, rows.agreement_lines),
}


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    if parsed.device != "cpu" and not torch.cuda.is_available():
        print(
            f"PyTorch {torch.__version__} finds no CUDA device: nothing was measured (--tiny runs it all on a CPU)",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as temporary:
        told = told_by(parsed, Path(temporary))
        device = rows.described(told.device)
        return measure_rows(ROWS, parsed.rows, told, save=parsed.save, device=device, tiny=parsed.tiny)


def told_by(parsed: argparse.Namespace, folder: Path) -> Told:
    return Told(
        device=parsed.device,
        models=parsed.models,
        precisions=parsed.precisions,
        sizes=["64x48"] if parsed.tiny else parsed.sizes,
        kernels=parsed.kernels,
        weights=parity.find_weights(parsed.weights).resolve(),
        settings={**(TINY if parsed.tiny else {}), **dict(parsed.settings)},
        crop_layers=1 if parsed.tiny else 2,
        images=parsed.images,
        longest=64 if parsed.tiny else None,
        repeats=parsed.repeats,
        threads=parsed.threads,
        folder=folder,
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.on_gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=some_of("row", ROWS), default=list(ROWS), help="some of them, with commas; all")
    parser.add_argument("--models", type=some_of("model", rows.MODELS), default=["vit_h", "vit_b", "vit_t"])
    parser.add_argument("--precisions", type=some_of("precision", ("parity", "fast")), default=["parity", "fast"])
    parser.add_argument("--sizes", type=some_of("size", SIZES), default=[name for name in SIZES if name != "64x48"])
    parser.add_argument("--kernels", choices=["torch", "triton"], default="torch")
    parser.add_argument("--images", type=int, help="photos of `idle` and `agreement`; 200, with --tiny 3")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of one photo")
    parser.add_argument("--weights", type=Path, help="mobile_sam.pt; without it, the weights of this project's cache")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=reference_amg.setting
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the host; all cores")
    parser.add_argument("--save", type=Path, help="put the results into this file, beside others that are there")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, with a tiny model on tiny photos")
    parsed = parser.parse_args(arguments)
    if parsed.tiny and parsed.save is not None:
        parser.error("--save does not go with --tiny: its numbers say nothing")
    parsed.device = "cpu" if parsed.tiny else "cuda"
    parsed.images = parsed.images or (3 if parsed.tiny else 200)
    if parsed.tiny:
        parsed.models, parsed.repeats = ["tiny"], 1
    return parsed


if __name__ == "__main__":
    sys.exit(main())
