"""What a listing found, as columns: a table of a few ten thousand images at a time, and what was left out of it."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice

import pyarrow as pa
import pyarrow.parquet as pq

from amg.run.rows import Spool
from amg.sources.source import LISTING_SCHEMA, Columnar, Report, Skipped, Source
from amg.values import ImageRef

SKIPPED_SCHEMA = pa.schema(
    [pa.field("path", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)
ROWS_AT_ONCE = 1 << 16

Listed = Iterable[ImageRef] | Iterable[pa.RecordBatch]
"""A listing: references, or columns of LISTING_SCHEMA in which a path may come twice; both may be streams."""


def list_source(source: Source, skipped: Report) -> Listed:
    """What the source lists, as columns where it can do that."""
    return source.columns(skipped=skipped) if isinstance(source, Columnar) else source.refs(skipped=skipped)


def batches(listed: Listed) -> Iterator[pa.RecordBatch]:
    """The listing in columns of LISTING_SCHEMA, ROWS_AT_ONCE rows at a time."""
    waiting = LISTING_SCHEMA.empty_table()
    for batch in _as_columns(listed):
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch])])
        if waiting.num_rows >= ROWS_AT_ONCE:
            yield from waiting.combine_chunks().to_batches(max_chunksize=ROWS_AT_ONCE)
            waiting = LISTING_SCHEMA.empty_table()
    yield from waiting.combine_chunks().to_batches()


def _as_columns(listed: Listed) -> Iterator[pa.RecordBatch]:
    stream = iter(listed)
    for first in stream:
        if isinstance(first, ImageRef):
            yield _batch([first, *(each for each in islice(stream, ROWS_AT_ONCE - 1) if isinstance(each, ImageRef))])
        else:
            yield first.cast(LISTING_SCHEMA)


class SkippedLog:
    """Hears of what a listing left out, and keeps it in a few bytes an entry; `reasons` counts it."""

    def __init__(self, entries: Iterable[Skipped] = ()) -> None:
        self.reasons: Counter[str] = Counter()
        self._spool = Spool(SKIPPED_SCHEMA)
        self._waiting: list[Skipped] = []
        for each in entries:
            self(each)

    def __call__(self, skipped: Skipped) -> None:
        self.reasons[skipped.reason] += 1
        self._waiting.append(skipped)
        if len(self._waiting) >= ROWS_AT_ONCE:
            self._put_away()

    def to_parquet(self) -> bytes:
        """All of it, in order, as a file with the columns of SKIPPED_SCHEMA."""
        self._put_away()
        sink = io.BytesIO()
        with pq.ParquetWriter(sink, SKIPPED_SCHEMA, compression="zstd") as writer:
            for table in self._spool.tables():
                writer.write_table(table)
        return sink.getvalue()

    def _put_away(self) -> None:
        columns = [[each.path for each in self._waiting], [each.reason for each in self._waiting]]
        if self._waiting:
            self._spool.append(pa.table(columns, schema=SKIPPED_SCHEMA))
        self._waiting = []


def as_log(skipped: SkippedLog | Iterable[Skipped]) -> SkippedLog:
    return skipped if isinstance(skipped, SkippedLog) else SkippedLog(skipped)


def reporter(skipped: SkippedLog | list[Skipped]) -> Report:
    """Who hears of what is left out, so that `skipped` has it."""
    return skipped if isinstance(skipped, SkippedLog) else skipped.append


def _batch(refs: list[ImageRef]) -> pa.RecordBatch:
    columns = [pa.array([getattr(ref, each.name) for ref in refs], each.type) for each in LISTING_SCHEMA]
    return pa.RecordBatch.from_arrays(columns, schema=LISTING_SCHEMA)
