"""Shards back to rows, in plan order, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amg.config import DecodeSettings, parse
from amg.errors import ConfigError, FormatError, StorageError
from amg.shards import schema
from amg.storage.store import Store
from amg.storage.url import open_store

ROWS_AT_ONCE = 16  # a row may hold megabytes of annotations as Python objects


def read_shards(folder: str | os.PathLike[str], *, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """One dict per image, in plan order, of what `sam-amg run` wrote to `folder`; a single shard will do too.

    `annotations` is a list of SA-1B's dicts, whose `segmentation` pycocotools decodes as it is, or None where the
    status is not `ok`. `columns` names top-level columns, or leaves of them (`annotations.list.element.area`).
    Rows are read as they are asked for. Raises `FormatError` for a file that is not a whole shard of this format.
    """
    for store, path in shard_files(folder):
        with _opened(store, path, columns) as file, _as_format_error(store, path):
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, columns=_listed(columns)):
                yield from batch.to_pylist()


def read_table(folder: str | os.PathLike[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows as one table; `columns` as in `read_shards`, here the way to keep it small."""
    tables = []
    for store, path in shard_files(folder):
        with _opened(store, path, columns) as file, _as_format_error(store, path):
            tables.append(file.read(columns=_listed(columns)).replace_schema_metadata(None))
    return pa.concat_tables(tables, promote_options="default")


def footer(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `sam_amg.*` keys of one shard, as `docs/format.md` lists them."""
    store, name = _split(os.fspath(path))
    with _opened(store, name, None) as file:
        metadata = file.schema_arrow.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"sam_amg.")}


def decode_settings(folder: str | os.PathLike[str]) -> DecodeSettings:
    """How the images of an output were decoded; its first shard says it for all."""
    store, path = shard_files(folder)[0]
    text = footer(f"{store.url}/{path}").get("sam_amg.config", "{}")
    try:
        said = json.loads(text)
        return parse({name: value for name, value in said.items() if name.startswith("decode.")}).decode
    except (ValueError, AttributeError, ConfigError) as error:
        raise FormatError(
            f"{store.url}/{path}: the footer's sam_amg.config tells no settings ({error}); "
            "if it is a shard of yours, remove it and run the same command again: it is made anew"
        ) from error


def shard_files(folder: str | os.PathLike[str]) -> list[tuple[Store, str]]:
    """The shards of an output folder, of its `data` folder, or the one shard that is named."""
    text = os.fspath(folder)
    if text.endswith(".parquet"):
        return [_split(text)]
    store = open_store(text)
    for prefix in ("data", ""):
        names = [entry.path for entry in store.list(prefix) if "/" not in entry.path.removeprefix("data/")]
        found = [name for name in names if name.endswith(".parquet")]
        if found:
            return [(store, name) for name in found]
    raise StorageError(
        f"no shards in {store.url}: wanted data/part-NNNNNN.parquet; give the folder that `sam-amg run --out` wrote to"
    )


def _split(path: str) -> tuple[Store, str]:
    folder, name = os.path.split(path)
    return open_store(folder or os.curdir), name


@contextmanager
def _opened(store: Store, path: str, columns: Sequence[str] | None) -> Iterator[pq.ParquetFile]:
    """The shard, once it is known to be one that this version reads and to have what is asked for."""
    with store.open(path) as stream:
        with _as_format_error(store, path):
            file = pq.ParquetFile(stream, page_checksum_verification=True)
        _check_version(file, f"{store.url}/{path}")
        leaves = [f"{file.schema.column(n).path}." for n in range(len(file.schema))]
        missing = [name for name in columns or () if not any(leaf.startswith(f"{name}.") for leaf in leaves)]
        if missing:
            raise FormatError(
                f"{store.url}/{path} has no column {', '.join(missing)}; it has {', '.join(file.schema_arrow.names)}"
            )
        yield file


def _check_version(file: pq.ParquetFile, where: str) -> None:
    metadata = file.schema_arrow.metadata or {}
    version = metadata.get(schema.VERSION_KEY.encode(), b"").decode()
    if not version:
        raise FormatError(f"{where} is a Parquet file of another program: it lacks the footer key {schema.VERSION_KEY}")
    if version != str(schema.SCHEMA_VERSION):
        raise FormatError(
            f"{where} has schema version {version}, this program reads version {schema.SCHEMA_VERSION}; "
            "use the release of sam-amg that wrote it, or a newer one"
        )
    absent = [each.name for each in schema.COLUMNS if each.name not in file.schema_arrow.names]
    if absent:
        raise FormatError(f"{where} lacks the columns {', '.join(absent)} of schema version {version}: it was altered")


@contextmanager
def _as_format_error(store: Store, path: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, EOFError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(
            f"{Path(store.url) / path} is not a whole Parquet file ({reason}); "
            "if it is a shard of yours, remove it and run the same command again: it is made anew"
        ) from error


def _listed(columns: Sequence[str] | None) -> list[str] | None:
    return None if columns is None else list(columns)
