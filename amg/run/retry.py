"""Images that failed, labeled once more: into a generation of their own, with the settings of the output.

A runner does with it what it does with a job: the same shards, workers and commits, in a store that lies within the
output.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from amg.config import Config, flatten, nearest, parse
from amg.errors import ConfigError
from amg.run import generations
from amg.run.generations import Todo
from amg.run.job import Hands, label_plan
from amg.run.plan import Plan, refuse_other_settings
from amg.run.progress import Observer, Summary
from amg.run.runner import Runner, Settled
from amg.run.shard import Job
from amg.run.status import planned
from amg.shards.reader import Snapshot, settings_said, shard_paths
from amg.sources.listed import ListedSource
from amg.storage.store import Store
from amg.storage.url import open_store

MAY_CHANGE = ("run.", "memory.", "model.weights")
"""What a retry may be given anew; weights count by their digest, and what else is in the fingerprint is refused."""
WHERE = (
    "run.runner", "run.address", "run.gpus_per_worker", "run.cpus_per_worker", "run.device", "run.workers"
)  # fmt: skip
"""Settings that say where the images were labeled; a retry may run elsewhere, and takes the defaults."""


@dataclass(frozen=True, slots=True, eq=False)
class Retry:
    """A retry before anything is written. `config` is the output's, with what was given anew."""

    store: Store
    plan: Plan
    statuses: tuple[str, ...]
    config: Config
    todo: Todo


@dataclass(frozen=True, slots=True)
class Retried:
    """What a retry came to; `generation` is 0 and there is no summary where no image has one of the statuses."""

    generation: int
    statuses: tuple[str, ...]
    summary: Summary | None = None

    def to_json(self) -> str:
        """One line of JSON: both, and the summary's fields."""
        said = json.loads(self.summary.to_json()) if self.summary else {"planned": 0}
        return json.dumps({"generation": self.generation, "statuses": self.statuses} | said, ensure_ascii=False)

    def render(self) -> str:
        """The text for a person."""
        named = ", ".join(self.statuses)
        if self.summary is None:
            return f"nothing to retry: no image has the status {named}"
        return f"retry g{self.generation} ({named}): {self.summary.render()}"


@dataclass(frozen=True, slots=True)
class RetryPreview:
    """A retry in numbers. `isolated` images are tried one by one, each in a worker that it may end."""

    generation: int
    goes_on: bool
    images: int
    by_status: Mapping[str, int]
    shards: int
    isolated: int
    bytes_to_read: int
    expected_seconds: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    def render(self) -> str:
        """The text for a person, in a line or two."""
        counted = ", ".join(f"{count:,} {status}" for status, count in self.by_status.items())
        if not self.images:
            return "nothing to retry"
        verb = "goes on with" if self.goes_on else "begins"
        lines = [
            f"{verb} retry g{self.generation}; images: {self.images:,} ({counted}), shards: {self.shards:,}, "
            f"to read: {self.bytes_to_read / 1e6:,.1f} MB, expected: {self.expected_seconds:,.0f} s"
        ]
        if self.isolated:
            lines.append(f"{self.isolated:,} one by one, in a worker that they may end")
        return "\n".join(lines)


def ask(folder: str, statuses: Collection[str], given: Mapping[str, Any]) -> Retry | None:
    """What a retry of these statuses has to do; None where no image has one of them. Writes nothing.

    `given` are dotted settings. Raises ConfigError for a status or a setting that may not be, StorageError where there
    is no plan.
    """
    wanted = generations.failures_named(statuses)
    _refuse_settings(given)
    store = open_store(folder)
    plan = planned(store)
    todo = generations.look(store, plan, wanted)
    if not todo.images:
        return None
    return Retry(store, plan, wanted, _settings(store, given), todo)


def retry_with(
    runner: Runner,
    folder: str,
    statuses: Collection[str],
    given: Mapping[str, Any] | None = None,
    *,
    observer: Observer,
) -> Retried:
    """Label the images of `folder` whose newest row has one of these statuses once more.

    `given`: settings by dotted name, of `run.` and `memory.` alone. Raises as `ask`; OutputRefused when this program or
    these weights would make other masks than the output's, StorageError when it cannot be written, WorkerError when
    shards had to be given up.
    """
    began = time.perf_counter()
    retry = ask(folder, statuses, given or {})
    if retry is None:
        return Retried(0, generations.failures_named(statuses))
    retry.store.sweep()
    settled = settled_for(runner, retry)
    hands = runner.hands(settled, retry.store.url, may_end=retry.todo.suspects > 0)
    retried = label_again(retry, settled, hands, observer=observer)
    if retried.summary is None:
        return retried
    out = f"{folder.rstrip('/')}/{generations.folder(retried.generation)}"
    return replace(retried, summary=settled.told(retried.summary, out, time.perf_counter() - began))


def preview_retry(
    runner: Runner, folder: str, statuses: Collection[str], given: Mapping[str, Any] | None = None
) -> RetryPreview:
    """What `retry_with` with the same arguments would do. Writes nothing and fetches no weights."""
    retry = ask(folder, statuses, given or {})
    if retry is None:
        return RetryPreview(0, False, 0, {}, 0, 0, 0, 0.0)
    settled, todo = settled_for(runner, retry), retry.todo
    per_shard = _images_per_shard(todo, settled)
    return RetryPreview(
        generation=todo.number,
        goes_on=todo.ongoing is not None,
        images=todo.images,
        by_status=todo.by_status,
        shards=todo.ongoing.left.n_shards if todo.ongoing else math.ceil(todo.images / per_shard),
        isolated=todo.suspects,
        bytes_to_read=int(np.asarray(todo.failed["size_bytes"].fill_null(0)).sum()),
        expected_seconds=todo.images * settled.expected_seconds,
    )


def settled_for(runner: Runner, retry: Retry) -> Settled:
    """Devices, weights and pins; OutputRefused where they would make other masks than the output's."""
    settled = runner.settle(retry.config, retry.plan)
    refuse_other_settings(retry.plan, settled.depends_on, retry.store.url)
    return settled


def label_again(retry: Retry, settled: Settled, hands: Hands, *, observer: Observer) -> Retried:
    """Write the plan of the generation down, if it is not, and label it."""
    per_shard = _images_per_shard(retry.todo, settled)
    generation = generations.begin(retry.store, retry.plan, retry.statuses, retry.todo, images_per_shard=per_shard)
    if generation is None:  # somebody else has done it meanwhile
        return Retried(0, retry.statuses)
    job = Job(ListedSource((), ()), generation.store, settled.config, settled.depends_on)
    summary = label_plan(generation.plan, job, hands, observer=observer)
    return Retried(generation.number, generation.statuses, summary)


def _refuse_settings(given: Mapping[str, Any]) -> None:
    """Raise ConfigError that names every setting that a retry cannot change, or that is none."""
    known = flatten(Config())
    lines = [f"there is no setting {name!r}{nearest(name, known)}" for name in given if name not in known]
    lines += [
        f"{name} stays as the output has it, a retry takes run.* and memory.* alone; for other masks use another --out"
        for name in given
        if name in known and not name.startswith(MAY_CHANGE)
    ]
    if lines:
        raise ConfigError("\n".join(lines))


def _images_per_shard(todo: Todo, settled: Settled) -> int:
    """So many that every worker gets some, also of a retry that is small."""
    return max(1, min(settled.images_per_shard, math.ceil(todo.images / len(settled.devices))))


def _settings(store: Store, given: Mapping[str, Any]) -> Config:
    """The settings of the output with what was given anew in their place."""
    usual = flatten(Config())
    said = flatten(
        settings_said(Snapshot(store, shard_paths(store, "data")), *{f"{name.partition('.')[0]}." for name in usual})
    )
    return parse(said | {name: usual[name] for name in WHERE} | dict(given))
