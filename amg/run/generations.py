"""Retries as they lie in an output: each generation is a small job of its own, laid over the ones before.

`retries/gK/plan.parquet`               its images, in shards, and the status that each had
`retries/gK/data/part-NNNNNN.parquet`   the rows, in files like those of `data/`
`retries/gK/_state/attempts/`           what workers died of

The plan is one file, created if absent: with it the generation is there, whole. Nothing of `data/` is ever edited.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg.config import nearest
from amg.errors import ConfigError, FormatError
from amg.run.plan import MANIFEST_SCHEMA, Plan, finished_shards, shard_path
from amg.shards.footers import read_footers
from amg.shards.overlay import FOLDER, read_overlay
from amg.shards.reader import Snapshot, shard_paths
from amg.storage.store import Store
from amg.storage.within import Within
from amg.values import Status

WAS = pa.field("was", pa.string(), nullable=False)
GENERATION_SCHEMA = pa.schema([*MANIFEST_SCHEMA, WAS])
VERSION = 1
METADATA = "sam_amg.retry"
PLAN_NAME = "plan.parquet"
SUSPECT = (Status.CRASH, Status.TIMEOUT)
"""What only a worker that can be killed may touch, one image at a time."""

_PLACE = re.compile(rf"{FOLDER}/g(\d+)/(.*)")


@dataclass(frozen=True, eq=False)
class Generation:
    """One retry. `plan` holds its images alone, in shards of its own; `table` has the columns of GENERATION_SCHEMA."""

    number: int
    statuses: tuple[str, ...]
    table: pa.Table
    plan: Plan
    store: Store

    @cached_property
    def left(self) -> Plan:
        """What had no row when this was first asked."""
        return self.plan.without(finished_shards(self.store))

    @property
    def left_table(self) -> pa.Table:
        """The images of `left`, with the status that each had."""
        done = finished_shards(self.store)
        return self.table.filter(pa.array(~np.isin(np.asarray(self.table["shard"]), list(done))))


@dataclass(frozen=True, slots=True, eq=False)
class Todo:
    """What a retry has to do: `failed` are its images, in GENERATION_SCHEMA.

    Where an `ongoing` generation is to be finished, `number` is its own and `failed` what it has left.
    """

    number: int
    failed: pa.Table
    ongoing: Generation | None = None

    @property
    def images(self) -> int:
        return self.failed.num_rows

    @property
    def by_status(self) -> dict[str, int]:
        """How many of them have which status now."""
        return {each["values"]: each["counts"] for each in self.failed["was"].value_counts().to_pylist()}

    @property
    def suspects(self) -> int:
        """How many of them a worker died of before."""
        return sum(count for status, count in self.by_status.items() if status in SUSPECT)


def failures_named(names: Collection[str]) -> tuple[str, ...]:
    """The same, known to be statuses of images without masks, in order and once each; ConfigError otherwise."""
    known = [str(status) for status in Status if status is not Status.OK]
    for name in names:
        if name not in known:
            raise ConfigError(f"there is no failure {name!r}{nearest(name, known)}; statuses: {', '.join(known)}")
    return tuple(sorted(set(names)))


def read_generations(store: Store, plan: Plan) -> list[Generation]:
    """All retries of an output, oldest first; FormatError where the plan of one cannot be read or is of another job."""
    return [read_generation(store, plan, number) for number in generation_numbers(store)]


def read_generation(store: Store, plan: Plan, number: int) -> Generation:
    """One of them; FormatError where its plan cannot be read or is of another job."""
    path = _plan_path(number)
    try:
        with pq.ParquetFile(io.BytesIO(store.read(path))) as file:
            said = json.loads((file.schema_arrow.metadata or {})[METADATA.encode()])
            table = file.read(use_threads=False).select(GENERATION_SCHEMA.names).cast(GENERATION_SCHEMA)
        version, statuses, fingerprint = said["version"], tuple(said["statuses"]), said["fingerprint"]
    except (pa.ArrowException, KeyError, ValueError, TypeError, OSError) as error:
        raise FormatError(
            f"{store.url}/{path} is not the plan of a retry ({error!r}); bring it back from a copy, or remove "
            f"{folder(number)}: its images then have the rows from before it"
        ) from error
    if (version, fingerprint) != (VERSION, plan.fingerprint):
        raise FormatError(
            f"{store.url}/{path} has version {version} and fingerprint {str(fingerprint)[:12]}, wanted {VERSION} and "
            f"{plan.fingerprint[:12]}: it belongs to another job; remove {folder(number)}"
        )
    suspects = table.filter(pa.array(np.isin(table["was"].to_numpy(), SUSPECT)))["shard"]
    part = Plan.of_table(plan.depends_on, table, isolated=frozenset(suspects.to_pylist()))
    return Generation(number, statuses, table, part, Within(store, folder(number)))


def generation_numbers(store: Store) -> list[int]:
    """Of the generations that have a plan, in order."""
    return sorted(number for number, path in _files(store) if path == PLAN_NAME)


def look(store: Store, plan: Plan, statuses: Sequence[str]) -> Todo:
    """What a retry of these statuses has to do now. Writes nothing.

    The newest generation of exactly these statuses that has images left goes on; else a new one is due.
    """
    number = next_number(store)  # first: who begins a generation meanwhile has taken it
    same = [each for each in read_generations(store, plan) if each.statuses == tuple(statuses)]
    for generation in reversed(same):
        if (left := generation.left_table).num_rows:
            return Todo(generation.number, left, generation)
    snapshot = Snapshot(store, shard_paths(store, "data"), read_overlay(store))
    return Todo(number, find_failed(snapshot, plan, statuses))


def begin(store: Store, plan: Plan, statuses: Sequence[str], todo: Todo, *, images_per_shard: int) -> Generation | None:
    """The generation in which this is to be done, there once this returns; None when nothing is left to do.

    Where another retry has taken the number meanwhile, one looks again, and goes on with it if it is of these statuses.
    """
    while todo.images:
        if generation := todo.ongoing or _create(store, plan, statuses, todo, images_per_shard):
            return generation
        todo = look(store, plan, statuses)
    return None


def find_failed(snapshot: Snapshot, plan: Plan, statuses: Sequence[str]) -> pa.Table:
    """The planned images whose newest row has one of these statuses, in plan order: GENERATION_SCHEMA, shards all 0.

    Their `uri` is where they were read. Shards whose footers know no such row are not read.
    """
    rows, was, uris = [np.empty(0, np.int64)], [], []
    paths = _may_have(snapshot, plan, statuses)
    for batch in snapshot.only(paths).batches(("image_id", "uri", "status"), rows_at_once=1024):
        there = np.isin(batch.column("status").to_numpy(zero_copy_only=False), statuses)
        found = batch.filter(pa.array(there))
        rows.append(np.asarray(found.column("image_id")))
        was += found.column("status").to_pylist()
        uris += found.column("uri").to_pylist()
    image_ids = np.concatenate(rows)
    if len(image_ids) and not 0 <= image_ids.min() <= image_ids.max() < plan.n_images:
        raise FormatError(
            f"{snapshot.store.url} has rows for image {image_ids.max()}, its plan has {plan.n_images} images; "
            "look what `sam-amg verify` says of this output"
        )
    table = plan.rows.take(image_ids, MANIFEST_SCHEMA.names).append_column(WAS, pa.array(was, WAS.type))
    for name, values in (("uri", uris), ("shard", np.zeros(len(was), np.int64))):
        n = table.schema.get_field_index(name)
        table = table.set_column(n, table.schema.field(n), pa.array(values, table.schema.field(n).type))
    return table


def next_number(store: Store) -> int:
    """Of the next generation."""
    return max((number for number, _ in _files(store)), default=0) + 1


def folder(number: int) -> str:
    """Where a generation lies below the output folder."""
    return f"{FOLDER}/g{number}"


def _create(store: Store, plan: Plan, statuses: Sequence[str], todo: Todo, images_per_shard: int) -> Generation | None:
    """The generation of that number; None where somebody else was faster."""
    n = GENERATION_SCHEMA.get_field_index("shard")
    shards = pa.array(np.arange(todo.images) // images_per_shard)
    said = {"version": VERSION, "statuses": list(statuses), "fingerprint": plan.fingerprint}
    table = todo.failed.set_column(n, GENERATION_SCHEMA.field(n), shards).cast(GENERATION_SCHEMA)
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({METADATA: json.dumps(said)}), sink, compression="zstd")
    if not store.create_if_absent(_plan_path(todo.number), sink.getvalue()):
        return None
    return read_generation(store, plan, todo.number)


def _plan_path(number: int) -> str:
    return f"{folder(number)}/{PLAN_NAME}"


def _files(store: Store) -> list[tuple[int, str]]:
    """The generation of each file below `retries/`, and its path in there."""
    matches = (_PLACE.fullmatch(entry.path) for entry in store.list(FOLDER))
    return [(int(match[1]), match[2]) for match in matches if match]


def _may_have(snapshot: Snapshot, plan: Plan, statuses: Sequence[str]) -> list[str]:
    """The planned shards whose footer counts such a status, or that have an image whose retry ended so."""
    assert snapshot.overlay is not None, "an output, not a folder of shards"
    failed = snapshot.overlay.image_id_N[np.isin(snapshot.overlay.status_N, statuses)]
    retried = {shard_path(number) for number in touched_shards(plan, failed)}
    planned = {shard_path(number) for number in plan.layout.number_S.tolist()}
    paths = [path for path in snapshot.paths if path in planned]
    found = []
    for path, footer in zip(paths, read_footers(snapshot.store, paths), strict=True):
        if isinstance(footer, FormatError):
            raise footer
        if path in retried or footer.stats["rows"].keys() & set(statuses):
            found.append(path)
    return found


def touched_shards(plan: Plan, image_ids: NDArray[np.int64]) -> list[int]:
    """The shards that have these images, each once, in order; images that the plan does not have are left out."""
    return plan.shards_of(image_ids[(image_ids >= 0) & (image_ids < plan.n_images)])
