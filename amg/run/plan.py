"""What a job will do, written down before it does it: the plan never changes, it only grows.

`_plan/plan.json`                what the masks depend on, and the fingerprint of it
`_plan/manifest-NNNNN.parquet`   the images of one listing: row, key, uri, member, size, tag, extra, shard
`_plan/skipped-NNNNN.parquet`    what the same listing left out, and why

All of them are created if absent. A later run on more files adds a manifest; shards never span two of them. A plan of
millions of images is held as columns; references are made shard by shard.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg.config import fingerprint
from amg.errors import FormatError, OutputRefused
from amg.run.listing import LISTING_SCHEMA, free_keys, match, tabulate
from amg.sources.source import Skipped
from amg.storage.store import Store
from amg.values import ImageRef

PLAN_VERSION = 1
PLAN_FILE = "_plan/plan.json"
ROW = pa.field("row", pa.int64(), nullable=False)
SHARD = pa.field("shard", pa.int64(), nullable=False)
MANIFEST_SCHEMA = pa.schema([ROW, *LISTING_SCHEMA, SHARD])
SKIPPED_SCHEMA = pa.schema(
    [pa.field("path", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)


@dataclass(frozen=True, slots=True)
class Shard:
    """`number` names the file `data/part-NNNNNN.parquet`; `refs` are its images, in plan order."""

    number: int
    refs: tuple[ImageRef, ...]

    @property
    def path(self) -> str:
        return shard_path(self.number)


def shard_path(number: int) -> str:
    """Where a shard lies below the output folder."""
    return f"data/part-{number:06d}.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What one reading of `_plan` saw, or that and the manifest added to it.

    `manifest` has the columns of MANIFEST_SCHEMA, in row order, from `n_manifests` files; `depends_on` is what the
    fingerprint is made of.
    """

    depends_on: Mapping[str, Any]
    manifest: pa.Table
    n_manifests: int = 0

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.depends_on)

    @property
    def n_images(self) -> int:
        return self.manifest.num_rows

    @property
    def n_shards(self) -> int:
        """How many shards `manifest` has."""
        return int(np.count_nonzero(np.diff(self._shard_numbers()))) + 1 if self.n_images else 0

    def shards(self) -> Iterator[Shard]:
        """Every shard, in order."""
        numbers = self._shard_numbers()
        bounds = [*np.flatnonzero(np.diff(numbers, prepend=-1)), len(numbers)]
        for start, end in pairwise(bounds):
            part = self.manifest.slice(start, end - start).select(["row", *LISTING_SCHEMA.names])
            columns = (column.to_pylist() for column in part.columns)
            yield Shard(int(numbers[start]), tuple(ImageRef(*row) for row in zip(*columns, strict=True)))

    def without(self, finished: Collection[int]) -> Plan:
        """What is left to do: the plan without the rows of those shards."""
        left = ~np.isin(self._shard_numbers(), list(finished))
        return replace(self, manifest=self.manifest.filter(pa.array(left)))

    def _shard_numbers(self) -> NDArray[np.int64]:
        return np.asarray(self.manifest["shard"])


def read_plan(store: Store) -> Plan | None:
    """The plan of an output folder, or None when there is none yet."""
    if not store.exists(PLAN_FILE):
        return None
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
    there = {path for path in _names(store, "_plan") if path.startswith("_plan/manifest-")}
    wanted = [_manifest_path(number) for number in range(len(there))]
    if there != set(wanted):
        raise FormatError(
            f"{store.url} has {len(there)} manifests, and {min(set(wanted) - there)} is not among them; "
            "bring it back from a copy, or use another --out"
        )
    tables = [_read_manifest(store, path) for path in wanted]
    return Plan(depends_on, pa.concat_tables(tables) if tables else MANIFEST_SCHEMA.empty_table(), len(tables))


def _manifest_path(number: int) -> str:
    return f"_plan/manifest-{number:05d}.parquet"


def _read_manifest(store: Store, path: str) -> pa.Table:
    try:
        # Not pq.read_table: that imports pyarrow's dataset module and with it pandas, a second or two
        with pq.ParquetFile(io.BytesIO(store.read(path))) as file:
            return file.read(use_threads=False).select(MANIFEST_SCHEMA.names).cast(MANIFEST_SCHEMA)
    except (pa.ArrowException, KeyError, ValueError, OSError) as error:
        raise FormatError(
            f"{store.url}/{path} is not a manifest of a plan ({error}); bring it back from a copy, or use another --out"
        ) from error


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


def grow(
    store: Store,
    plan: Plan,
    refs: Iterable[ImageRef] | pa.Table,
    skipped: Sequence[Skipped],
    *,
    images_per_shard: int,
) -> Plan:
    """The plan with the images of a new listing that it did not have; those it has stay as they are.

    `refs` may be a stream, and `skipped` what is filled while it is read. Images that were moved keep their rows; the
    plan that is returned, not the stored one, has the paths where they lie now.
    """
    return _grow(store, plan, tabulate(refs), skipped, images_per_shard)


def _grow(store: Store, plan: Plan, listing: pa.Table, skipped: Sequence[Skipped], images_per_shard: int) -> Plan:
    places = match(listing, plan.manifest)
    there = _moved(plan, listing, places)
    fresh = listing.filter(pa.array(places < 0))
    if not fresh.num_rows:
        return there
    fresh = free_keys(fresh, plan.manifest, listing)
    first_row, first_shard = plan.n_images, plan.manifest["shard"][-1].as_py() + 1 if plan.n_images else 0
    numbers = np.arange(fresh.num_rows)
    table = pa.Table.from_arrays(
        [pa.array(first_row + numbers), *fresh.columns, pa.array(first_shard + numbers // images_per_shard)],
        schema=MANIFEST_SCHEMA,
    )
    part = plan.n_manifests  # not how many there are now: what another job has added since must be read first
    left_out = pa.table([[s.path for s in skipped], [s.reason for s in skipped]], schema=SKIPPED_SCHEMA)
    store.create_if_absent(f"_plan/skipped-{part:05d}.parquet", _parquet(left_out))  # first: no later run would add it
    if not store.create_if_absent(_manifest_path(part), _parquet(table)):
        again = read_plan(store)
        assert again is not None
        return _grow(store, again, listing, skipped, images_per_shard)
    return replace(there, manifest=pa.concat_tables([there.manifest, table]), n_manifests=part + 1)


def _moved(plan: Plan, listing: pa.Table, places: NDArray[np.int64]) -> Plan:
    """The plan with the paths of the listing for the images that it lists."""
    known = np.flatnonzero(places >= 0)
    here = listing["uri"].take(pa.array(known))
    if here.equals(plan.manifest["uri"].take(pa.array(places[known]))):
        return plan
    uris = plan.manifest["uri"].to_pylist()
    for place, uri in zip(places[known], here.to_pylist(), strict=True):
        uris[place] = uri
    column = MANIFEST_SCHEMA.get_field_index("uri")
    field = MANIFEST_SCHEMA.field(column)
    return replace(plan, manifest=plan.manifest.set_column(column, field, pa.array(uris, field.type)))


def finished_shards(store: Store) -> set[int]:
    """The numbers of the shards whose file exists: done means that, and nothing else."""
    names = (path.removeprefix("data/part-").removesuffix(".parquet") for path in _names(store, "data"))
    return {int(name) for name in names if name.isdigit()}


def images_per_shard(seconds_per_image: float, *, target_seconds: float = 120.0, most: int = 512) -> int:
    """How many images a worker labels in about two minutes."""
    return max(1, min(most, int(target_seconds / max(seconds_per_image, 1e-6))))


def _names(store: Store, folder: str) -> list[str]:
    return [entry.path for entry in store.list(folder)]


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
