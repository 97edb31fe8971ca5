"""What the children of the benchmark on a GPU do, one function a side: from a job to what was measured.

    python -m tests.bench.on_gpu_sides SIDE REPORT < job.json

All sides are warmed up on the photo itself, so that nothing is compiled, tuned or allocated while it counts; `cold` is
the one that measures just that. A call ends with masks on the host, so the GPU is done when it does.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.profiler import ProfilerActivity, profile

import amg
from amg.run.ahead import decode_ahead
from amg.values import ImageRef, MaskSet
from tests import parity, reference_amg
from tests.bench import on_gpu_models as models
from tests.bench.children import Measured, measure

PARTS = ("encode", "prepare", "decode")

Job = Mapping[str, Any]


def main(arguments: list[str]) -> int:
    side, report = arguments
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    Path(report).write_text(json.dumps(asdict(SIDES[side](job)), default=reference_amg.plain))
    return 0


def ours(job: Job) -> Measured:
    """Our generator on one photo, and on so many of the same one after the other; records, and milliseconds by part."""
    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    kept: dict[str, Any] = {}

    def load() -> Callable[[], MaskSet]:
        kept["sam"] = models.ours(job)
        return lambda: amg.generate_masks(pixels_HWC, kept["sam"], **job["settings"])

    def warm_up() -> None:
        for _ in range(min(2, job["repeats"])):
            amg.generate_masks(pixels_HWC, kept["sam"], **job["settings"])
            list(amg.generate_masks([pixels_HWC] * job["images"], kept["sam"], **job["settings"]))
        reset_peak()

    measured = measure(load, warm_up=warm_up, repeats=job["repeats"], to_json=lambda masks: masks)
    masks, sam = measured.result, kept["sam"]
    started = time.perf_counter()
    for _ in amg.generate_masks([pixels_HWC] * job["images"], sam, **job["settings"]):
        pass
    in_a_row = time.perf_counter() - started
    found = {
        "masks": len(masks),
        "records": masks.to_dicts(bbox_style="sa1b"),
        "candidates": masks.funnel.candidates,
        "images_per_second": job["images"] / in_a_row,
        "device_mb": peak_mb(),
        "part_ms": parts(pixels_HWC, sam, job["settings"]),
        "arithmetic": sam.precision,
    }
    return replace(measured, result=found)


def parts(pixels_HWC: NDArray[np.uint8], sam: Any, settings: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of one photo by part of the model, the device waited for before and after each; `rest`: the others.

    Slower than without the waiting, so the parts add up to more than the time of a photo elsewhere.
    """
    with timed(sam) as taken:
        started = time.perf_counter()
        amg.generate_masks(pixels_HWC, sam, **settings)
        wait(sam.device)
        whole = time.perf_counter() - started
    return {name: 1e3 * seconds for name, seconds in taken.items()} | {"rest": 1e3 * (whole - sum(taken.values()))}


@contextmanager
def timed(sam: Any) -> Iterator[dict[str, float]]:
    """The seconds of what the loop asks of the model."""
    taken = dict.fromkeys(PARTS, 0.0)

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            wait(sam.device)
            started = time.perf_counter()
            result = method(*args, **kwargs)
            wait(sam.device)
            taken[name] += time.perf_counter() - started
            return result

        return call

    for name in PARTS:
        setattr(sam, name, watched(name, getattr(sam, name)))
    try:
        yield taken
    finally:
        for name in PARTS:
            delattr(sam, name)


def reference(job: Job) -> Measured:
    """The original package's generator on one photo; the result is its records."""
    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    kept: dict[str, Any] = {}

    def load() -> Callable[[], list[Any]]:
        model, start = models.segment_anything(job)
        if job["model"] == models.WITH_REAL_WEIGHTS:
            from mobile_sam import SamAutomaticMaskGenerator
        else:
            from segment_anything import SamAutomaticMaskGenerator
        generator = SamAutomaticMaskGenerator(model, output_mode="coco_rle", **job["settings"])

        def work() -> list[Any]:
            start()
            return generator.generate(pixels_HWC)

        kept["work"] = work
        return work

    def warm_up() -> None:
        kept["work"]()
        reset_peak()

    measured = measure(load, warm_up=warm_up, repeats=job["repeats"], to_json=list)
    found = {"masks": len(measured.result), "records": measured.result, "device_mb": peak_mb()}
    return replace(measured, result=found)


def pipeline(job: Job) -> Measured:
    """The mask-generation pipeline of transformers on one photo."""
    import transformers

    image = Image.open(job["photo"]).convert("RGB")
    kept: dict[str, Any] = {}

    def load() -> Callable[[], int]:
        model, start = models.transformers(job)
        generator = transformers.pipeline(
            "mask-generation",
            model=model,
            image_processor=transformers.SamImageProcessor(),
            device=torch.device(job["device"]),
        )

        def work() -> int:
            start()
            return len(generator(image, **job["arguments"])["masks"])

        kept["work"] = work
        return work

    def warm_up() -> None:
        kept["work"]()
        reset_peak()

    measured = measure(load, warm_up=warm_up, repeats=job["repeats"], to_json=int)
    return replace(measured, result={"masks": measured.result, "device_mb": peak_mb()})


def cold(job: Job) -> Measured:
    """Seconds from the start of this process to the first photo's masks, and those of the second."""
    pixels_HWC = reference_amg.read_rgb(Path(job["photo"]))
    moments = [time.time()]
    sam = models.ours(job)
    moments.append(time.time())
    for _ in range(2):
        amg.generate_masks(pixels_HWC, sam, **job["settings"])
        moments.append(time.time())
    begun = psutil.Process().create_time()
    found = {
        "imported_seconds": moments[0] - begun,
        "loaded_seconds": moments[1] - begun,
        "first_image_seconds": moments[2] - begun,
        "second_image_seconds": moments[3] - moments[2],
    }
    nothing = measure(lambda: lambda: None)
    return replace(nothing, seconds=[found["first_image_seconds"]], result=found)


def folder(job: Job) -> Measured:
    """A folder of photos as `sam-amg run` labels it, and for how many seconds no kernel ran on the device."""
    refs = [ImageRef(row, path.name, str(path)) for row, path in enumerate(parity.photos_in(Path(job["photos"])))]
    sam = models.ours(job)

    def label(some: Sequence[ImageRef] = refs) -> list[Any]:
        images = decode_ahead(some, lambda ref: Path(ref.uri).read_bytes(), threads=job["decode_threads"])
        return list(amg.generate_masks(images, sam, **job["settings"]))

    label()  # MobileSAM's embeddings are made on the way, and are not work of the model that is measured
    plain = measure(lambda: label, repeats=1, to_json=lambda results: results)
    failed = [str(result) for result in plain.result if not isinstance(result, MaskSet)]
    activity = ProfilerActivity.CUDA if sam.device.type == "cuda" else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        profiled = label(refs[: job["profiled"]])
    kernel_seconds = covered(spans(profiler, on_device=sam.device.type == "cuda"))
    found = {
        "images": len(refs),
        "failed": failed,
        "wall_seconds": plain.seconds[0],
        "gpu_seconds": sum(
            result.seconds.get("gpu_busy", 0.0) for result in plain.result if isinstance(result, MaskSet)
        ),
        "profiled_images": len(profiled),
        "kernel_seconds": kernel_seconds,
        "device_mb": peak_mb(),
    }
    return replace(plain, result=found)


def spans(profiler: profile, *, on_device: bool) -> list[tuple[float, float]]:
    """Start and end of every kernel in seconds; on a CPU, of every operator."""
    wanted = torch.autograd.DeviceType.CUDA if on_device else torch.autograd.DeviceType.CPU
    events = (event for event in profiler.events() if event.device_type == wanted)
    return [(event.time_range.start / 1e6, event.time_range.end / 1e6) for event in events]


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The seconds that lie in one span or more."""
    total, end_so_far = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, end_so_far))
        end_so_far = max(end_so_far, end)
    return total


def labels(job: Job) -> Measured:
    """The records of every photo in a folder, in the order of their names."""
    sam = models.ours(job)
    paths = parity.photos_in(Path(job["photos"]))
    pixels = (reference_amg.read_rgb(path) for path in paths)
    records = [masks.to_dicts(bbox_style="sa1b") for masks in amg.generate_masks(pixels, sam, **job["settings"])]
    return replace(measure(lambda: lambda: None), result=records)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_mb() -> float | None:
    """The most that PyTorch held of the GPU's memory, in units of 2^20 bytes; None without one."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else None


SIDES: dict[str, Callable[[Job], Measured]] = {
    "ours": ours,
    "reference": reference,
    "pipeline": pipeline,
    "cold": cold,
    "folder": folder,
    "labels": labels,
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
