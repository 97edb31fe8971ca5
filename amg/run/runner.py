"""A whole job, wherever it runs: a runner settles what is left open, and brings what labels.

`local` and `on_ray` have a runner each; what they are used for is here, and in `retry`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypedDict

from amg.config import Config
from amg.run import plan as planning
from amg.run.job import Hands, run_job
from amg.run.listing import SkippedLog, list_source
from amg.run.overwrite import refuse_foreign
from amg.run.plan import Plan
from amg.run.preview import Preview, preview
from amg.run.progress import Observer, Summary
from amg.run.shard import Job
from amg.sam.precision import in_words
from amg.sources.source import Source
from amg.storage.url import open_store


@dataclass(frozen=True, slots=True)
class Settled:
    """What a job does where it runs. `config` has its pins, `devices` one name a worker."""

    config: Config
    devices: Sequence[str]
    depends_on: Mapping[str, Any]
    images_per_shard: int
    expected_seconds: float

    def told(self, summary: Summary, out: str, wall_seconds: float) -> Summary:
        """The summary with what the job itself does not know."""
        arithmetic = in_words(self.config.model.precision, self.devices[0].partition(":")[0])
        return replace(summary, out=out, arithmetic=arithmetic, wall_seconds=wall_seconds)


class Runner(Protocol):
    def settle(self, config: Config, plan: Plan | None) -> Settled:
        """Find devices and weights, and pin what was left open, as `plan` has it; ConfigError or WeightsError."""
        ...

    def hands(self, settled: Settled, output: str, *, may_end: bool = False) -> Hands:
        """What labels for the output at this URL; `may_end`: some images are known to end what labels them."""
        ...


class Asked(TypedDict, total=False):
    """`limit`: plan no more than that many images. `overwrite`: remove an output that is there."""

    limit: int | None
    overwrite: bool


def run_with(
    runner: Runner,
    source: Source,
    out: str,
    config: Config,
    *,
    limit: int | None = None,
    overwrite: bool = False,
    observer: Observer,
) -> Summary:
    """Label every image of `source` that has no row in `out` yet; with `limit`, plan no more than that many images.

    With `overwrite`, an output in `out` is removed, once settings, devices, weights and images are known to be good.
    Raises OutputRefused when `out` was made with other settings, SourceError when there is no image, StorageError when
    `out` cannot be written, WeightsError when there are no weights, WorkerError when shards had to be given up.
    """
    began = time.perf_counter()
    store = open_store(out, create=True)
    store.sweep()
    if overwrite:
        refuse_foreign(store.url)
    settled = runner.settle(config, None if overwrite else planning.read_plan(store))
    summary = run_job(
        Job(source, store, settled.config, settled.depends_on),
        runner.hands(settled, store.url),
        images_per_shard=settled.images_per_shard,
        limit=limit,
        overwrite=overwrite,
        observer=observer,
    )
    return settled.told(summary, out, time.perf_counter() - began)


def preview_with(
    runner: Runner, source: Source, out: str, config: Config, *, limit: int | None = None, overwrite: bool = False
) -> Preview:
    """What `run_with` with the same arguments would do, in numbers; with `overwrite`, after `out` was removed.

    Writes nothing and fetches no published weights; raises what `run_with` would raise before it labels.
    """
    store = open_store(out)
    if overwrite:
        refuse_foreign(store.url)
    plan = None if overwrite else planning.read_plan(store)
    settled = runner.settle(config, plan)
    if plan is not None:
        planning.refuse_other_settings(plan, settled.depends_on, store.url)
    skipped = SkippedLog()
    return preview(
        plan,
        list_source(source, skipped),
        skipped,
        images_per_shard=settled.images_per_shard,
        seconds_per_image=settled.expected_seconds,
        finished=planning.finished_shards(store) if plan is not None else (),
        limit=limit,
    )
