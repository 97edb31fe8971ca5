"""What Ray costs: `python -m tests.bench.on_ray`, on a quiet machine.

rate      shards a second that the driver hands out and takes back when labeling takes no time and nothing is
          written, its own processor time for each, and its memory at one fifth and at the end of the job
overhead  the same photos, the same pins, real weights: seconds between the first image and the last (start-up
          excluded) of one worker on Ray against one in this process, and of two workers against one with all cores

The last line is one JSON document; exit status 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa

from amg.config import load_config, masks_depend_on
from amg.run.job import Hands, label_plan
from amg.run.plan import MANIFEST_SCHEMA, Plan
from amg.run.progress import Silent
from amg.run.ray_crew import RayCrew, reserve
from amg.run.shard import Job, Label, Result
from amg.values import Failure, Image, ImageRef, Receipt, Status
from tests.bench.children import ROOT
from tests.local_ray import local_ray
from tests.memory_store import MemoryStore

BARS = {"shards_per_second": 200.0, "one_worker": 1.05, "two_workers": 0.9}
"""Least rate; most seconds on Ray over seconds here; least throughput of two workers over the best single process."""
WORKERS = 4


@dataclass
class NoStore(MemoryStore):
    """Takes everything and keeps nothing."""

    def create_if_absent(self, path: str, data: bytes) -> bool:
        return True


class NoSource:
    def read(self, ref: ImageRef) -> Failure:
        return Failure(ref, Status.MISSING, "there are no images in this benchmark")


def no_model(device: str) -> Label:
    def label(images: Iterable[Image | Failure]) -> Iterator[Result]:
        for image in images:
            assert isinstance(image, Failure)
            yield image

    return label


@dataclass
class Memory(Silent):
    """This process's memory when so many shards were done."""

    at: int
    done: int = 0
    early_mb: float = 0.0
    lost: int = 0
    stamps: list[float] = field(default_factory=list)

    def workers(self, *, up: int, lost: int) -> None:
        self.lost = lost

    def shard(self, receipt: Receipt) -> None:
        self.done += 1
        self.stamps.append(time.perf_counter())
        if self.done == self.at:
            self.early_mb = psutil.Process().memory_info().rss / 1e6


def rate(shards: int) -> dict[str, Any]:
    numbers = range(shards)
    columns = {"row": numbers, "key": map(str, numbers), "uri": map(str, numbers), "shard": numbers}
    empty = [None] * shards
    rows = [list(columns[name]) if name in columns else empty for name in MANIFEST_SCHEMA.names]
    plan = Plan.of_table({"weights.sha256": "0"}, pa.table(rows, schema=MANIFEST_SCHEMA))
    settings = load_config(overrides={"run.threads": 1, "run.workers": WORKERS})
    job = Job(NoSource(), NoStore(), settings, masks_depend_on(settings, weights_digest="0"))  # type: ignore[arg-type]
    watching = Memory(at=shards // 5)
    with tempfile.TemporaryDirectory() as folder, local_ray(Path(folder), num_cpus=WORKERS):
        crew = partial(RayCrew, "cpu", reserve(settings, "cpu"), WORKERS)
        before = processor_seconds()
        label_plan(plan, job, Hands(no_model, "cpu", crew), observer=watching)
        spent = processor_seconds() - before
    assert watching.lost == 0, "workers died; nothing is to be learned from this run"
    end_mb = psutil.Process().memory_info().rss / 1e6
    seconds = watching.stamps[-1] - watching.stamps[shards // 10]
    return {
        "shards": shards,
        "shards_per_second": round((shards - shards // 10) / seconds, 1),
        "driver_ms_per_shard": round(1e3 * spent / shards, 3),
        "driver_mb": [round(watching.early_mb), round(end_mb)],
    }


def processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def overhead(photos: Path, repeats: int) -> dict[str, Any]:
    """The best of `repeats` rounds; in each, all sides one after the other."""
    cores = len(os.sched_getaffinity(0))
    here = ["--workers", "1", "--set", f"run.threads={cores}"]
    sides = {
        "here": [*here],
        "ray, one worker": [*here, "--runner", "ray"],
        "ray, a worker a core": ["--workers", str(cores), "--set", "run.threads=1", "--runner", "ray"],
        "here, a worker a core": ["--workers", str(cores), "--set", "run.threads=1"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, arguments in sides.items():
            seconds[name].append(between_first_and_last(photos, arguments))
            print(f"  {name}: {seconds[name][-1]:.2f} s", flush=True)
    best = {name: min(taken) for name, taken in seconds.items()}
    return {
        "seconds": {name: round(taken, 2) for name, taken in best.items()},
        "one_worker": round(best["ray, one worker"] / best["here"], 3),
        "two_workers": round(best["here"] / best["ray, a worker a core"], 3),
    }


def between_first_and_last(photos: Path, arguments: list[str]) -> float:
    """Seconds from the first image that is done to the last one, as the command's own log tells them."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "amg", "run", str(photos), "--out", f"{out}/out", "--log", "json", *arguments]
        settings = ["--set", "shards.images_per_shard=1", "--set", "generate.points_per_side=16"]
        done = subprocess.run([*command, *settings], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    times = [datetime.fromisoformat(line["time"]).timestamp() for line in lines if line["event"] == "shard"]
    return times[-1] - times[0]


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench.on_ray", description=__doc__)
    parser.add_argument("--rows", default="rate,overhead", help="which ones, with commas")
    parser.add_argument("--shards", type=int, default=5000)
    parser.add_argument("--photos", type=Path, default=ROOT / "tests" / "photos")
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    if "rate" in arguments.rows:
        result |= rate(arguments.shards)
    if "overhead" in arguments.rows:
        result |= overhead(arguments.photos, arguments.repeats)
    missed = [
        name
        for name, bar in BARS.items()
        if name in result and (result[name] > bar if name == "one_worker" else result[name] < bar)
    ]
    print(json.dumps(result | {"bars": BARS, "missed": missed}))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
