"""What a listing comes to beside a plan: which images are new, which are known, and how they have changed.

A listing goes by once, a batch at a time. Of the planned and the listed images only hashes are in memory; where one
matches, the strings are compared. What is new waits, as bytes of Parquet, until the listing is complete, since some
questions can be answered only then (was a folder moved, or copied?), and nothing is written for a listing that fails.

The same image is what lies at the same path; its key may have changed with the inputs that were named. Where that
fails: what has the same key, size and modification time, while nothing is listed any more where the plan saw it
(a folder that was moved).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from amg.run.drift import COMPARED, Drift, DriftCount, equal
from amg.run.hashes import Hashes, Index, Places, has_twins, hash_strings
from amg.run.identity import WHICH, are_same, hash_images, index_images, only_chunk, repeated, whole_paths
from amg.run.keys import free_keys
from amg.run.listing import Listed, batches
from amg.run.plan import MOVED_SCHEMA, Plan
from amg.run.rows import Spool
from amg.sources.source import LISTING_SCHEMA, Report, Skipped, ignore

PLACE = pa.field("place", pa.int64())
"""Of a new image: the planned one that has its key; null where the key is free."""
MAY_BE_IT = pa.field("may_be_it", pa.bool_(), nullable=False)
"""Whether that one has the same size and modification time."""
WAITING_SCHEMA = pa.schema([*LISTING_SCHEMA, PLACE, MAY_BE_IT])


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """`plan` is the one that was met, with the paths where its images lie now; `new` images are not in it.

    `only_addresses`: the listing is nothing but remote paths, of which it says no size and no time.
    """

    plan: Plan
    found: int
    new: int
    new_bytes: int
    drift: Drift
    only_addresses: bool
    _surveyor: Surveyor

    def tables(self) -> Iterator[pa.Table]:
        """The new images in the order of the listing, of LISTING_SCHEMA, under keys that no other image has."""
        yield from self._surveyor.new_images()


def survey(
    plan: Plan, listed: Listed, *, skipped: Report = ignore, limit: int | None = None, is_whole: bool = True
) -> Survey:
    """Read a listing, or its first `limit` images, in the light of a plan; `skipped` hears of what comes twice.

    With a limit, or where the listing `is_whole` not, what is not listed is not called gone.
    """
    surveyor = Surveyor(plan, skipped)
    for batch in batches(listed):
        surveyor.meet(batch, limit)
        if limit is not None and surveyor.found >= limit:
            break
    return surveyor.conclude(is_whole=is_whole and limit is None)


class Surveyor:
    """The work of `survey`: `meet` the batches of a listing one after the other, then `conclude`."""

    def __init__(self, plan: Plan, skipped: Report) -> None:
        self.found = 0
        self._plan, self._skipped = plan, skipped
        self._n_planned = len(plan.rows)
        self._seen = np.zeros(self._n_planned, bool)
        self._waiting = Spool(WAITING_SCHEMA)
        self._images = index_images(plan)  # planned ones at their rows, then the new ones
        self._listed_keys: Index | None = None  # none while every key is the path of its image, which is its own
        self._drift = DriftCount()
        self._clashes = self._new_bytes = 0
        self._only_addresses = True

    def meet(self, batch: pa.RecordBatch, limit: int | None) -> None:
        """Take the next images, no more than are wanted in all."""
        images = hash_images(batch)
        places = self._images.find(images, lambda asked, there: self._is_same(batch, asked, there))
        again = places >= self._n_planned
        planned = np.flatnonzero((places >= 0) & ~again)
        again[planned] = self._seen[places[planned]]
        again |= repeated(batch, images)
        kept = np.flatnonzero(~again)[: None if limit is None else limit - self.found]
        if limit is not None and self.found + len(kept) == limit:
            again[kept[-1] :] = False
        for key in batch.column("key").filter(pa.array(again)).to_pylist():
            self._skipped(Skipped(key, "listed twice; the first one counts"))
        self._take(_pick(pa.Table.from_batches([batch]), kept), images[kept], places[kept])

    def conclude(self, *, is_whole: bool) -> Survey:
        """The listing is over."""
        moved = self._find_moved()
        n_moved = moved.num_rows if moved else 0
        unlisted = ~self._seen if is_whole else np.zeros(self._n_planned, bool)
        if moved:
            unlisted[np.asarray(moved["place"])] = False
        self._drift.miss(np.flatnonzero(unlisted))
        return Survey(
            plan=replace(self._plan, moved=moved),
            found=self.found,
            new=len(self._waiting) - n_moved,
            new_bytes=self._new_bytes,
            drift=self._drift.total(lambda rows: self._plan.rows.take(rows, ["key"])["key"].to_pylist()),
            only_addresses=self._only_addresses,
            _surveyor=self,
        )

    def new_images(self) -> Iterator[pa.Table]:
        """See `Survey.tables`."""
        used: set[str] = set()
        for table in self._waiting.tables():
            if self._clashes:
                table = table.filter(pa.array(~self._is_moved(table)))
                table = self._with_free_keys(table, used)
            yield table.select(LISTING_SCHEMA.names)

    def _take(self, table: pa.Table, images: Hashes, places: Places) -> None:
        """Images that come for the first time."""
        self.found += table.num_rows
        self._only_addresses = self._only_addresses and _only_addresses(table)
        table = self._with_distinct_keys(table)
        known, new = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
        if len(known):
            self._seen[places[known]] = True
            there = self._plan.rows.take(places[known], COMPARED)
            self._drift.meet(places[known], _pick(table.select(COMPARED), known), there)
        if len(new):
            self._images.add(images[new], self._n_planned + len(self._waiting))
            self._put_away(_pick(table, new))

    def _put_away(self, new: pa.Table) -> None:
        place, may_be_it = self._namesakes(new)
        self._clashes += int((place >= 0).sum())
        self._new_bytes += _sum(new["size_bytes"])
        columns = [*new.columns, pa.array(place, mask=place < 0), pa.array(may_be_it)]
        self._waiting.append(pa.table(columns, schema=WAITING_SCHEMA))

    def _is_same(self, batch: pa.RecordBatch, asked: Places, places: Places) -> NDArray[np.bool_]:
        """Whether listed images are those at these places, among the planned ones or behind them the new ones."""
        same = np.empty(len(asked), bool)
        for rows, first, picked in (
            (self._plan.rows, 0, places < self._n_planned),
            (self._waiting, self._n_planned, places >= self._n_planned),
        ):
            if picked.any():
                here = _pick(pa.Table.from_batches([batch]), asked[picked])
                same[picked] = are_same(here, rows.take(places[picked] - first, WHICH))
        return same

    def _with_distinct_keys(self, table: pa.Table) -> pa.Table:
        """No two images of a listing have one key."""
        if self._listed_keys is None:
            if table["key"].equals(table["uri"]):
                return table
            self._listed_keys = self._index_listed_paths()
        listed = self._listed_keys
        hashes = hash_strings(only_chunk(table["key"]))
        taken_N = listed.may_have(hashes)
        if taken_N.any() or has_twins(hashes):
            keys, paths = table["key"].to_pylist(), whole_paths(table)
            given = free_keys(keys, paths, taken_N, lambda some: listed.may_have(_hash_list(some)), set())
            hashes = _hash_list(given)
            table = _with_keys(table, given)
        listed.add(hashes, 0)
        return table

    def _index_listed_paths(self) -> Index:
        """Of all images that were listed so far."""
        index = Index(self.found)
        for table in self._waiting.tables(["uri"]):
            index.add(hash_strings(only_chunk(table["uri"])), 0)
        first = 0
        for table in self._plan.rows.tables(["uri"]) if self._seen.any() else ():
            index.add(hash_strings(only_chunk(table["uri"]))[self._seen[first : first + table.num_rows]], 0)
            first += table.num_rows
        return index

    def _with_free_keys(self, table: pa.Table, used: set[str]) -> pa.Table:
        """Nor has a new image a key of the plan, or one that is listed."""
        clashing = np.flatnonzero(np.asarray(table["place"].is_valid()))
        if not len(clashing):
            return table

        if self._listed_keys is None:
            self._listed_keys = self._index_listed_paths()
        listed = self._listed_keys

        def taken(some: Sequence[str]) -> NDArray[np.bool_]:
            hashes = _hash_list(some)
            return self._planned_keys.may_have(hashes) | listed.may_have(hashes)

        keys, paths = table["key"].to_pylist(), whole_paths(table.take(pa.array(clashing)))
        all_taken = np.ones(len(clashing), bool)
        given = free_keys([keys[n] for n in clashing], paths, all_taken, taken, used)
        for n, key in zip(clashing, given, strict=True):
            keys[n] = key
        return _with_keys(table, keys)

    def _namesakes(self, new: pa.Table) -> tuple[Places, NDArray[np.bool_]]:
        """The planned images with the keys of new ones, -1 where there is none; whether it may be the same file."""
        may_be_it = np.zeros(new.num_rows, bool)
        if not self._n_planned:
            return np.full(new.num_rows, -1, np.int64), may_be_it
        keys = only_chunk(new["key"])

        def is_same(asked: Places, places: Places) -> NDArray[np.bool_]:
            there = self._plan.rows.take(places, ["key"])["key"]
            return equal(pa.chunked_array([keys.take(pa.array(asked))]), there)

        place = self._planned_keys.find(hash_strings(keys), is_same)
        asked = np.flatnonzero(place >= 0)
        here, there = new.take(pa.array(asked)), self._plan.rows.take(place[asked], COMPARED)
        may_be_it[asked] = equal(here["size_bytes"], there["size_bytes"]) & equal(here["tag"], there["tag"])
        return place, may_be_it

    @cached_property
    def _planned_keys(self) -> Index:
        index, first = Index(self._n_planned), 0
        for table in self._plan.rows.tables(["key"]):
            index.add(hash_strings(only_chunk(table["key"])), first)
            first += table.num_rows
        return index

    def _find_moved(self) -> pa.Table | None:
        """The planned images that are listed at another place, while nothing is at theirs."""
        parts = []
        for table in self._waiting.tables() if self._clashes else ():
            moved = table.filter(pa.array(self._is_moved(table)))
            self._new_bytes -= _sum(moved["size_bytes"])
            self._drift.move(np.asarray(moved["place"]))
            if moved.num_rows:
                parts.append(moved.select(MOVED_SCHEMA.names).cast(MOVED_SCHEMA))
        return pa.concat_tables(parts).sort_by("place") if parts else None

    def _is_moved(self, waiting: pa.Table) -> NDArray[np.bool_]:
        may_be_it = np.asarray(waiting["may_be_it"])
        place = np.asarray(waiting["place"].fill_null(0)).astype(np.int64)
        return may_be_it & ~self._seen[place]


def _only_addresses(table: pa.Table) -> bool:
    if any(table[name].null_count < table.num_rows for name in COMPARED):
        return False
    local = pc.call_function("starts_with", [table["uri"]], pc.MatchSubstringOptions("/"))
    return not pc.call_function("any", [local]).as_py()


def _with_keys(table: pa.Table, keys: Sequence[str]) -> pa.Table:
    n = table.schema.get_field_index("key")
    return table.set_column(n, table.schema.field(n), pa.array(keys, pa.string()))


def _pick(table: pa.Table, rows: Places) -> pa.Table:
    """Some rows, in growing order."""
    return table if len(rows) == table.num_rows else table.take(pa.array(rows))


def _sum(sizes: pa.ChunkedArray) -> int:
    return int(np.asarray(sizes.fill_null(0)).sum())


def _hash_list(strings: Sequence[str]) -> Hashes:
    return hash_strings(pa.array(strings, pa.string()))
