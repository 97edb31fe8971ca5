"""One shard, opened: known to be whole, of this version, and to have what is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from amg.errors import FormatError
from amg.shards import schema
from amg.storage.store import Store


def batches(
    store: Store, path: str, columns: Sequence[str] | None = None, *, rows_at_once: int
) -> Iterator[pa.RecordBatch]:
    """The rows of a shard in their order; `columns` names top-level columns or leaves of them.

    Raises FormatError for a file that is not a whole shard of this format.
    """
    with opened(store, path, columns) as file, _as_format_error(store, path):
        yield from file.iter_batches(batch_size=rows_at_once, columns=None if columns is None else list(columns))


def table(store: Store, path: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The same, all rows at once."""
    with opened(store, path, columns) as file, _as_format_error(store, path):
        return file.read(columns=None if columns is None else list(columns))


@contextmanager
def opened(store: Store, path: str, columns: Sequence[str] | None = None) -> Iterator[pq.ParquetFile]:
    """The shard as a Parquet file; FormatError where it is none, or lacks one of `columns`."""
    with store.open(path) as stream:
        with _as_format_error(store, path):
            file = pq.ParquetFile(stream, page_checksum_verification=True)
        _check_version(file, f"{store.url}/{path}")
        if missing := [name for name in columns or () if not _has(file, name)]:
            raise FormatError(
                f"{store.url}/{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}"
            )
        yield file


def _has(file: pq.ParquetFile, name: str) -> bool:
    """Whether this is a column, or a leaf of one, or has leaves."""
    return any(f"{file.schema.column(n).path}.".startswith(f"{name}.") for n in range(len(file.schema)))


def _check_version(file: pq.ParquetFile, where: str) -> None:
    there = file.schema_arrow  # made anew whenever it is asked for
    metadata = there.metadata or {}
    version = metadata.get(schema.VERSION_KEY.encode(), b"").decode()
    if not version:
        raise FormatError(f"{where} is a Parquet file of another program: it lacks the footer key {schema.VERSION_KEY}")
    if version != str(schema.SCHEMA_VERSION):
        raise FormatError(
            f"{where} has schema version {version}, this program reads version {schema.SCHEMA_VERSION}; "
            "use the release of sam-amg that wrote it, or a newer one"
        )
    absent = [each.name for each in schema.COLUMNS if each.name not in there.names]
    if absent:
        raise FormatError(f"{where} lacks the columns {', '.join(absent)} of schema version {version}: it was altered")


@contextmanager
def _as_format_error(store: Store, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(
            f"{store.url}/{path} is not a whole Parquet file ({reason}); "
            "if it is a shard of yours, remove it and run the same command again: it is made anew"
        ) from error
