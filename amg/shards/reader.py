"""Shards back to rows, in plan order, without torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from amg.config import Config, DecodeSettings, parse
from amg.errors import ConfigError, FormatError, StorageError
from amg.shards import shard_file
from amg.shards.overlay import Overlay, read_overlay
from amg.storage.store import Store
from amg.storage.url import open_store

ROWS_AT_ONCE = 16  # a row may hold megabytes of annotations as Python objects
ROWS_OF_TABLES = 1024


def read_shards(folder: str | os.PathLike[str], *, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """One dict per image, in plan order, of what `sam-amg run` wrote to `folder`; a single shard will do too.

    `annotations` is a list of SA-1B's dicts, whose `segmentation` pycocotools decodes as it is, or None where the
    status is not `ok`. `columns` names top-level columns, or leaves of them (`annotations.list.element.area`).
    An image that was retried comes with its newest row, unless `folder` is the `data` folder or a single shard.
    Rows are read as they are asked for. Raises `FormatError` for a file that is not a whole shard of this format.
    """
    yield from snapshot(folder).rows(columns)


def read_table(folder: str | os.PathLike[str], *, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows as one table; `columns` as in `read_shards`, here the way to keep it small."""
    batches = snapshot(folder).batches(columns, rows_at_once=ROWS_OF_TABLES)
    tables = [pa.Table.from_batches([batch]).replace_schema_metadata(None) for batch in batches]
    return pa.concat_tables(tables, promote_options="default")


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """The shards that were there at one moment, in plan order, and the retries that are laid over them."""

    store: Store
    paths: tuple[str, ...]
    overlay: Overlay | None = None

    def rows(self, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
        """One dict per image."""
        for batch in self.batches(columns):
            yield from batch.to_pylist()

    def batches(
        self, columns: Sequence[str] | None = None, *, rows_at_once: int = ROWS_AT_ONCE
    ) -> Iterator[pa.RecordBatch]:
        """The rows in batches of at most so many."""
        if self.overlay is None or not len(self.overlay):
            yield from self._first_rows(columns, rows_at_once)
            return
        is_asked_for = columns is None or "image_id" in columns
        wanted = columns if is_asked_for else ["image_id", *(columns or ())]
        for batch in self.overlay.lay_over(self._first_rows(wanted, rows_at_once), wanted):
            yield batch if is_asked_for else batch.drop_columns(["image_id"])

    def only(self, paths: Sequence[str]) -> Snapshot:
        """The same of these shards alone."""
        return replace(self, paths=tuple(paths))

    def _first_rows(self, columns: Sequence[str] | None, rows_at_once: int) -> Iterator[pa.RecordBatch]:
        for path in self.paths:
            yield from shard_file.batches(self.store, path, columns, rows_at_once=rows_at_once)


def snapshot(folder: str | os.PathLike[str]) -> Snapshot:
    """What `folder` holds now: an output, its `data` folder, or one shard. StorageError where there is no shard."""
    text = os.fspath(folder)
    if text.endswith(".parquet"):
        store, name = _split(text)
        return Snapshot(store, (name,))
    store = open_store(text)
    if found := shard_paths(store, "data"):
        return Snapshot(store, found, read_overlay(store))
    if found := shard_paths(store, ""):
        return Snapshot(store, found)
    raise StorageError(
        f"no shards in {store.url}: wanted data/part-NNNNNN.parquet; give the folder that `sam-amg run --out` wrote to"
    )


def shard_paths(store: Store, folder: str) -> tuple[str, ...]:
    """The Parquet files that lie in this folder itself, in the order of their numbers."""
    inside = f"{folder}/" if folder else ""
    paths = [entry.path for entry in store.list(folder) if "/" not in entry.path.removeprefix(inside)]
    return tuple(sorted((path for path in paths if path.endswith(".parquet")), key=lambda path: (len(path), path)))


def footer(path: str | os.PathLike[str]) -> dict[str, str]:
    """The `sam_amg.*` keys of one shard, as `docs/format.md` lists them."""
    store, name = _split(os.fspath(path))
    return footer_in(store, name)


def footer_in(store: Store, path: str) -> dict[str, str]:
    """The same of a shard in a store."""
    with shard_file.opened(store, path) as file:
        metadata = file.schema_arrow.metadata or {}
    return {key.decode(): value.decode() for key, value in metadata.items() if key.startswith(b"sam_amg.")}


def decode_settings(folder: str | os.PathLike[str]) -> DecodeSettings:
    """How the images of an output were decoded; its first shard says it for all."""
    return settings_said(snapshot(folder), "decode.").decode


def settings_said(shards: Snapshot, *prefixes: str) -> Config:
    """The settings of an output by its first shard, those whose names begin so; the others are the defaults."""
    store, path = shards.store, shards.paths[0]
    try:
        said: Mapping[str, Any] = json.loads(footer_in(store, path).get("sam_amg.config", "{}"))
        return parse({name: value for name, value in said.items() if name.startswith(prefixes)})
    except (ValueError, AttributeError, ConfigError) as error:
        raise FormatError(
            f"{store.url}/{path}: the footer's sam_amg.config tells no settings ({error}); "
            "if it is a shard of yours, remove it and run the same command again: it is made anew"
        ) from error


def _split(path: str) -> tuple[Store, str]:
    folder, name = os.path.split(path)
    return open_store(folder or os.curdir), name
