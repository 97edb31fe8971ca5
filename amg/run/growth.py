"""How a plan grows: what a listing found and the plan has not is added, manifest after manifest.

Manifest n is created, if it is absent, by a run that has read all manifests before it, and holds only images that are
in none of them. So of two runs at once each adds what the other has not yet added, and after a run that died between
two manifests the next one adds the rest; either way every image is there once.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amg.run.listing import Listed, SkippedLog, as_log, reporter
from amg.run.plan import (
    FIRST_SHARD,
    IMAGES_PER_SHARD,
    MANIFEST_SCHEMA,
    Plan,
    manifest_path,
    read_plan,
    with_manifest,
)
from amg.run.rows import RowFile, encode
from amg.run.survey import Survey, survey
from amg.sources.source import LISTING_SCHEMA, Columnar, Skipped, Source
from amg.storage.store import Store

IMAGES_PER_MANIFEST = 500_000
IMAGES_PER_GROUP = 1 << 15
"""What is decoded when a shard is leased, and kept for those after it."""


def grow(
    store: Store,
    plan: Plan,
    listed: Listed | Survey,
    skipped: SkippedLog | list[Skipped],
    *,
    images_per_shard: int,
) -> Plan:
    """The plan with the images of a listing that it did not have; those it has stay as they are.

    `listed` may be a stream, and `skipped` what is filled while it is read; or it is what a survey beside this plan has
    found. Nothing is written before the listing is complete. Images that were moved keep their rows; the plan that is
    returned, not the stored one, has the paths where they lie now.
    """
    seen = listed if isinstance(listed, Survey) else survey(plan, listed, skipped=reporter(skipped))
    log = as_log(skipped)  # complete, now that the listing is
    left_out = log.to_parquet() if seen.new else None
    moved = seen.plan.moved
    while True:
        plan, rest, left_out = _add(store, seen, left_out, images_per_shard)
        if rest is None:
            return replace(plan, moved=moved)
        again = read_plan(store)
        assert again is not None
        seen = survey(again, rest)  # what another run has added meanwhile is known to it
        also = [each for each in (moved, seen.plan.moved) if each is not None]
        moved = pa.concat_tables(also).sort_by("place") if also else None


def _add(
    store: Store, seen: Survey, left_out: bytes | None, images_per_shard: int
) -> tuple[Plan, Iterator[pa.RecordBatch] | None, bytes | None]:
    """Write manifests until all is written or another run has written one; the plan, and what is left to add."""
    plan, tables = seen.plan, _by_manifest(seen.tables(), images_per_shard)
    for table in tables:
        number = plan.n_manifests  # not how many there are now: what another run has added since must be read first
        if left_out is not None and store.create_if_absent(f"_plan/skipped-{number:05d}.parquet", left_out):
            left_out = None  # before the images: no later run would add it
        content = _manifest(plan, table, images_per_shard)
        if not store.create_if_absent(manifest_path(number), content):
            return plan, _rest(table, tables), left_out
        opened = partial(store.open, manifest_path(number))
        name = f"{store.url}/{manifest_path(number)}"
        plan = with_manifest(plan, RowFile(name, opened, pq.read_metadata(io.BytesIO(content))))
    return plan, None, left_out


def _rest(table: pa.Table, tables: Iterator[pa.Table]) -> Iterator[pa.RecordBatch]:
    yield from table.to_batches()
    for later in tables:
        yield from later.to_batches()


def _by_manifest(tables: Iterator[pa.Table], images_per_shard: int) -> Iterator[pa.Table]:
    """The same rows, as many in a table as belong in a manifest; but for the last one all its shards are full."""
    most = max(1, IMAGES_PER_MANIFEST // images_per_shard) * images_per_shard
    waiting = LISTING_SCHEMA.empty_table()
    for table in tables:
        waiting = pa.concat_tables([waiting, table])
        while waiting.num_rows >= most:
            yield waiting.slice(0, most).combine_chunks()
            waiting = waiting.slice(most)
    if waiting.num_rows:
        yield waiting.combine_chunks()


def _manifest(plan: Plan, fresh: pa.Table, images_per_shard: int) -> bytes:
    """The next manifest of the plan, as a file."""
    first_row = len(plan.rows)
    first_shard = int(plan.layout.number_S[-1]) + 1 if plan.n_shards else 0
    numbers = np.arange(fresh.num_rows)
    table = pa.Table.from_arrays(
        [pa.array(first_row + numbers), *fresh.columns, pa.array(first_shard + numbers // images_per_shard)],
        schema=MANIFEST_SCHEMA,
    )
    return encode(
        table,
        rows_per_group=max(1, IMAGES_PER_GROUP // images_per_shard) * images_per_shard,
        footer={FIRST_SHARD: str(first_shard), IMAGES_PER_SHARD: str(images_per_shard)},
    )


def digest_of(source: Source) -> str | None:
    """What a listing of this source depends on, where that is known without listing it."""
    return source.digest() if isinstance(source, Columnar) else None


def is_listed(store: Store, plan: Plan, digest: str | None) -> bool:
    """Whether everything that the input lists is in the plan already, so that it need not be listed again.

    Known of lists of remote paths that have not changed: all they say is in the plan. Local files may have changed
    although the list of them has not, and are looked at anew.
    """
    if digest is None or not store.exists(_listed_path(digest)):
        return False
    try:
        return int(json.loads(store.read(_listed_path(digest)))["images"]) <= plan.n_images
    except (ValueError, KeyError, TypeError):
        return False  # list it again


def remember_listed(store: Store, plan: Plan, seen: Survey, digest: str | None) -> None:
    """Note that all of an input is in the plan; `digest` is from before it was listed, `seen` a whole listing."""
    if digest is not None and seen.only_addresses:
        store.create_if_absent(_listed_path(digest), json.dumps({"images": plan.n_images}).encode())


def _listed_path(digest: str) -> str:
    return f"_plan/listed-{digest[:32]}.json"
