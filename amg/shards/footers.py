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
from amg.storage import Store

MAGIC = b"PAR1"
NOT_WHOLE = (pa.ArrowException, OSError, EOFError)
"""What reading a damaged or foreign file raises."""

THREADS = 8
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
        yield from threads.map(partial(_read_or_error, store), paths)


def read_footer(store: Store, path: str) -> Footer:
    """The footer of one shard; FormatError where it is not a whole shard of this version."""
    try:
        footer = parse_footer(store, path)
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


def parse_footer(store: Store, path: str) -> Footer:
    """The footer of any Parquet file; raises one of NOT_WHOLE."""
    metadata = pq.read_metadata(pa.BufferReader(_footer_alone(store, path)))
    found = {key.decode(): value.decode("utf-8", "replace") for key, value in (metadata.metadata or {}).items()}
    ours = (*schema.FOOTER_KEYS, schema.HUGGINGFACE_KEY)
    return Footer(path, metadata.num_rows, {key: value for key, value in found.items() if key in ours})


def one_line(error: Exception) -> str:
    """The text of an error of Arrow's, which may have several lines."""
    return " ".join(str(error).split())


def _read_or_error(store: Store, path: str) -> Footer | FormatError:
    try:
        return read_footer(store, path)
    except FormatError as error:
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
