"""A whole job in this process: plan what is not planned, label what is missing, shard by shard."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from amg.config import Config, masks_depend_on
from amg.generate import MASK_REVISION, default_points_per_batch
from amg.masks.grid import layer_grids
from amg.run import plan as planning
from amg.run.plan import Plan
from amg.run.progress import Observer, Summary
from amg.run.shard import Result, label_shard
from amg.sam import weights
from amg.sam.load import load_sam, usable_device
from amg.shards.schema import SCHEMA_VERSION
from amg.sources.inputs import open_source
from amg.sources.source import Skipped, Source
from amg.storage import Store, open_store
from amg.values import MaskSet, Receipt, Status

FAILURES_SHOWN = 20


def run_local(
    inputs: Sequence[str], out: str, config: Config, *, limit: int | None = None, observer: Observer
) -> Summary:
    """Label every image of `inputs` that has no row in `out` yet; with `limit`, plan no more than that many images.

    Raises OutputRefused when `out` was made with other settings, SourceError when there is no image, StorageError when
    `out` cannot be written, WeightsError when there are no weights.
    """
    began = time.perf_counter()
    store = open_store(out, create=True)
    store.sweep()
    source = open_source(*inputs)
    device = pick_device(config.run.device)
    checkpoint = weights.resolve(config.model.weights)
    config = pin(config, planning.read_plan(store), device)
    depends_on = masks_depend_on(
        config, weights_digest=weights.digest(checkpoint), masks=MASK_REVISION, schema=SCHEMA_VERSION, encoder_batch=1
    )
    plan = _plan(store, source, depends_on, config, device, limit)
    finished = planning.finished_shards(store)
    todo = [shard for shard in plan.shards() if shard.number not in finished]
    done = plan.n_images - sum(len(shard.refs) for shard in todo)
    tally = _Tally(observer)
    observer.start(plan.n_images, done)
    try:
        if todo:
            _label(todo, source, checkpoint, device, config, plan, store, tally)
    finally:
        observer.finish()
    return tally.summary(out, plan.n_images, done, time.perf_counter() - began)


def pick_device(name: str) -> str:
    """The device a job runs on: `auto` takes CUDA where there is one, else the CPU. ConfigError if it is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    usable_device(name)
    return name


def pin(config: Config, plan: Plan | None, device: str) -> Config:
    """Settle what was left to the machine, as the plan did it when there is one: it changes masks in the last digits."""
    there = plan.depends_on if plan else {}
    batch = (
        config.generate.points_per_batch
        or there.get("generate.points_per_batch")
        or default_points_per_batch(torch.device(device))
    )
    threads = config.run.threads or there.get("run.threads") or torch.get_num_threads()
    return config.model_copy(
        update={
            "generate": config.generate.model_copy(update={"points_per_batch": batch}),
            "run": config.run.model_copy(update={"threads": threads}),
        }
    )


def expected_seconds_per_image(config: Config, device: str) -> float:
    """A guess that only decides how many images share a file: seconds per crop and per point, by kind of device."""
    per_crop, per_point = (1.0, 0.05) if device == "cpu" else (0.05, 0.002)
    grids = layer_grids(config.generate)
    return sum(4**layer * (per_crop + per_point * len(grid)) for layer, grid in enumerate(grids))


def _plan(
    store: Store, source: Source, depends_on: dict[str, object], config: Config, device: str, limit: int | None
) -> Plan:
    there = planning.read_plan(store)
    if there is not None:
        planning.refuse_other_settings(there, depends_on, store.url)
    skipped: list[Skipped] = []
    refs = list(islice(source.refs(skipped=skipped.append), limit))
    size = config.shards.images_per_shard or planning.images_per_shard(expected_seconds_per_image(config, device))
    plan = there or planning.create_plan(store, depends_on)
    return planning.grow(store, plan, refs, skipped, images_per_shard=size)


def _label(
    todo: Sequence[planning.Shard],
    source: Source,
    checkpoint: Path,
    device: str,
    config: Config,
    plan: Plan,
    store: Store,
    tally: _Tally,
) -> None:
    torch.set_num_threads(config.run.threads or torch.get_num_threads())
    sam = load_sam(checkpoint, device=device)
    for shard in todo:
        tally.shard(label_shard(shard, source, sam, config, plan, store, seen=tally.image))


class _Tally:
    """Counts for the summary, and tells the observer."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._rows: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._failures: list[tuple[str, str, str]] = []
        self._masks = 0
        self._shards = 0

    def image(self, result: Result) -> None:
        if isinstance(result, MaskSet):
            self._rows[str(Status.OK)] += 1
            self._masks += len(result)
            self._seconds.update(result.seconds)
        else:
            self._rows[str(result.status)] += 1
            if len(self._failures) < FAILURES_SHOWN:
                self._failures.append((result.ref.key, str(result.status), result.reason))
        self._observer.image(result)

    def shard(self, receipt: Receipt) -> None:
        self._shards += receipt.won
        self._observer.shard(receipt)

    def summary(self, out: str, planned: int, done: int, wall_seconds: float) -> Summary:
        return Summary(
            out=out,
            planned=planned,
            already_done=done,
            rows=dict(self._rows),
            failures=tuple(self._failures),
            masks=self._masks,
            seconds=dict(self._seconds),
            wall_seconds=wall_seconds,
            peak_memory_mb=peak_memory_mb(),
            shards_written=self._shards,
        )


def peak_memory_mb() -> float:
    """The most memory this process has held, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
