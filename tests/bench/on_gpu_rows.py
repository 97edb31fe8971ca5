"""The rows of the benchmark on a GPU: which children are asked, and what is made of their answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amg.config import generate_settings
from amg.geometry import Size
from amg.sam.tf32 import exact_float32
from tests import parity, reference_amg
from tests.bench import flops, gemm
from tests.bench.agreement import agree, over_all
from tests.bench.children import Measured, ours, run_side
from tests.bench.on_gpu_models import MODELS, WITH_REAL_WEIGHTS, write_weights
from tests.bench.on_gpu_photos import SIZES, photo_of, variants

BARS: Mapping[tuple[str, str, str], tuple[float, float]] = {
    ("default", "vit_h", "parity"): (12, 0),
    ("default", "vit_h", "fast"): (30, 40),
    ("sa1b", "vit_h", "fast"): (20, 3),
    ("default", "vit_t", "fast"): (60, 0),
}
"""By preset, model and precision: how many times as fast as the original package, and images/s, at `BAR_SIZE`."""

BAR_SIZE = "1200x1800"
MOST_IDLE = 0.10
MOST_COLD_SECONDS, MOST_WARM_SECONDS = 60.0, 10.0
MOST_OTHER_COUNTS, LEAST_MEAN_IOU = 1, 0.99999
LEAST_SAME_COUNT = 0.69

PROFILED = 40
"""Photos of `idle` that are profiled: a profile has thousands of events an image."""

CACHES = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH", "NUMBA_CACHE_DIR")
TYPES = {"parity": ("float32", "float32"), "fast": ("bfloat16", "float16")}
"""What encoder and decoder multiply in."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What the benchmark was told.

    `settings` are the reference's own arguments, for all rows and sides; `crop_layers` those of the row `sa1b`.
    `images`: photos of `idle` and `agreement`, `longest` their longest side at the most.
    """

    device: str
    models: Sequence[str]
    precisions: Sequence[str]
    sizes: Sequence[str]
    kernels: str
    weights: Path
    settings: Mapping[str, Any]
    crop_layers: int
    images: int
    longest: int | None
    repeats: int
    threads: int
    folder: Path

    @property
    def has_bars(self) -> bool:
        """On a CPU it is shown that all of it works, no more."""
        return self.device != "cpu"

    def job(self, model: str, precision: str = "parity", **more: Any) -> Row:
        file = self.folder / f"{model}.pth"
        if not file.exists():
            file = write_weights(model, self.weights, file)
        return {
            "device": self.device,
            "model": model,
            "precision": precision,
            "kernels": self.kernels,
            "file": str(file),
            "weights": str(self.weights),
            "settings": dict(self.settings),
            "threads": self.threads,
            "repeats": self.repeats,
            "images": min(self.images, 8),
            **more,
        }

    def ask(self, side: str, job: Row, environment: Mapping[str, str] | None = None) -> Measured:
        return run_side(side, job, {**ours(), **(environment or {})}, module="tests.bench.on_gpu_sides")


def described(device: str) -> Row:
    """The device, and nothing by which it could be found."""
    if device == "cpu":
        return {"name": "cpu"}
    seen = torch.cuda.get_device_properties(device)
    return {
        "name": seen.name,
        "memory_gb": round(seen.total_memory / 1e9),
        "processors": seen.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def default_row(told: Told) -> Row:
    return speed(told, "default", dict(told.settings))


def sa1b_row(told: Told) -> Row:
    """With the preset `sa1b`, as far as the reference has its settings; the pipeline cannot do it."""
    settings = {**reference_amg.CASES["sa1b"], "crop_n_layers": told.crop_layers, **told.settings}
    return speed(told, "sa1b", settings)


def speed(told: Told, preset: str, settings: Row) -> Row:
    rates = product_rates(told.device)
    print("  products: " + ", ".join(f"{name} {rate:.1f} TFLOP/s" for name, rate in rates.items()), flush=True)
    cases, missed = [], []
    for model in told.models:
        for size in told.sizes:
            cases.append(case(told, preset, model, size, settings, rates))
            missed += cases[-1]["missed"]
            print(f"  {case_line(cases[-1])}", flush=True)
    return {"settings": settings, "rates": rates, "cases": cases, "missed": missed, "passed": not missed}


def case(told: Told, preset: str, model: str, size: str, settings: Row, rates: Mapping[str, float]) -> Row:
    """One model on one photo: the others once, ours in each precision."""
    photo = str(photo_of(size, told.folder))
    job = told.job(model, photo=photo, settings=settings)
    theirs = told.ask("reference", job)
    row: Row = {"preset": preset, "model": model, "size": size, "reference": brief(theirs), "ours": {}, "missed": []}
    if preset == "default" and model != WITH_REAL_WEIGHTS:
        names = {"points_per_side": "points_per_crop"}
        arguments = {names.get(name, name): value for name, value in settings.items()}
        row["pipeline"] = brief(told.ask("pipeline", {**job, "arguments": arguments}))
    for precision in told.precisions:
        measured = told.ask("ours", {**job, "precision": precision})
        rate = measured.result["images_per_second"]
        limit = limit_seconds(model, precision, SIZES[size], settings, rates)
        found = agree(measured.result["records"], theirs.result["records"])
        row["ours"][precision] = brief(measured) | {
            "times_reference": rate * theirs.middle,
            "times_reference_one_photo": theirs.middle / measured.middle,
            "times_pipeline": rate * row["pipeline"]["seconds"][0] if "pipeline" in row else None,
            "limit_images_per_second": 1 / limit,
            "share_of_limit": rate * limit,
            "agreement": asdict(found) | {"f1": found.f1},
        }
        row["missed"] += too_slow(told, preset, model, precision, size, row["ours"][precision])
    return row


def too_slow(told: Told, preset: str, model: str, precision: str, size: str, found: Row) -> list[str]:
    times, rate = BARS.get((preset, model, precision), (0, 0))
    if not told.has_bars or size != BAR_SIZE:
        return []
    where = f"{model}, {preset}, {precision}"
    missed = []
    if found["times_reference"] < times:
        missed.append(f"{where}: {found['times_reference']:.1f}x the reference, wanted {times}x")
    if found["images_per_second"] < rate:
        missed.append(f"{where}: {found['images_per_second']:.2f} images/s, wanted {rate}")
    return missed


def brief(measured: Measured) -> Row:
    """Without the records, the middle call's seconds first."""
    told = {name: value for name, value in measured.result.items() if name != "records"}
    return told | {"seconds": [measured.middle, *measured.seconds], "host_mb": measured.peak_mb}


def product_rates(device: str) -> dict[str, float]:
    """TFLOP/s of a square product in each type: the ceiling that shares are of."""
    n = 256 if device == "cpu" else 8192
    rates = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        a, b = (torch.rand(n, n, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(a)

        def multiply(a: torch.Tensor = a, b: torch.Tensor = b, out: torch.Tensor = out) -> None:
            torch.mm(a, b, out=out)
            if device != "cpu":
                torch.cuda.synchronize()

        with exact_float32(torch.device(device)):
            rates[str(dtype).removeprefix("torch.")] = 2e-12 * n**3 / gemm.fastest(multiply)
    return rates


def limit_seconds(
    model: str, precision: str, size: tuple[int, int], settings: Row, rates: Mapping[str, float]
) -> float:
    """What a photo's matrix products take at the device's rates, the decoder's in factors, where they are fewest."""
    width, height = size
    counted = flops.count(MODELS[model], Size(height, width))
    points_by_layer = generate_settings(settings).points_by_layer
    crops = sum(4**layer for layer in range(len(points_by_layer)))
    points = sum(4**layer * points for layer, points in enumerate(points_by_layer))
    encoder, decoder = TYPES[precision]
    encode = 1e-12 * crops * counted.encode / rates[encoder]
    return encode + 1e-12 * (crops * counted.share + points * counted.point) / rates[decoder]


def speed_lines(row: Row) -> list[str]:
    """Beside the line of each case, which is printed when it is measured."""
    return row["missed"]


def case_line(case: Row) -> str:
    said = [f"{case['model']} {case['size']}: reference {case['reference']['seconds'][0]:.2f} s"]
    for precision, found in case["ours"].items():
        said.append(
            f"{precision} {found['images_per_second']:.2f} images/s, {found['times_reference']:.1f}x, "
            f"{found['share_of_limit']:.0%} of the limit"
        )
    return "; ".join(said)


def cold_row(told: Told) -> Row:
    """Each model in the last of the precisions, with caches of its own: empty, then as the first run left them."""
    cases, missed = {}, []
    photo = str(photo_of(told.sizes[0], told.folder))
    for model in told.models:
        caches = {name: str(told.folder / "caches" / model / name) for name in CACHES}
        job = told.job(model, told.precisions[-1], photo=photo)
        empty, full = (told.ask("cold", job, caches).result for _ in range(2))
        cases[model] = {"empty": empty, "full": full}
        for name, found, most in (("empty", empty, MOST_COLD_SECONDS), ("full", full, MOST_WARM_SECONDS)):
            if told.has_bars and found["first_image_seconds"] > most:
                missed.append(f"{model}, {name} caches: {found['first_image_seconds']:.1f} s, wanted {most:.0f}")
    return {"precision": told.precisions[-1], "cases": cases, "missed": missed, "passed": not missed}


def cold_lines(row: Row) -> list[str]:
    return [
        f"{model}: first image after {case['empty']['first_image_seconds']:.1f} s with empty caches, "
        f"{case['full']['first_image_seconds']:.1f} s with full ones"
        for model, case in row["cases"].items()
    ] + row["missed"]


def idle_row(told: Told) -> Row:
    photos = variants(told.folder, told.images, longest=told.longest)
    cases, missed = {}, []
    for model in told.models:
        job = told.job(model, told.precisions[-1], photos=str(photos), decode_threads=4, profiled=PROFILED)
        cases[model] = found = told.ask("folder", job).result
        busy = found["kernel_seconds"] / found["profiled_images"] * found["images"]
        found["idle_share"] = max(0.0, 1 - busy / found["wall_seconds"])
        if told.has_bars and found["idle_share"] > MOST_IDLE:
            missed.append(f"{model}: idle for {found['idle_share']:.1%}, wanted {MOST_IDLE:.0%} at most")
        missed += [f"{model}: {failure}" for failure in found["failed"]]
    return {"precision": told.precisions[-1], "cases": cases, "missed": missed, "passed": not missed}


def idle_lines(row: Row) -> list[str]:
    return [
        f"{model}: {case['images']} photos in {case['wall_seconds']:.1f} s, no kernel for {case['idle_share']:.1%}"
        for model, case in row["cases"].items()
    ] + row["missed"]


def agreement_row(told: Told) -> Row:
    """MobileSAM, whose weights are real; all the photos, in each precision against float32 on the CPU."""
    model = WITH_REAL_WEIGHTS if WITH_REAL_WEIGHTS in told.models else told.models[0]
    photos = str(variants(told.folder, told.images, longest=told.longest))
    wanted = told.ask("labels", told.job(model, photos=photos, device="cpu")).result
    cases, missed = {}, []
    for precision in told.precisions:
        found = told.ask("labels", told.job(model, precision, photos=photos)).result
        cases[precision] = compared(found, wanted)
        if told.has_bars:
            missed += disagreements(precision, cases[precision])
    return {"model": model, "settings": dict(told.settings), "cases": cases, "missed": missed, "passed": not missed}


def compared(found: Sequence[list[Any]], wanted: Sequence[list[Any]]) -> Row:
    """Over all images; the mean IoU is of pairs that share a pixel."""
    ious: list[float] = []
    for ours_now, theirs in zip(found, wanted, strict=True):
        matrix = parity.iou_matrix(ours_now, theirs)
        ious += [float(matrix[i, j]) for i, j in parity.match(matrix, ours_now, theirs)]
    total = over_all(agree(a, b) for a, b in zip(found, wanted, strict=True))
    return {
        "images": len(wanted),
        "same_count": sum(len(a) == len(b) for a, b in zip(found, wanted, strict=True)),
        "mean_iou": float(np.mean(ious)) if ious else 1.0,
        "agreement": asdict(total),
        "f1": total.f1,
    }


def disagreements(precision: str, found: Row) -> list[str]:
    others = found["images"] - found["same_count"]
    if precision == "parity":
        counts = [f"parity: another count on {others} images"] if others > MOST_OTHER_COUNTS else []
        low = found["mean_iou"] < LEAST_MEAN_IOU
        return counts + ([f"parity: mean IoU {found['mean_iou']:.7f}, wanted {LEAST_MEAN_IOU}"] if low else [])
    share = found["same_count"] / found["images"]
    return [] if share > LEAST_SAME_COUNT else [f"{precision}: the same count on {share:.0%}, wanted more than 69 %"]


def agreement_lines(row: Row) -> list[str]:
    return [
        f"{precision}: the same count on {case['same_count']} of {case['images']}, mean IoU {case['mean_iou']:.7f}, "
        f"F1 {case['f1']:.4f} at IoU 0.9"
        for precision, case in row["cases"].items()
    ] + row["missed"]
