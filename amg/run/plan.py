"""What a job will do, written down before it does it: the plan never changes, it only grows.

`_plan/plan.json`                what the masks depend on, and the fingerprint of it
`_plan/manifest-NNNNN.parquet`   the images: row, key, uri, member, size, tag, extra, shard; half a million a file
`_plan/skipped-NNNNN.parquet`    what the listing that began with this manifest left out, and why
`_plan/listed-DIGEST.json`       an input of which everything is in the plan, so that it need not be read again

All of them are created if absent. A later run on more files adds manifests; shards never span two of them. Of a plan
only the shape is in memory, a few numbers a shard; references are made shard by shard, from a row group at a time.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg.config import fingerprint
from amg.errors import FormatError, OutputRefused
from amg.run.layout import Layout
from amg.run.rows import RowFile, Rows, encode, not_rows, row_file
from amg.sources.source import LISTING_SCHEMA
from amg.storage.store import Store
from amg.values import ImageRef

PLAN_VERSION = 1
PLAN_FILE = "_plan/plan.json"
ROW = pa.field("row", pa.int64(), nullable=False)
SHARD = pa.field("shard", pa.int64(), nullable=False)
MANIFEST_SCHEMA = pa.schema([ROW, *LISTING_SCHEMA, SHARD])
MOVED_SCHEMA = pa.schema([pa.field("place", pa.int64(), nullable=False), LISTING_SCHEMA.field("uri")])

FIRST_SHARD = "sam_amg.first_shard"
IMAGES_PER_SHARD = "sam_amg.images_per_shard"
"""In the footer of a manifest: its shards, without a look at its rows. Older manifests have no such notes."""

_REF = ["row", *LISTING_SCHEMA.names]


@dataclass(frozen=True, slots=True)
class Shard:
    """`number` names the file `data/part-NNNNNN.parquet`; `refs` are its images, in plan order.

    `isolated`: a worker died of one of them before, so that they are tried one by one from the start.
    """

    number: int
    refs: tuple[ImageRef, ...]
    isolated: bool = False

    @property
    def path(self) -> str:
        return shard_path(self.number)


def shard_path(number: int) -> str:
    """Where a shard lies below the output folder."""
    return f"data/part-{number:06d}.parquet"


def _no_rows() -> Rows:
    return Rows(MANIFEST_SCHEMA)


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What one reading of `_plan` saw, or that and the manifests added to it.

    `rows` has the columns of MANIFEST_SCHEMA, in order; a row's number there is its place, and `layout` says which
    places make which shard. `depends_on` is what the fingerprint is made of. `isolated` are numbers of shards, see
    `Shard`. `moved`, of MOVED_SCHEMA and sorted, has the paths of images that lie elsewhere than planned.
    """

    depends_on: Mapping[str, Any]
    rows: Rows = field(default_factory=_no_rows)
    layout: Layout = field(default_factory=lambda: Layout.joined([]))
    isolated: frozenset[int] = frozenset()
    moved: pa.Table | None = None  # not an empty table: to make one, pyarrow imports pandas

    @classmethod
    def of_table(
        cls, depends_on: Mapping[str, Any], table: pa.Table, *, isolated: frozenset[int] = frozenset()
    ) -> Plan:
        """A plan that lies in no store: `table` has the columns of MANIFEST_SCHEMA, sorted by shard."""
        table = table.select(MANIFEST_SCHEMA.names)
        rows = Rows(MANIFEST_SCHEMA, [row_file("a plan in memory", encode(table, rows_per_group=1 << 16))])
        return cls(depends_on, rows, Layout.of_numbers(np.asarray(table["shard"])), isolated)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.depends_on)

    @property
    def n_manifests(self) -> int:
        return len(self.rows.files)

    @property
    def n_images(self) -> int:
        return int((self.layout.stop_S - self.layout.start_S).sum())

    @property
    def n_shards(self) -> int:
        return len(self.layout)

    @property
    def manifest(self) -> pa.Table:
        """All rows at once, in memory: for plans of which it is known that they are small."""
        return pa.concat_tables([MANIFEST_SCHEMA.empty_table(), *self.tables()])

    def images_by_shard(self) -> dict[int, int]:
        """How many images each shard has, in order of the shards."""
        sizes = self.layout.stop_S - self.layout.start_S
        return dict(zip(self.layout.number_S.tolist(), sizes.tolist(), strict=True))

    def shards_of(self, places: NDArray[np.int64]) -> list[int]:
        """The shards that have these rows, each once, in order."""
        found = np.searchsorted(self.layout.stop_S, np.unique(places), side="right")
        return self.layout.number_S[np.unique(found)].tolist()

    def tables(self, columns: Sequence[str] = MANIFEST_SCHEMA.names) -> Iterator[pa.Table]:
        """The rows in order, a row group or less at a time; `uri` where they lie now."""
        for start, stop in self.layout.spans():
            for table in self.rows.tables(columns, start, stop):
                yield self._where_it_lies(table, start)
                start += table.num_rows

    def shards(self) -> Iterator[Shard]:
        """Every shard, in order; a row group is in memory."""
        near, first = MANIFEST_SCHEMA.empty_table().select(_REF), 0
        layout = self.layout
        for number, start, stop in zip(layout.number_S, layout.start_S, layout.stop_S, strict=True):
            if not first <= start < stop <= first + near.num_rows:
                near, first = self._near(int(start), int(stop)), int(start)
            columns = (column.to_pylist() for column in near.slice(start - first, stop - start).columns)
            refs = tuple(ImageRef(*row) for row in zip(*columns, strict=True))
            yield Shard(int(number), refs, int(number) in self.isolated)

    def without(self, finished: Collection[int]) -> Plan:
        """What is left to do: the plan without the rows of those shards."""
        left = ~np.isin(self.layout.number_S, np.fromiter(finished, np.int64, len(finished)))
        return replace(self, layout=self.layout.select(left))

    def _near(self, start: int, stop: int) -> pa.Table:
        """The rows of a shard and what else is in the row group of the last of them."""
        parts, place = [], start
        for part in self.rows.tables(_REF, start):
            parts.append(self._where_it_lies(part, place))
            place += part.num_rows
            if place >= stop:
                break
        return pa.concat_tables(parts).combine_chunks()

    def _where_it_lies(self, table: pa.Table, start: int) -> pa.Table:
        """The rows from the place `start` on, with the paths of those that were moved."""
        if self.moved is None or "uri" not in table.schema.names:
            return table
        first, end = np.searchsorted(np.asarray(self.moved["place"]), [start, start + table.num_rows])
        there = self.moved.slice(first, end - first)
        mask = np.zeros(table.num_rows, bool)
        mask[np.asarray(there["place"]) - start] = True
        asked = [table["uri"].combine_chunks(), pa.array(mask), there["uri"].combine_chunks()]
        replaced = pc.call_function("replace_with_mask", asked)
        n = table.schema.get_field_index("uri")
        return table.set_column(n, table.schema.field(n), replaced)


def read_plan(store: Store) -> Plan | None:
    """The plan of an output folder, or None when there is none yet; reads the footers of its manifests."""
    if not store.exists(PLAN_FILE):
        return None
    plan = Plan(_depends_on(store))
    there = {path for path in _names(store, "_plan") if path.startswith("_plan/manifest-")}
    wanted = [manifest_path(number) for number in range(len(there))]
    if there != set(wanted):
        raise FormatError(
            f"{store.url} has {len(there)} manifests, and {min(set(wanted) - there)} is not among them; "
            "bring it back from a copy, or use another --out"
        )
    for path in wanted:
        plan = with_manifest(plan, _manifest(store, path))
    return plan


def _depends_on(store: Store) -> Mapping[str, Any]:
    try:
        content = json.loads(store.read(PLAN_FILE))
        version, depends_on, said = content["version"], content["depends_on"], content["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} is not a plan ({error!r}); use another --out, or remove the folder"
        ) from error
    if version != PLAN_VERSION:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} has version {version}, this program reads {PLAN_VERSION}; "
            "use the version that made it, or another --out"
        )
    if fingerprint(depends_on) != said:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} was edited: its fingerprint is {said[:12]}, "
            f"its settings give {fingerprint(depends_on)[:12]}"
        )
    return depends_on


def manifest_path(number: int) -> str:
    return f"_plan/manifest-{number:05d}.parquet"


def _manifest(store: Store, path: str) -> RowFile:
    name = f"{store.url}/{path}"
    try:
        with store.open(path) as file:
            metadata = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise not_rows(name, error) from error
    missing = set(MANIFEST_SCHEMA.names) - set(metadata.schema.to_arrow_schema().names)
    if missing:
        raise not_rows(name, f"it has no column {min(missing)}")
    return RowFile(name, partial(store.open, path), metadata)


def with_manifest(plan: Plan, file: RowFile) -> Plan:
    """The plan and the rows of another manifest."""
    first = len(plan.rows)
    rows = Rows(MANIFEST_SCHEMA, [*plan.rows.files, file])
    return replace(plan, rows=rows, layout=Layout.joined([plan.layout, _layout(file, first)]))


def _layout(file: RowFile, first_place: int) -> Layout:
    notes = file.metadata.metadata or {}
    if FIRST_SHARD.encode() in notes and IMAGES_PER_SHARD.encode() in notes:
        return Layout.even(
            file.metadata.num_rows,
            first_shard=int(notes[FIRST_SHARD.encode()]),
            images_per_shard=int(notes[IMAGES_PER_SHARD.encode()]),
            first_place=first_place,
        )
    numbers = [np.asarray(table["shard"]) for table in Rows(MANIFEST_SCHEMA, [file]).tables(["shard"])]
    return Layout.of_numbers(np.concatenate([np.empty(0, np.int64), *numbers]), first_place)


def create_plan(store: Store, depends_on: Mapping[str, Any]) -> Plan:
    """A plan without images, or the one that is there; OutputRefused when that is for other settings."""
    content = {"version": PLAN_VERSION, "fingerprint": fingerprint(depends_on), "depends_on": dict(depends_on)}
    store.create_if_absent(PLAN_FILE, json.dumps(content, indent=2).encode())
    plan = read_plan(store)
    assert plan is not None
    refuse_other_settings(plan, depends_on, store.url)
    return plan


def refuse_other_settings(plan: Plan, depends_on: Mapping[str, Any], url: str) -> None:
    """Raise OutputRefused that names every setting that differs, with its value there and here."""
    there, here = dict(plan.depends_on), dict(json.loads(json.dumps(dict(depends_on))))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        lines = [f"  {name}: there {there.get(name)!r}, now {here.get(name)!r}" for name in names]
        raise OutputRefused(
            f"{url} was made with other settings; use another --out, or the same settings:\n" + "\n".join(lines)
        )


def finished_shards(store: Store) -> set[int]:
    """The numbers of the shards whose file exists: done means that, and nothing else."""
    names = (path.removeprefix("data/part-").removesuffix(".parquet") for path in _names(store, "data"))
    return {int(name) for name in names if name.isdigit()}


def images_per_shard(seconds_per_image: float, *, target_seconds: float = 120.0, most: int = 512) -> int:
    """How many images a worker labels in about two minutes."""
    return max(1, min(most, int(target_seconds / max(seconds_per_image, 1e-6))))


def _names(store: Store, folder: str) -> list[str]:
    return [entry.path for entry in store.list(folder)]
