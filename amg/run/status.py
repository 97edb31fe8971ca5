"""How far a job is, from its output alone: the plan, the names of the shards and their footers."""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from amg.config import Config, flatten
from amg.errors import FormatError, StorageError
from amg.run.generations import Generation, failures_named, read_generations, touched_shards
from amg.run.origin_note import read_note
from amg.run.plan import PLAN_FILE, Plan, read_plan, shard_path
from amg.sam.weights import KNOWN
from amg.shards.footers import Footer, read_footers
from amg.shards.overlay import read_overlay
from amg.shards.reader import read_shards
from amg.storage.store import Store
from amg.storage.url import open_store
from amg.values import Status

SHARDS_TIMED = 50  # the rate is that of the last so many
PAUSE = 10.0  # a gap between two shards so many times the usual one is a pause, not work


@dataclass(frozen=True, slots=True)
class RetryStatus:
    """One generation of retries: the statuses it was for, its images, and how many of them have a new row."""

    generation: int
    statuses: tuple[str, ...]
    images: int
    done: int


@dataclass(frozen=True, slots=True)
class JobStatus:
    """`rows` counts by status; `settings` are those that differ from the defaults.

    An image that was retried counts with its newest row. `damaged` says which files do not count. `images_per_second`
    and `seconds_left` come from the shards that were labeled here, and are None while these are too few to tell.
    """

    out: str
    weights: str
    fingerprint: str
    settings: Mapping[str, Any]
    planned: int
    done: int
    rows: Mapping[str, int]
    masks: int
    shards_planned: int
    shards_done: int
    damaged: tuple[str, ...]
    images_per_second: float | None
    seconds_left: float | None
    seconds_since_last_shard: float | None
    retries: tuple[RetryStatus, ...] = ()

    @property
    def left(self) -> int:
        return self.planned - self.done

    def to_json(self) -> str:
        """One line of JSON: the fields and `left`."""
        return json.dumps(asdict(self) | {"left": self.left}, ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """An image without masks, as the output has it."""

    key: str
    uri: str
    status: str
    reason: str


def job_status(folder: str, *, now: float | None = None) -> JobStatus:
    """The state of the output at this moment; nothing is written and no lock is taken, so a job may be running.

    Raises StorageError where there is no plan.
    """
    store = open_store(folder)
    plan = planned(store)
    sizes = {shard_path(number): count for number, count in plan.images_by_shard().items()}
    entries = [entry for entry in store.list("data") if entry.path in sizes]
    footers, damaged = _sound(store, [entry.path for entry in entries])
    rows, masks = _counts(footers)
    rows, masks = _newest(store, plan, [footer.path for footer in footers], rows, masks, damaged)
    modified = {entry.path: entry.modified for entry in entries}
    done = sum(rows.values())
    note = read_note(store)
    labeled = [footer for footer in footers if note is None or footer.path not in note.made]
    rate = images_per_second([(modified[footer.path], footer.n_rows) for footer in labeled])
    since = (time.time() if now is None else now) - max(modified.values()) if modified else None
    return JobStatus(
        out=folder,
        weights=weights_name(plan),
        fingerprint=plan.fingerprint,
        settings=unusual_settings(plan),
        planned=plan.n_images,
        done=done,
        rows=rows,
        masks=masks,
        shards_planned=len(sizes),
        shards_done=len(footers),
        damaged=tuple(damaged),
        images_per_second=rate,
        seconds_left=(plan.n_images - done) / rate if rate else None,
        seconds_since_last_shard=since,
        retries=tuple(_retry_status(each) for each in read_generations(store, plan)),
    )


def planned(store: Store) -> Plan:
    """The plan of an output; StorageError where there is none."""
    plan = read_plan(store)
    if plan is None:
        raise StorageError(
            f"no job in {store.url}: wanted {PLAN_FILE}; give the folder that `sam-amg run --out` writes to"
        )
    return plan


def failed_images(folder: str, statuses: Collection[str] = ()) -> Iterator[Lost]:
    """The images that have no masks, in plan order, all or those of these statuses; reads small columns only."""
    statuses = failures_named(statuses)
    store = open_store(folder)
    if not any(True for _ in store.list("data")) and read_plan(store) is not None:
        return  # planned, and no shard is finished yet
    for row in read_shards(folder, columns=("key", "uri", "status", "error")):
        if row["status"] in statuses if statuses else row["status"] != Status.OK:
            yield Lost(row["key"], row["uri"], row["status"], row["error"] or "")


def weights_name(plan: Plan) -> str:
    """The name of the published weights that the plan is for, else the beginning of their digest."""
    sha256 = str(plan.depends_on.get("weights.sha256", ""))
    names = [checkpoint.name for checkpoint in KNOWN.values() if checkpoint.sha256 == sha256]
    return names[0] if names else f"sha256 {sha256[:12]}"


def unusual_settings(plan: Plan) -> dict[str, Any]:
    """The settings in which the plan differs from the defaults; what the machine pinned is left out."""
    usual = json.loads(json.dumps(flatten(Config())))
    settled = {"generate.points_per_batch", "run.threads"}
    return {
        name: value
        for name, value in plan.depends_on.items()
        if name in usual and name not in settled and value != usual[name]
    }


def images_per_second(finished: Sequence[tuple[float, int]]) -> float | None:
    """From (when, how many images) of each shard: the rate of the last ones, pauses between runs left out."""
    last = sorted(finished)[-SHARDS_TIMED - 1 :]
    gaps = [(after - before, images) for (before, _), (after, images) in itertools.pairwise(last)]
    usual = statistics.median([seconds for seconds, _ in gaps]) if gaps else 0.0
    worked = [(seconds, images) for seconds, images in gaps if seconds <= max(PAUSE * usual, 1.0)]
    seconds = sum(seconds for seconds, _ in worked)
    return sum(images for _, images in worked) / seconds if seconds > 0 else None


def _sound(store: Store, paths: Sequence[str]) -> tuple[list[Footer], list[str]]:
    """The footers that can be counted, and what is wrong with the others."""
    footers, damaged = [], []
    for footer in read_footers(store, paths):
        try:
            if isinstance(footer, FormatError):
                raise footer
            assert footer.stats
            footers.append(footer)
        except FormatError as error:
            damaged.append(str(error))
    return footers, damaged


def _newest(
    store: Store, plan: Plan, paths: Sequence[str], rows: dict[str, int], masks: int, damaged: list[str]
) -> tuple[dict[str, int], int]:
    """The counts of these shards when retries are laid over them; only shards that they touch are read."""
    overlay = read_overlay(store, damaged=lambda error: damaged.append(str(error)))
    if not len(overlay):
        return rows, masks
    touched = {shard_path(number) for number in touched_shards(plan, overlay.image_id_N)}
    change, more = overlay.changes([path for path in paths if path in touched])
    return {str(s): n for s in Status if (n := rows.get(s, 0) + change[s])}, masks + more


def _retry_status(generation: Generation) -> RetryStatus:
    images = generation.plan.n_images
    return RetryStatus(generation.number, generation.statuses, images, images - generation.left.n_images)


def _counts(footers: Sequence[Footer]) -> tuple[dict[str, int], int]:
    rows: Counter[str] = Counter()
    masks = 0
    for footer in footers:
        stats = footer.stats
        rows.update(stats["rows"])
        masks += stats["masks"]
    return {str(status): rows[status] for status in Status if rows[status]}, masks
