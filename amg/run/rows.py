"""Rows that lie in Parquet files, of which only a row group at a time is in memory."""

from __future__ import annotations

import errno
import io
import os
import tempfile
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg.errors import FormatError

CACHED_ROWS = 1 << 18
SPOOLED_BYTES = 1 << 26
_ENCODINGS = {
    "row": "DELTA_BINARY_PACKED",
    **dict.fromkeys(("key", "uri", "tag", "path"), "DELTA_BYTE_ARRAY"),  # most begin as the one before them
}


@dataclass(frozen=True, slots=True)
class RowFile:
    """One file: its name in messages, a way to open it, and its footer."""

    name: str
    open: Callable[[], BinaryIO]
    metadata: pq.FileMetaData

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        """One row group; FormatError where it cannot be read."""
        # Not pq.read_table: that imports pyarrow's dataset module and with it pandas, a second or two
        try:
            with self.open() as file, pq.ParquetFile(file, metadata=self.metadata) as parquet:
                return parquet.read_row_group(number, columns=list(columns), use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise not_rows(self.name, error) from error


def not_rows(name: str, error: Exception | str) -> FormatError:
    return FormatError(f"{name} is not a manifest of a plan ({error}); bring it back from a copy, or use another --out")


class Rows:
    """The rows of several files, counted through, with the columns of `schema`; the groups read last are kept."""

    def __init__(self, schema: pa.Schema, files: Sequence[RowFile] = ()) -> None:
        self.schema = schema
        self.files: list[RowFile] = []
        self._groups: list[tuple[RowFile, int]] = []
        self._starts = [0]
        self._cache: OrderedDict[tuple[int, tuple[str, ...]], pa.Table] = OrderedDict()
        for file in files:
            self.add(file)

    def __len__(self) -> int:
        return self._starts[-1]

    def add(self, file: RowFile) -> None:
        """Its rows follow those that are there."""
        self.files.append(file)
        for number in range(file.metadata.num_row_groups):
            self._groups.append((file, number))
            self._starts.append(self._starts[-1] + file.metadata.row_group(number).num_rows)

    def tables(
        self, columns: Sequence[str] | None = None, start: int = 0, stop: int | None = None
    ) -> Iterator[pa.Table]:
        """The rows from `start` to `stop`, in order, in as many tables as it takes."""
        stop = len(self) if stop is None else stop
        while start < stop:
            group = bisect_right(self._starts, start) - 1
            first, end = self._starts[group], min(self._starts[group + 1], stop)
            yield self._group(group, columns or self.schema.names).slice(start - first, end - start)
            start = end

    def take(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        """Single rows, in the order asked for; neighbours cost least."""
        if (np.diff(rows) >= 0).all():
            return self._take_ordered(rows, columns)
        order = np.argsort(rows, kind="stable")
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return self._take_ordered(rows[order], columns).combine_chunks().take(pa.array(back))

    def _take_ordered(self, rows: NDArray[np.int64], columns: Sequence[str]) -> pa.Table:
        parts = [pa.schema([self.schema.field(name) for name in columns]).empty_table()]
        bounds = np.searchsorted(rows, self._starts)
        for group in np.flatnonzero(np.diff(bounds)):
            wanted = rows[bounds[group] : bounds[group + 1]] - self._starts[group]
            table = self._group(int(group), columns)
            is_span = wanted[-1] - wanted[0] == len(wanted) - 1 and (np.diff(wanted) == 1).all()
            parts.append(table.slice(wanted[0], len(wanted)) if is_span else table.take(pa.array(wanted)))
        return pa.concat_tables(parts)

    def _group(self, group: int, columns: Sequence[str]) -> pa.Table:
        wanted = (group, tuple(columns))
        if wanted in self._cache:
            self._cache.move_to_end(wanted)
            return self._cache[wanted]
        file, number = self._groups[group]
        schema = pa.schema([self.schema.field(name) for name in columns])
        try:
            table = file.group(number, columns).select(list(columns)).cast(schema)
        except (pa.ArrowException, KeyError, ValueError) as error:
            raise not_rows(file.name, error) from error
        self._cache[wanted] = table
        while len(self._cache) > 1 and sum(kept.num_rows for kept in self._cache.values()) > CACHED_ROWS:
            self._cache.popitem(last=False)
        return table


class Spool(Rows):
    """Rows put aside as the bytes of Parquet files: in memory, and from SPOOLED_BYTES on in a temporary file."""

    def __init__(self, schema: pa.Schema) -> None:
        super().__init__(schema)
        self._room = SPOOLED_BYTES
        self._overflow: BinaryIO | None = None

    def append(self, table: pa.Table) -> None:
        content = encode(table.cast(self.schema), rows_per_group=table.num_rows)
        file = row_file("rows put aside", content)
        self._room -= len(content)
        if self._room < 0:
            with suppress(OSError):  # no room there either: then it stays in memory
                file = replace(file, open=self._put_away(content))
        self.add(file)

    def _put_away(self, content: bytes) -> Callable[[], BinaryIO]:
        """Write it behind what is in the temporary file, which has no name and ends with this process."""
        if self._overflow is None:
            self._overflow = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed with this spool
            weakref.finalize(self, self._overflow.close)
        start = self._overflow.seek(0, io.SEEK_END)
        if self._overflow.write(content) < len(content):
            raise OSError(errno.ENOSPC, "the temporary file could not be written")
        return partial(_read_at, self._overflow, start, len(content))


def _read_at(file: BinaryIO, start: int, size: int) -> BinaryIO:
    return io.BytesIO(os.pread(file.fileno(), size, start))


def row_file(name: str, content: bytes) -> RowFile:
    """A file of which the content is at hand; it stays in memory."""
    return RowFile(name, lambda: io.BytesIO(content), pq.read_metadata(io.BytesIO(content)))


def encode(table: pa.Table, *, rows_per_group: int, footer: Mapping[str, str] | None = None) -> bytes:
    """A Parquet file: strings that begin alike are stored once, numbers that grow as their steps."""
    names = set(table.schema.names)
    encodings = {name: encoding for name, encoding in _ENCODINGS.items() if name in names}
    sink = io.BytesIO()
    pq.write_table(
        table.replace_schema_metadata(dict(footer or {})),
        sink,
        compression="zstd",
        row_group_size=max(1, rows_per_group),
        use_dictionary=sorted(names - set(encodings)),  # type: ignore[arg-type]  # names of columns will do
        column_encoding=encodings,
    )
    return sink.getvalue()
