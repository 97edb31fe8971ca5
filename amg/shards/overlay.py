"""Rows of retries over the rows of the shards: of the generations that have an image, the newest one counts.

Which images were retried, and where their newest rows lie, is held in memory; the rows themselves are read when their
turn comes.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amg.errors import FormatError
from amg.shards import shard_file
from amg.storage.store import Entry, Store

FOLDER = "retries"
PART = re.compile(rf"{FOLDER}/g(\d+)/data/part-(\d{{6,}})\.parquet")
COUNTED = ("image_id", "status", "num_masks")
ROWS_AT_ONCE = 16  # a row may hold megabytes of annotations
THREADS = 8


@dataclass(frozen=True, slots=True, eq=False)
class Overlay:
    """Of each image that was retried the newest row, sorted by image: the `place_N`-th of `parts[part_N]`."""

    store: Store
    parts: tuple[Entry, ...]
    image_id_N: NDArray[np.int64]
    part_N: NDArray[np.int64]
    place_N: NDArray[np.int64]
    status_N: NDArray[np.object_]
    masks_N: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.image_id_N)

    def find(self, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """For each image its place among these, -1 where it was not retried."""
        if not len(self):
            return np.full(len(image_ids), -1)
        found = np.minimum(np.searchsorted(self.image_id_N, image_ids), len(self) - 1)
        return np.where(self.image_id_N[found] == image_ids, found, -1)

    def lay_over(
        self, batches: Iterable[pa.RecordBatch], columns: Sequence[str] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """The same rows in the same order, those that were retried from their retries; `image_id` must be there."""
        cursors: dict[str, _Cursor] = {}
        for batch in batches:
            done = 0
            found = self.find(np.asarray(batch.column("image_id")))
            for n in np.flatnonzero(found >= 0).tolist():
                if n > done:
                    yield batch.slice(done, n - done)
                path = self.parts[self.part_N[found[n]]].path
                cursor = cursors.setdefault(_generation(path), _Cursor(self.store, columns))
                yield cursor.row(path, int(self.place_N[found[n]]))
                done = n + 1
            if done < batch.num_rows:
                yield batch.slice(done)

    def changes(self, paths: Sequence[str]) -> tuple[Counter[str], int]:
        """By how much the rows of each status, and the masks, of these shards change."""
        rows: Counter[str] = Counter()
        masks = 0
        with ThreadPoolExecutor(THREADS) as threads:
            for counted in threads.map(partial(shard_file.table, self.store, columns=COUNTED), paths):
                found = self.find(np.asarray(counted["image_id"]))
                there = counted.filter(pa.array(found >= 0))
                rows.update(self.status_N[found[found >= 0]].tolist())
                rows.subtract(there["status"].to_pylist())
                masks += int(self.masks_N[found[found >= 0]].sum()) - _sum(there["num_masks"])
        return rows, masks


class _Cursor:
    """Single rows of the files of one generation. Asked for in their order, each file is read once."""

    def __init__(self, store: Store, columns: Sequence[str] | None) -> None:
        self._store, self._columns = store, columns
        self._path = ""
        self._first = 0

    def row(self, path: str, place: int) -> pa.RecordBatch:
        if path != self._path or place < self._first:
            self._batches = shard_file.batches(self._store, path, self._columns, rows_at_once=ROWS_AT_ONCE)
            self._path, self._first, self._batch = path, 0, next(self._batches)
        while place >= self._first + self._batch.num_rows:
            self._first += self._batch.num_rows
            self._batch = next(self._batches)
        return self._batch.slice(place - self._first, 1)


def read_overlay(store: Store, *, damaged: Callable[[FormatError], object] | None = None) -> Overlay:
    """What the retries of an output have committed so far.

    A file that is not a whole shard is told to `damaged` and does not count; without it, FormatError.
    """
    parts = sorted((entry for entry in store.list(FOLDER) if PART.fullmatch(entry.path)), key=_order)
    with ThreadPoolExecutor(THREADS) as threads:
        read = list(threads.map(partial(_counted_or_error, store), [part.path for part in parts]))
    for error in read:
        if isinstance(error, FormatError):
            if damaged is None:
                raise error
            damaged(error)
    sound = [(part, table) for part, table in zip(parts, read, strict=True) if isinstance(table, pa.Table)]
    return _index(store, [part for part, _ in sound], [table for _, table in sound])


def _index(store: Store, parts: Sequence[Entry], tables: Sequence[pa.Table]) -> Overlay:
    lengths = [table.num_rows for table in tables]
    ids = np.concatenate([np.empty(0, np.int64), *(np.asarray(table["image_id"]) for table in tables)])
    status = [status for table in tables for status in table["status"].to_pylist()]
    masks = [masks or 0 for table in tables for masks in table["num_masks"].to_pylist()]
    order = np.argsort(ids, kind="stable")
    newest = order[np.flatnonzero(np.diff(ids[order], append=-1))]  # the last of those of one image
    place = np.concatenate([np.empty(0, np.int64), *map(np.arange, lengths)])
    return Overlay(
        store,
        tuple(parts),
        ids[newest],
        np.repeat(np.arange(len(parts)), lengths)[newest],
        place[newest],
        np.array(status, np.object_)[newest],
        np.array(masks, np.int64)[newest],
    )


def _counted_or_error(store: Store, path: str) -> pa.Table | FormatError:
    try:
        return shard_file.table(store, path, COUNTED)
    except FormatError as error:
        return error


def _order(part: Entry) -> tuple[int, int]:
    match = PART.fullmatch(part.path)
    assert match is not None, part.path
    return int(match[1]), int(match[2])


def _generation(path: str) -> str:
    return path.split("/")[1]


def _sum(column: pa.ChunkedArray) -> int:
    return int(np.asarray(column.fill_null(0)).sum())
