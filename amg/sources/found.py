"""What a listing yields on the way to a row, and what every kind of listing can do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import pyarrow as pa

from amg.sources.paths import to_text
from amg.sources.source import LISTING_SCHEMA, Report

ROWS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Found:
    """A file that gets a row: its absolute path or its address, the name that becomes its key, what is known of it.

    `tag` is the modification time of a local file in nanoseconds, of an object its ETag; `extra` as in `ImageRef`.
    """

    path: bytes
    name: bytes
    size_bytes: int | None
    tag: str | None
    extra: str | None = None


class Listing(Protocol):
    """One input. `may_repeat` tells whether one path can come twice."""

    may_repeat: bool

    def found(self, skipped: Report) -> Iterator[Found]: ...

    def columns(self, skipped: Report) -> Iterator[pa.RecordBatch]:
        """The same with the columns of LISTING_SCHEMA."""
        ...

    def digest(self) -> str | None:
        """A digest of all that `found` depends on but the images themselves; None where only a listing can tell."""
        ...


def tabulate(found: Iterable[Found]) -> Iterator[pa.RecordBatch]:
    """Columns of LISTING_SCHEMA, a few thousand rows at a time."""
    stream = iter(found)
    while part := list(islice(stream, ROWS_AT_ONCE)):
        columns = [
            [to_text(each.name) for each in part],
            [to_text(each.path) for each in part],
            [None] * len(part),
            [each.size_bytes for each in part],
            [each.tag for each in part],
            [each.extra for each in part],
        ]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, LISTING_SCHEMA, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)
