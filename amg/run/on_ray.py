"""A whole job on Ray: on a cluster that comes and goes, or on a Ray that is started here for the time of the job.

The driver holds no state: what is done lies in the output, so whatever dies, the same command goes on.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import ray

from amg.config import Config, RunSettings
from amg.errors import ConfigError
from amg.run import plan as planning
from amg.run.job import run_job
from amg.run.local import open_label, settle
from amg.run.metrics import DriverMetrics
from amg.run.on_ray_metrics import RayRecorder
from amg.run.overwrite import refuse_foreign
from amg.run.progress import Observer, Summary
from amg.run.ray_crew import RayCrew, reserve
from amg.run.ray_session import connected
from amg.run.shard import Job, Label
from amg.sam import weights
from amg.sam.precision import in_words
from amg.sources.inputs import open_source
from amg.storage.url import open_store


def run_on_ray(
    inputs: Sequence[str],
    out: str,
    config: Config,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    observer: Observer,
) -> Summary:
    """As `run_local`, with actors on Ray as workers; every machine must see `inputs`, `out` and the weights."""
    began = time.perf_counter()
    store = open_store(out, create=True)
    store.sweep()
    if overwrite:
        refuse_foreign(store.url)
    with connected(config.run):
        device = pick_device(config.run)
        settled = settle(config, None if overwrite else planning.read_plan(store), devices=[device])
        config = settled.config
        summary = run_job(
            Job(open_source(*inputs), store, config, settled.depends_on),
            partial(open_on_worker, settled.depends_on["weights.sha256"], config),
            device=device,
            crew=partial(RayCrew, device, reserve(config, device), config.run.workers),
            images_per_shard=settled.images_per_shard,
            expected_seconds=settled.expected_seconds,
            limit=limit,
            overwrite=overwrite,
            observer=observer,
            metrics=DriverMetrics(RayRecorder(store.url)),
        )
    arithmetic = in_words(config.model.precision, device)
    return replace(summary, out=out, arithmetic=arithmetic, wall_seconds=time.perf_counter() - began)


def open_on_worker(sha256: str, config: Config, device: str) -> Label:
    """`open_label` on whatever machine this is, with the weights of the plan or none."""
    checkpoint, _ = weights.checked_file(config.model.weights, sha256=sha256)
    return open_label(checkpoint, config, device)


def pick_device(run: RunSettings) -> str:
    """`cuda` or `cpu`: what is said, or with `auto` what the cluster has now."""
    if run.device == "auto":
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        return "cuda" if run.gpus_per_worker or (has_gpus and run.gpus_per_worker is None) else "cpu"
    if run.device not in ("cpu", "cuda"):
        raise ConfigError(f"run.device is {run.device!r}: on Ray it is auto, cpu or cuda, and Ray chooses which one")
    return run.device
