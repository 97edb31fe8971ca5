"""A whole job: plan what is not planned, label what is missing, shard by shard, here or in workers.

What the masks depend on and the model come as arguments, so nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice

from amg.run import plan as planning
from amg.run.leases import Lease
from amg.run.listing import tabulate
from amg.run.plan import Plan, Shard
from amg.run.preview import drift
from amg.run.progress import Observer, Summary
from amg.run.shard import Job, Label, label_shard
from amg.run.tally import Tally
from amg.run.workers import label_in_workers
from amg.sources.source import Skipped

OpenLabel = Callable[[str], Label]
"""Loads the model on a device. For workers it is pickled: a module's function, or a `partial` of one."""


def run_job(
    job: Job,
    open_label: OpenLabel,
    *,
    devices: Sequence[str],
    in_workers: bool,
    images_per_shard: int,
    limit: int | None = None,
    observer: Observer,
) -> Summary:
    """Label every image of `job.source` that has no row in `job.store` yet; `limit` bounds what a listing plans.

    `devices`: one a worker, or the one that this process uses. Raises OutputRefused when the output was made with other
    settings, SourceError when there is no image, StorageError when the output cannot be written, WorkerError when
    shards had to be given up. The plan is written before `open_label` is called for the first time.
    """
    began = time.perf_counter()
    plan = _plan(job, images_per_shard, limit, observer)
    left = plan.without(planning.finished_shards(job.store))
    done = plan.n_images - left.n_images
    tally = Tally(observer)
    observer.start(plan.n_images, done)
    try:
        if left.n_images and in_workers:
            label_in_workers(left.shards(), job, open_label, devices[: left.n_shards], tally)
        elif left.n_images:
            _label_here(left.shards(), job, open_label(devices[0]), tally)
    finally:
        observer.finish()
    return tally.summary(job.store.url, plan.n_images, done, time.perf_counter() - began)


def _plan(job: Job, images_per_shard: int, limit: int | None, observer: Observer) -> Plan:
    there = planning.read_plan(job.store)
    if there is not None:
        planning.refuse_other_settings(there, job.depends_on, job.store.url)
    skipped: list[Skipped] = []
    refs = tabulate(islice(job.source.refs(skipped=skipped.append), limit))  # listed before anything is written
    if there is not None:
        for line in drift(there, refs, is_whole=limit is None).lines():
            observer.note(line)
    plan = there or planning.create_plan(job.store, job.depends_on)
    return planning.grow(job.store, plan, refs, skipped, images_per_shard=images_per_shard)


def _label_here(todo: Iterable[Shard], job: Job, label: Label, tally: Tally) -> None:
    for shard in todo:
        if job.store.exists(shard.path):
            tally.elsewhere(shard)
        else:
            tally.shard(label_shard(Lease(shard), job, label, seen=partial(tally.image, shard)))
