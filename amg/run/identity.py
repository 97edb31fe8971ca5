"""What tells one image from another: its path, and the member of an archive that it is."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amg.run.drift import equal, same
from amg.run.hashes import Hashes, Index, combine, has_twins, hash_strings
from amg.run.plan import Plan

WHICH = ["uri", "member"]
"""The columns that it takes."""


def hash_images(table: pa.Table | pa.RecordBatch) -> Hashes:
    """One hash for each image; equal for the same one."""
    hashes = hash_strings(only_chunk(table.column("uri")))
    inside = np.flatnonzero(np.asarray(table.column("member").is_valid()))
    if len(inside):
        members = only_chunk(table.column("member")).take(pa.array(inside))
        hashes[inside] = combine(hashes[inside], hash_strings(members))
    return hashes


def index_images(plan: Plan) -> Index:
    """The planned images, at their rows."""
    index, first = Index(len(plan.rows)), 0
    for table in plan.rows.tables(WHICH):
        index.add(hash_images(table), first)
        first += table.num_rows
    return index


def are_same(here: pa.Table, there: pa.Table) -> NDArray[np.bool_]:
    """Row by row, whether both are the same image."""
    return equal(here["uri"], there["uri"]) & same(here["member"], there["member"])


def repeated(batch: pa.RecordBatch, images: Hashes) -> NDArray[np.bool_]:
    """Which rows are an image that stands further up in the same batch."""
    again = np.zeros(len(images), bool)
    if not has_twins(images):
        return again
    order = np.argsort(images, kind="stable")
    twins = np.flatnonzero(images[order][1:] == images[order][:-1])
    asked = np.unique(order[np.concatenate([twins, twins + 1])])
    some = batch.take(pa.array(asked))
    met: set[tuple[str, str | None]] = set()
    for n, uri, member in zip(asked, *(some.column(name).to_pylist() for name in WHICH), strict=True):
        image = (uri, member)
        again[n] = image in met
        met.add(image)
    return again


def whole_paths(table: pa.Table) -> list[str]:
    """The path of each image, with the member behind that of an archive; no two images have one."""
    members = table["member"].to_pylist()
    return [
        uri if member is None else f"{uri}/{member}"
        for uri, member in zip(table["uri"].to_pylist(), members, strict=True)
    ]


def only_chunk(column: pa.ChunkedArray | pa.Array) -> pa.StringArray:
    """The column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
