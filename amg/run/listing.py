"""What a listing found, as columns, and which of it a plan has already."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from amg.values import ImageRef

LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("tag", pa.string()),
        pa.field("extra", pa.string()),
    ]
)
ROWS_AT_ONCE = 4096


def tabulate(refs: Iterable[ImageRef] | pa.Table) -> pa.Table:
    """The references as columns of LISTING_SCHEMA, in a fraction of the memory; `refs` may be a stream, or these."""
    if isinstance(refs, pa.Table):
        return refs
    return pa.Table.from_batches([_batch(part) for part in _parts(iter(refs))], LISTING_SCHEMA)


def match(listing: pa.Table, manifest: pa.Table) -> NDArray[np.int64]:
    """For each listed image its place in the manifest, -1 where it is new.

    The same image is what lies at the same path; its key may have changed with the inputs that were named. Where that
    fails: what has the same key, size and modification time, while nothing is listed any more where the plan saw it
    (a folder that was moved). Images in archives share a path; they are told apart by their keys.
    """
    places = _index_in(listing["uri"], manifest["uri"])
    places[np.asarray(listing["member"].is_valid())] = -1
    by_key = _index_in(listing["key"], manifest["key"])
    asked = np.flatnonzero((places < 0) & (by_key >= 0))
    if len(asked):
        here, there = listing.take(asked), manifest.take(by_key[asked])
        same_path = _equal(here["uri"], there["uri"])
        same_file = _equal(here["size_bytes"], there["size_bytes"]) & _equal(here["tag"], there["tag"])
        still_listed = _index_in(there["uri"], listing["uri"]) >= 0
        is_same = same_path | (same_file & ~still_listed)
        places[asked[is_same]] = by_key[asked[is_same]]
    return places


def free_keys(fresh: pa.Table, *taken: pa.Table) -> pa.Table:
    """`fresh` with parent folders in front of the keys that are in the first of `taken`, until they are in none."""
    clashes = np.flatnonzero(_index_in(fresh["key"], taken[0]["key"]) >= 0)
    if not len(clashes):
        return fresh
    keys = fresh["key"].to_pylist()
    used = {key for table in taken for key in table["key"].to_pylist()}
    for n in clashes:
        parts = fresh["uri"][n].as_py().split("/")
        longer = keys[n].count("/") + 2
        while (key := "/".join(parts[-longer:])) in used and longer <= len(parts):
            longer += 1
        keys[n] = key
        used.add(key)
    return fresh.set_column(0, LISTING_SCHEMA.field("key"), pa.array(keys, pa.string()))


def differs(here: pa.Table, there: pa.Table) -> NDArray[np.bool_]:
    """Row by row, whether size or modification time differ; a file that came or went differs too."""
    return ~(_same(here["size_bytes"], there["size_bytes"]) & _same(here["tag"], there["tag"]))


def lies_elsewhere(here: pa.Table, there: pa.Table) -> NDArray[np.bool_]:
    """Row by row, whether the paths differ."""
    return ~_equal(here["uri"], there["uri"])


def _parts(refs: Iterator[ImageRef]) -> Iterator[list[ImageRef]]:
    while part := list(islice(refs, ROWS_AT_ONCE)):
        yield part


def _batch(refs: list[ImageRef]) -> pa.RecordBatch:
    columns = [pa.array([getattr(ref, each.name) for ref in refs], each.type) for each in LISTING_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)


def _index_in(values: pa.ChunkedArray, among: pa.ChunkedArray) -> NDArray[np.int64]:
    """Where in `among` each value is, -1 where it is not."""
    found = pc.call_function("index_in", [values], pc.SetLookupOptions(among.combine_chunks(), skip_nulls=True))
    return np.asarray(found.cast(pa.int64()).fill_null(-1)).astype(np.int64)


def _equal(here: pa.ChunkedArray, there: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether both are known and equal."""
    return np.asarray(pc.call_function("equal", [here, there]).fill_null(False)).astype(bool)


def _same(here: pa.ChunkedArray, there: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether both are equal, or both unknown."""
    return _equal(here, there) | (np.asarray(here.is_null()) & np.asarray(there.is_null())).astype(bool)
