"""A whole job on this machine: settle devices, pins and weights, then label in this process or in workers of it.

One device with one worker is this process itself. Then an image that ends the process ends the job; with workers, or
with `run.image_timeout_s`, which needs a process that can be killed, it costs a row.

torch is loaded when the plan is written, by whoever labels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from amg.config import MASK_REVISION, Config, default_points_per_batch, masks_depend_on
from amg.run import machine
from amg.run import plan as planning
from amg.run.job import run_job
from amg.run.listing import SkippedLog, list_source
from amg.run.overwrite import refuse_foreign
from amg.run.plan import Plan
from amg.run.preview import Preview, preview
from amg.run.progress import Observer, Summary
from amg.run.shard import Job, Label, Result
from amg.run.workers import process_crew
from amg.sam import weights
from amg.sam.precision import in_words
from amg.shards.schema import SCHEMA_VERSION
from amg.sources.inputs import open_source
from amg.storage.url import open_store
from amg.values import Failure, Image


def run_local(
    inputs: Sequence[str],
    out: str,
    config: Config,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    observer: Observer,
) -> Summary:
    """Label every image of `inputs` that has no row in `out` yet; with `limit`, plan no more than that many images.

    With `overwrite`, an output in `out` is removed, once settings, devices, weights and images are known to be good.
    Raises OutputRefused when `out` was made with other settings, SourceError when there is no image, StorageError when
    `out` cannot be written, WeightsError when there are no weights, WorkerError when shards had to be given up. With
    workers, a script must call it under `if __name__ == "__main__":`, as multiprocessing wants.
    """
    began = time.perf_counter()
    store = open_store(out, create=True)
    store.sweep()
    source = open_source(*inputs)
    if overwrite:
        refuse_foreign(store.url)
    settled = settle(config, None if overwrite else planning.read_plan(store))
    checkpoint, _ = weights.checked_file(settled.config.model.weights)
    summary = run_job(
        Job(source, store, settled.config, settled.depends_on),
        partial(open_label, checkpoint, settled.config),
        device=settled.devices[0],
        crew=process_crew(settled.devices, config),
        images_per_shard=settled.images_per_shard,
        expected_seconds=settled.expected_seconds,
        limit=limit,
        overwrite=overwrite,
        observer=observer,
    )
    arithmetic = in_words(settled.config.model.precision, settled.devices[0].partition(":")[0])
    return replace(summary, out=out, arithmetic=arithmetic, wall_seconds=time.perf_counter() - began)


def preview_local(
    inputs: Sequence[str], out: str, config: Config, *, limit: int | None = None, overwrite: bool = False
) -> Preview:
    """What `run_local` with the same arguments would do, in numbers; with `overwrite`, after `out` was removed.

    Writes nothing and fetches no published weights; raises what `run_local` would raise before it labels.
    """
    store = open_store(out)
    if overwrite:
        refuse_foreign(store.url)
    plan = None if overwrite else planning.read_plan(store)
    settled = settle(config, plan)
    if plan is not None:
        planning.refuse_other_settings(plan, settled.depends_on, store.url)
    skipped = SkippedLog()
    return preview(
        plan,
        list_source(open_source(*inputs), skipped),
        skipped,
        images_per_shard=settled.images_per_shard,
        seconds_per_image=expected_seconds_per_image(settled.config, settled.devices[0]),
        finished=planning.finished_shards(store) if plan is not None else (),
        limit=limit,
    )


@dataclass(frozen=True, slots=True)
class Settled:
    """What a job does on this machine. `config` has its pins, `devices` one name a worker."""

    config: Config
    devices: Sequence[str]
    depends_on: Mapping[str, Any]
    images_per_shard: int
    expected_seconds: float


def settle(config: Config, plan: Plan | None, *, devices: Sequence[str] | None = None) -> Settled:
    """Find devices and weights and pin what was left to the machine.

    Published weights are known by their digest and not fetched; any other file is loaded once, so that a plan is made
    only for weights that are some. Raises ConfigError and WeightsError.
    """
    config = _with_weights(config, weights.pinned(config.model.weights))
    sha256, unknown = _weights(config.model.weights)
    if devices is None:
        devices = machine.pick_devices(config.run, weights=unknown, precision=config.model.precision)
    elif unknown is not None:
        machine.ask_torch(["cpu"], unknown, "parity")
    config = pin(config, plan, devices)
    per_image = expected_seconds_per_image(config, devices[0])
    return Settled(
        config,
        devices,
        masks_depend_on(config, weights_digest=sha256, masks=MASK_REVISION, schema=SCHEMA_VERSION, encoder_batch=1),
        config.shards.images_per_shard or planning.images_per_shard(per_image),
        per_image,
    )


def open_label(checkpoint: Path, config: Config, device: str) -> Label:
    """Load torch and the model on a device, and set its threads: what one worker, or this process, does once."""
    import torch

    from amg.generate import generate_masks
    from amg.sam.load import load_sam

    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    sam = load_sam(checkpoint, device=device, precision=config.model.precision)
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # kernels that name no device go there, and no memory to the first one

    def label(images: Iterable[Image | Failure]) -> Iterator[Result]:
        return generate_masks(images, sam, config.generate, candidates_mb=config.memory.candidates_mb)

    return label


def pin(config: Config, plan: Plan | None, devices: Sequence[str]) -> Config:
    """Settle what was left to the machine, as the plan did it if there is one: it changes masks in the last digits."""
    there = plan.depends_on if plan else {}
    batch = (
        config.generate.points_per_batch
        or there.get("generate.points_per_batch")
        or default_points_per_batch(devices[0].partition(":")[0])
    )
    share = max(1, machine.cores() // len(devices))
    threads = config.run.threads or there.get("run.threads") or share
    return config.model_copy(
        update={
            "generate": config.generate.model_copy(update={"points_per_batch": batch}),
            "run": config.run.model_copy(update={"threads": threads}),
        }
    )


def expected_seconds_per_image(config: Config, device: str) -> float:
    """A guess that only decides how many images share a file: seconds per crop and per point, by kind of device."""
    per_crop, per_point = (0.8, 0.02) if device.startswith("cpu") else (0.05, 0.002)
    points = config.generate.points_by_layer
    return sum(4**layer * (per_crop + per_point * count) for layer, count in enumerate(points))


def _with_weights(config: Config, name: str) -> Config:
    return config.model_copy(update={"model": config.model.model_copy(update={"weights": name})})


def _weights(name: str) -> tuple[str, Path | None]:
    """The digest of the weights, and their file where it is none of the published ones."""
    sha256 = weights.digest_of(name)
    is_published = any(checkpoint.sha256 == sha256 for checkpoint in weights.KNOWN.values())
    return sha256, None if is_published else weights.resolve(name)
