"""A whole job on this machine: settle devices, pins and weights, then label in this process or in workers of it.

One device with one worker is this process itself. Then an image that ends the process ends the job; with workers, or
with `run.image_timeout_s`, which needs a process that can be killed, it costs a row.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch

from amg.config import Config, RunSettings, masks_depend_on
from amg.errors import ConfigError
from amg.generate import MASK_REVISION, default_points_per_batch, generate_masks
from amg.masks.grid import layer_grids
from amg.run import plan as planning
from amg.run.job import run_job
from amg.run.plan import Plan
from amg.run.preview import Preview, preview
from amg.run.progress import Observer, Summary
from amg.run.shard import Job, Label, Result
from amg.sam import weights
from amg.sam.load import load_sam, usable_device
from amg.shards.schema import SCHEMA_VERSION
from amg.sources.inputs import open_source
from amg.sources.source import Skipped
from amg.storage import open_store
from amg.values import Failure, Image


def run_local(
    inputs: Sequence[str], out: str, config: Config, *, limit: int | None = None, observer: Observer
) -> Summary:
    """Label every image of `inputs` that has no row in `out` yet; with `limit`, plan no more than that many images.

    Raises OutputRefused when `out` was made with other settings, SourceError when there is no image, StorageError when
    `out` cannot be written, WeightsError when there are no weights, AmgError when shards had to be given up. With
    workers, a script must call it under `if __name__ == "__main__":`, as multiprocessing wants.
    """
    began = time.perf_counter()
    store = open_store(out, create=True)
    store.sweep()
    source = open_source(*inputs)
    devices = pick_devices(config.run)
    checkpoint = weights.resolve(config.model.weights)
    config = pin(config, planning.read_plan(store), devices)
    depends_on = masks_depend_on(
        config, weights_digest=weights.digest(checkpoint), masks=MASK_REVISION, schema=SCHEMA_VERSION, encoder_batch=1
    )
    per_image = expected_seconds_per_image(config, devices[0])
    summary = run_job(
        Job(source, store, config, depends_on),
        partial(open_label, checkpoint, config),
        devices=devices,
        in_workers=len(devices) > 1 or config.run.image_timeout_s is not None,
        images_per_shard=config.shards.images_per_shard or planning.images_per_shard(per_image),
        limit=limit,
        observer=observer,
    )
    return replace(summary, out=out, wall_seconds=time.perf_counter() - began)


def preview_local(inputs: Sequence[str], out: str, config: Config, *, limit: int | None = None) -> Preview:
    """What `run_local` with the same arguments would do, in numbers. Writes nothing, and asks for no weights."""
    store = open_store(out)
    skipped: list[Skipped] = []
    seconds = expected_seconds_per_image(config, pick_devices(config.run)[0])
    return preview(
        planning.read_plan(store),
        islice(open_source(*inputs).refs(skipped=skipped.append), limit),
        skipped,
        images_per_shard=config.shards.images_per_shard or planning.images_per_shard(seconds),
        seconds_per_image=seconds,
        finished=planning.finished_shards(store),
        is_whole=limit is None,
    )


def open_label(checkpoint: Path, config: Config, device: str) -> Label:
    """Load the model and set its threads: what one worker, or this process, does once."""
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    sam = load_sam(checkpoint, device=device)

    def label(images: Iterable[Image | Failure]) -> Iterator[Result]:
        return generate_masks(images, sam, config.generate, candidates_mb=config.memory.candidates_mb)

    return label


def pick_devices(run: RunSettings) -> list[str]:
    """One device a worker. `auto` takes CUDA where there is one, else the CPU. ConfigError where one is not there."""
    names = [name.strip() for name in run.device.split(",") if name.strip()] or ["auto"]
    names = ["cuda" if torch.cuda.is_available() else "cpu"] if names == ["auto"] else names
    for name in names:
        usable_device(name)
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ConfigError(
            f"run.device is {run.device!r}: devices of one job are of one kind, because masks differ in the last digits"
        )
    workers = run.workers or len(names)
    if workers < len(names):
        raise ConfigError(f"run.workers is {workers}, run.device names {len(names)} devices: {names[-1]} has no worker")
    return [names[n % len(names)] for n in range(workers)]


def pin(config: Config, plan: Plan | None, devices: Sequence[str]) -> Config:
    """Settle what was left to the machine, as the plan did it if there is one: it changes masks in the last digits."""
    there = plan.depends_on if plan else {}
    batch = (
        config.generate.points_per_batch
        or there.get("generate.points_per_batch")
        or default_points_per_batch(torch.device(devices[0]))
    )
    share = max(1, torch.get_num_threads() // len(devices))
    threads = config.run.threads or there.get("run.threads") or share
    return config.model_copy(
        update={
            "generate": config.generate.model_copy(update={"points_per_batch": batch}),
            "run": config.run.model_copy(update={"threads": threads}),
        }
    )


def expected_seconds_per_image(config: Config, device: str) -> float:
    """A guess that only decides how many images share a file: seconds per crop and per point, by kind of device."""
    per_crop, per_point = (0.8, 0.02) if device == "cpu" else (0.05, 0.002)
    grids = layer_grids(config.generate)
    return sum(4**layer * (per_crop + per_point * len(grid)) for layer, grid in enumerate(grids))
