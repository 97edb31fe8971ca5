"""A whole job on this machine: settle devices, pins and weights, then label in this process or in workers of it.

One device with one worker is this process itself. Then an image that ends the process ends the job; with workers, or
with `run.image_timeout_s`, which needs a process that can be killed, it costs a row.

torch is loaded when the plan is written, by whoever labels.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Unpack

from amg.config import MASK_REVISION, Config, default_encoder_batch, default_points_per_batch, masks_depend_on
from amg.run import gpu_memory, machine
from amg.run import plan as planning
from amg.run.job import Hands
from amg.run.plan import Plan
from amg.run.progress import Observer, Summary
from amg.run.runner import Asked, Settled, run_with
from amg.run.shard import Label, OpenLabel, Result
from amg.run.workers import ProcessCrew
from amg.sam import weights
from amg.sam.cache import cache_folder
from amg.shards.schema import SCHEMA_VERSION
from amg.sources.inputs import open_source
from amg.values import Failure, Image


def run_local(
    inputs: Sequence[str], out: str, config: Config, *, observer: Observer, **asked: Unpack[Asked]
) -> Summary:
    """`run_with` on this machine; `asked`: its `limit` and `overwrite`.

    With workers, a script must call it under `if __name__ == "__main__":`, as multiprocessing wants.
    """
    return run_with(Local(), open_source(*inputs), out, config, observer=observer, **asked)


class Local:
    """The runner of this machine."""

    def settle(self, config: Config, plan: Plan | None) -> Settled:
        return settle(config, plan)

    def hands(self, settled: Settled, output: str, *, may_end: bool = False) -> Hands:
        checkpoint, _ = weights.checked_file(settled.config.model.weights)
        return here(partial(open_label, checkpoint, settled.config), settled, may_end=may_end)


def here(label: OpenLabel, settled: Settled, *, may_end: bool) -> Hands:
    """This process, or workers of it: where there are several, or one that may end or take too long."""
    devices = settled.devices
    in_workers = may_end or len(devices) > 1 or settled.config.run.image_timeout_s is not None
    return Hands(label, devices[0], partial(ProcessCrew, devices) if in_workers else None, settled.expected_seconds)


def settle(config: Config, plan: Plan | None, *, devices: Sequence[str] | None = None) -> Settled:
    """Find devices and weights and pin what was left to the machine; `devices`: those of other machines.

    Published weights are known by their digest and not fetched; any other file is loaded once, so that a plan is made
    only for weights that are some. Raises ConfigError and WeightsError.
    """
    config = _with_weights(config, weights.pinned(config.model.weights))
    sha256, unknown = _weights(config.model.weights)
    if devices is None:
        devices = machine.pick_devices(config.run, weights=unknown, precision=config.model.precision)
    elif unknown is not None:
        machine.ask_torch(["cpu"], unknown, "parity")
    gpu_memory.check_fraction(config.memory.fraction, devices)
    machine.check_kernels(config.model.kernels, devices)
    config = pin(config, plan, devices)
    per_image = expected_seconds_per_image(config, devices[0])
    return Settled(
        config,
        devices,
        masks_depend_on(config, weights_digest=sha256, masks=MASK_REVISION, schema=SCHEMA_VERSION),
        config.shards.images_per_shard or planning.images_per_shard(per_image),
        per_image,
    )


def open_label(checkpoint: Path, config: Config, device: str) -> Label:
    """Load torch and the model on a device, and set its threads: what one worker, or this process, does once."""
    import torch

    from amg.generate import generate_masks
    from amg.sam.load import load_sam

    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    if config.memory.fraction is not None:
        torch.cuda.set_per_process_memory_fraction(config.memory.fraction, torch.device(device).index)
    choice = config.model
    if choice.compile:  # once a machine, not once a process
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    sam = load_sam(
        checkpoint, device=device, precision=choice.precision, kernels=choice.kernels, compiled=choice.compile
    )
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)  # kernels that name no device go there, and no memory to the first one

    def label(images: Iterable[Image | Failure]) -> Iterator[Result]:
        limits = {"candidates_mb": config.memory.candidates_mb, "encoder_batch": config.model.encoder_batch}
        return generate_masks(images, sam, config.generate, **limits)

    return label


def pin(config: Config, plan: Plan | None, devices: Sequence[str]) -> Config:
    """Settle what was left to the machine, as the plan did it if there is one: it changes masks in the last digits."""
    there = plan.depends_on if plan else {}
    batch = (
        config.generate.points_per_batch
        or there.get("generate.points_per_batch")
        or default_points_per_batch(devices[0].partition(":")[0])
    )
    encoder_batch = (
        config.model.encoder_batch
        or there.get("model.encoder_batch")
        or default_encoder_batch(devices[0].partition(":")[0])
    )
    share = max(1, machine.cores() // len(devices))
    threads = config.run.threads or there.get("run.threads") or share
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"encoder_batch": encoder_batch}),
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
