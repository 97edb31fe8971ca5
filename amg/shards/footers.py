"""What shards say of themselves in their footers, read without their rows; thousands of them in a second or two."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amg.errors import FormatError
from amg.shards import schema
from amg.storage.store import Store

MAGIC = b"PAR1"
NOT_WHOLE = (pa.ArrowException, OSError, EOFError)
"""What reading a damaged or foreign file raises."""

THREADS = 8  # for reading; what is read is parsed in one thread, because Python parses in no more than one
READ_AT_ONCE = 256
TAIL_BYTES = 32_768  # holds the footer of a small shard, so that most files are read once


@dataclass(frozen=True, slots=True)
class Footer:
    """`n_rows` is Parquet's own count; `values` holds the `sam_amg.*` keys and `huggingface`."""

    path: str
    n_rows: int
    values: Mapping[str, str]

    @property
    def version(self) -> str:
        return self.values.get(schema.VERSION_KEY, "")

    @property
    def stats(self) -> Mapping[str, Any]:
        """`rows` by status and the number of `masks`; FormatError where the footer does not tell."""
        try:
            said = json.loads(self.values["sam_amg.stats"])
            return {"rows": {str(k): int(v) for k, v in said["rows"].items()}, "masks": int(said["masks"])}
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise FormatError(
                f"{self.path}: the footer's sam_amg.stats is {self.values.get('sam_amg.stats')!r}, wanted the rows by "
                "status and the masks; remove the file and run the same command again: it is made anew"
            ) from error


def read_footers(store: Store, paths: Sequence[str]) -> Iterator[Footer | FormatError]:
    """The footer of each shard, in order; an error in its place where a file is not whole or not of this format."""
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(paths), READ_AT_ONCE):
            part = paths[start : start + READ_AT_ONCE]
            for path, alone in zip(part, threads.map(partial(_footer_or_error, store), part), strict=True):
                try:
                    yield _checked(path, alone)
                except FormatError as error:
                    yield error


def parse_footer(store: Store, path: str) -> Footer:
    """The footer of any Parquet file; raises one of NOT_WHOLE."""
    return _parse(path, _footer_alone(store, path))


def one_line(error: Exception) -> str:
    """The text of an error of Arrow's, which may have several lines."""
    return " ".join(str(error).split())


def _checked(path: str, alone: bytes | Exception) -> Footer:
    """The footer of a whole shard of this version, from what `_footer_or_error` gave."""
    try:
        if isinstance(alone, Exception):
            raise alone
        footer = _parse(path, alone)
    except NOT_WHOLE as error:
        raise FormatError(
            f"{path}: not a whole Parquet file ({one_line(error)}); "
            "remove it and run the same command again: it is made anew"
        ) from error
    if footer.version != str(schema.SCHEMA_VERSION):
        raise FormatError(
            f"{path}: schema version {footer.version or 'is missing'}, this program reads {schema.SCHEMA_VERSION}; "
            "use the release of sam-amg that wrote it, or a newer one"
        )
    return footer


def _parse(path: str, alone: bytes) -> Footer:
    metadata = pq.read_metadata(pa.BufferReader(alone))
    found = {key.decode(): value.decode("utf-8", "replace") for key, value in (metadata.metadata or {}).items()}
    ours = (*schema.FOOTER_KEYS, schema.HUGGINGFACE_KEY)
    return Footer(path, metadata.num_rows, {key: value for key, value in found.items() if key in ours})


def _footer_or_error(store: Store, path: str) -> bytes | Exception:
    try:
        return _footer_alone(store, path)
    except NOT_WHOLE as error:
        return error


def _footer_alone(store: Store, path: str) -> bytes:
    """A Parquet file of the footer and nothing else: all that metadata needs, in one or two reads."""
    with store.open(path) as stream:
        size = stream.seek(0, 2)
        stream.seek(max(0, size - TAIL_BYTES))
        tail = stream.read()
        if len(tail) < 12 or tail[-4:] != MAGIC:
            raise EOFError(f"{size} bytes that do not end as Parquet does")
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > size - 4:
            raise EOFError(f"a footer of {length} bytes in a file of {size}")
        if length > len(tail):
            stream.seek(size - length)
            tail = stream.read(length)
    return MAGIC + tail[-length:]
