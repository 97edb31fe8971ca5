"""Which shards of an output make which file of a compacted one, and the plan that says so."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg.errors import OutputRefused
from amg.run.listing import SKIPPED_SCHEMA
from amg.run.plan import MANIFEST_SCHEMA, SHARD, Plan, create_plan, manifest_path, shard_path
from amg.run.rows import RowFile, Rows, encode, not_rows
from amg.run.status import planned
from amg.shards.overlay import Overlay, read_overlay
from amg.storage.store import Store

ROWS_PER_MANIFEST = 500_000
ROWS_PER_GROUP = 1 << 15


@dataclass(frozen=True, slots=True, eq=False)
class Origin:
    """An output at one moment. `size_bytes` of the files that count, by path; `is_there_S` of the plan's shards."""

    store: Store
    plan: Plan
    overlay: Overlay
    size_bytes: Mapping[str, int]
    is_there_S: NDArray[np.bool_]

    @property
    def state(self) -> str:
        """Another one when another file counts."""
        lines = (f"{path} {size}" for path, size in sorted(self.size_bytes.items()))
        return hashlib.sha256("\n".join([self.plan.fingerprint, str(self.plan.n_images), *lines]).encode()).hexdigest()

    def images(self, number_S: NDArray[np.int64]) -> Mapping[int, int]:
        """How many images each new shard has."""
        sizes = self.plan.layout.stop_S - self.plan.layout.start_S
        return dict(enumerate(np.bincount(number_S, sizes).astype(np.int64).tolist()))


def read_origin(store: Store) -> Origin:
    """The output as it is now; StorageError where there is no plan, FormatError where a retry cannot be read."""
    plan = planned(store)
    there = {entry.path: entry.size_bytes for entry in store.list("data")}
    paths = [shard_path(number) for number in plan.layout.number_S.tolist()]
    overlay = read_overlay(store)
    sizes = {path: there[path] for path in paths if path in there}
    is_there = np.array([path in there for path in paths], np.bool_)
    return Origin(store, plan, overlay, sizes | {part.path: part.size_bytes for part in overlay.parts}, is_there)


def regroup(origin: Origin, target_bytes: int) -> NDArray[np.int64]:
    """The number of the new shard of each shard of the plan: as many together as the target holds, one at least.

    A shard that is not there stays one of its own.
    """
    numbers, number, filled = [], -1, np.inf
    for size, is_there in zip(_bytes_S(origin).tolist(), origin.is_there_S.tolist(), strict=True):
        if not is_there or filled + size > target_bytes:
            number, filled = number + 1, 0.0
        filled = filled + size if is_there else np.inf
        numbers.append(number)
    return np.array(numbers, np.int64)


def _bytes_S(origin: Origin) -> NDArray[np.float64]:
    """What each shard takes with its retries: a row of those counts as its share of its file."""
    layout, overlay = origin.plan.layout, origin.overlay
    bytes_S = np.array([origin.size_bytes.get(shard_path(number), 0) for number in layout.number_S.tolist()], float)
    if len(overlay):
        share = np.array([part.size_bytes for part in overlay.parts]) / np.maximum(
            np.bincount(overlay.part_N, minlength=len(overlay.parts)), 1
        )
        known = overlay.image_id_N < origin.plan.n_images
        places = np.searchsorted(layout.stop_S, overlay.image_id_N[known], side="right")
        np.add.at(bytes_S, places, share[overlay.part_N[known]])
    return bytes_S


def write_plan(store: Store, origin: Origin, number_S: NDArray[np.int64]) -> Plan:
    """The plan of the compacted output: the same images in the same rows, in other shards. There once this returns."""
    _copy_skipped(store, origin.store)
    for number, table in enumerate(_manifests(origin.plan, number_S)):
        store.create_if_absent(manifest_path(number), encode(table, rows_per_group=ROWS_PER_GROUP))
    plan = create_plan(store, origin.plan.depends_on)  # last: until then it is no output
    wanted, there = origin.images(number_S), plan.images_by_shard()
    if {number: there.get(number) for number in wanted} != wanted:
        raise OutputRefused(f"{store.url} has another plan than that of {origin.store.url}; give another --out")
    return plan


def _manifests(plan: Plan, number_S: NDArray[np.int64]) -> Iterator[pa.Table]:
    """The rows with their new shards; about half a million a table, none of which has only a part of a shard."""
    waiting = MANIFEST_SCHEMA.empty_table()
    for table in plan.tables():
        waiting = pa.concat_tables([waiting, _renumbered(table, plan, number_S)])
        if waiting.num_rows >= ROWS_PER_MANIFEST:
            shards = np.asarray(waiting["shard"])
            end = int(np.searchsorted(shards, shards[-1]))  # where the last shard begins, which may go on
            if end:
                yield waiting.slice(0, end).combine_chunks()
                waiting = waiting.slice(end)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def _renumbered(table: pa.Table, plan: Plan, number_S: NDArray[np.int64]) -> pa.Table:
    before = np.searchsorted(plan.layout.number_S, np.asarray(table["shard"]))
    column = table.schema.get_field_index(SHARD.name)
    return table.set_column(column, SHARD, pa.array(number_S[before]))


def _copy_skipped(store: Store, origin: Store) -> None:
    """What the listings left out, in one file; and which inputs are known to be planned whole."""
    tables = [SKIPPED_SCHEMA.empty_table()]
    for entry in origin.list("_plan"):
        if entry.path.startswith("_plan/skipped-"):
            tables += Rows(SKIPPED_SCHEMA, [_opened(origin, entry.path)]).tables()
        elif entry.path.startswith("_plan/listed-"):
            store.create_if_absent(entry.path, origin.read(entry.path))
    sink = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), sink, compression="zstd")
    store.create_if_absent("_plan/skipped-00000.parquet", sink.getvalue())


def _opened(store: Store, path: str) -> RowFile:
    name = f"{store.url}/{path}"
    try:
        with store.open(path) as file:
            return RowFile(name, partial(store.open, path), pq.read_metadata(file))
    except (pa.ArrowException, OSError) as error:
        raise not_rows(name, error) from error
