"""A whole job: plan what is not planned, label what is missing, shard by shard, here or in workers.

What the masks depend on and the model come as arguments, so nothing here needs torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial

from amg.run import plan as planning
from amg.run.growth import digest_of, grow, is_listed, remember_listed
from amg.run.leases import Lease
from amg.run.listing import SkippedLog, list_source
from amg.run.metrics import DriverMetrics, NotRecorded
from amg.run.overwrite import remove_output
from amg.run.plan import Plan, Shard
from amg.run.pool import Crew, label_with
from amg.run.progress import Observer, Summary
from amg.run.shard import Job, Label, OpenLabel, label_shard
from amg.run.survey import survey
from amg.run.tally import Tally

OpenCrew = Callable[[Job, OpenLabel], Crew]


@dataclass(frozen=True, slots=True)
class Hands:
    """What labels: a crew, or this process on `device`. `expected_seconds` an image are a guess."""

    open_label: OpenLabel
    device: str
    crew: OpenCrew | None = None
    expected_seconds: float = 0.0
    metrics: DriverMetrics = field(default_factory=lambda: DriverMetrics(NotRecorded()))


def run_job(
    job: Job,
    hands: Hands,
    *,
    images_per_shard: int,
    limit: int | None = None,
    overwrite: bool = False,
    observer: Observer,
) -> Summary:
    """Label every image of `job.source` that has no row in `job.store` yet; `limit` bounds what a listing plans.

    With `overwrite`, what this program wrote in the store before is removed when the images are listed. Raises
    OutputRefused when the output was made with other settings, SourceError when there is no image, StorageError when
    the output cannot be written, WorkerError when shards had to be given up. The plan is written before
    `hands.open_label` is called for the first time.
    """
    began = time.perf_counter()
    plan = _plan(job, images_per_shard, limit, overwrite, observer)
    summary = label_plan(plan, job, hands, observer=observer)
    return replace(summary, wall_seconds=time.perf_counter() - began)


def label_plan(plan: Plan, job: Job, hands: Hands, *, observer: Observer) -> Summary:
    """Label every image of a plan that is written and has no row in `job.store` yet; raises as `run_job`."""
    began = time.perf_counter()
    left = plan.without(planning.finished_shards(job.store))
    done = plan.n_images - left.n_images
    tally = Tally(observer, hands.metrics)
    tally.start(plan, left)
    try:
        if left.n_images and hands.crew is not None:
            crew = hands.crew(job, hands.open_label)
            label_with(crew, left, job, tally, expected_seconds=hands.expected_seconds)
        elif left.n_images:
            _label_here(left.shards(), job, hands.open_label(hands.device), tally)
    finally:
        observer.finish()
    return tally.summary(job.store.url, plan.n_images, done, time.perf_counter() - began)


def _plan(job: Job, images_per_shard: int, limit: int | None, overwrite: bool, observer: Observer) -> Plan:
    there = None if overwrite else planning.read_plan(job.store)
    if there is not None:
        planning.refuse_other_settings(there, job.depends_on, job.store.url)
    digest = digest_of(job.source)
    if there is not None and is_listed(job.store, there, digest):
        return there
    skipped = SkippedLog()
    listed = list_source(job.source, skipped)  # to its end, before anything is written
    seen = survey(there or Plan(job.depends_on), listed, skipped=skipped, limit=limit)
    if there is not None:
        for line in seen.drift.lines():
            observer.note(line)
    if overwrite:
        remove_output(job.store.url)
    plan = there or planning.create_plan(job.store, job.depends_on)
    plan = grow(job.store, plan, seen, skipped, images_per_shard=images_per_shard)
    if limit is None:
        remember_listed(job.store, plan, seen, digest)
    return plan


def _label_here(todo: Iterable[Shard], job: Job, label: Label, tally: Tally) -> None:
    for shard in todo:
        if job.store.exists(shard.path):
            tally.elsewhere(shard)
        else:
            tally.shard(label_shard(Lease(shard), job, label, seen=partial(tally.image, shard)))
