"""A list of images in a file: text with a path a line, or CSV, JSON lines or Parquet with a column of paths.

Order: as listed. Relative paths start at the manifest's folder, or at the prefix of the object store under which it
lies; `file://` URLs are paths; addresses such as `s3://bucket/a.jpg` and `https://host/a.jpg` are taken as they are.
Key: the path as listed. What the manifest says beside the path goes along as `extra`. Everything listed gets a row,
also what is gone or no image; rows without a path are told as skipped. A manifest of which nothing is there is an
error: the disk is not mounted, or the paths start elsewhere.

Text: blank lines and lines that start with `#` are passed over (write `./#1.jpg` for such a name).
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

import pyarrow as pa

from amg.errors import SourceError, StorageError
from amg.sources.addresses import plain_addresses
from amg.sources.found import Found, tabulate
from amg.sources.kinds import suffix
from amg.sources.local import local_path
from amg.sources.manifest_rows import (
    ROWS_AT_ONCE,
    Block,
    Broken,
    Entry,
    Rows,
    in_csv,
    in_json_lines,
    in_parquet,
    in_text,
)
from amg.sources.paths import to_text
from amg.sources.source import Report, Skipped
from amg.storage.bucket import Bucket
from amg.storage.object_file import open_object
from amg.storage.object_url import SCHEMES, WEB, ObjectUrl, UnreachableKey, parse_object_url, scheme_of
from amg.storage.url import is_remote

ROWS_OF_COLUMNS = 1 << 16
_DIGESTED_AT_ONCE = 1 << 22


class Manifest:
    """The `Listing` of a manifest; `column` names the one with the paths, else the first of PATH_COLUMNS is taken."""

    may_repeat = True

    def __init__(self, text: str, *, column: str | None = None) -> None:
        self._place = _Stored(parse_object_url(text)) if is_remote(text) else _Local(local_path(text))
        self._name = self._place.where.rpartition("/")[2]
        self._column = column

    def found(self, skipped: Report) -> Iterator[Found]:
        """Every listed file, streamed; SourceError for what is no manifest, a broken line, or when nothing is there.

        Of what lies in a store is not asked whether it is there: that would be a request for each.
        """
        with self._seen() as seen, self._place.open() as file:
            for rows in self._rows(file, skipped, ROWS_AT_ONCE):
                yield from self._found(_entries(rows), seen, skipped)

    def columns(self, skipped: Report) -> Iterator[pa.RecordBatch]:
        """The same as columns; plain addresses in Parquet do not cost a Python object each."""
        with self._seen() as seen, self._place.open() as file:
            for rows in self._rows(file, skipped, ROWS_OF_COLUMNS):
                plain = None
                if isinstance(rows, Block):
                    plain = plain_addresses(rows.paths, rows.extras, self._place.base)
                if plain is None:
                    yield from tabulate(self._found(_entries(rows), seen, skipped))
                else:
                    seen.listed, seen.there = seen.listed + plain.num_rows, seen.there + plain.num_rows
                    yield plain

    def digest(self) -> str:
        """Of what the manifest says, and of where it says it."""
        digest = hashlib.sha256(f"{self._place.where}#{self._column or ''}\n".encode())
        with self._seen(), self._place.open() as file:
            while data := file.read(_DIGESTED_AT_ONCE):
                digest.update(data)
        return digest.hexdigest()

    def _found(self, entries: Iterable[Entry], seen: _Seen, skipped: Report) -> Iterator[Found]:
        for entry in entries:
            if not entry.path:
                skipped(Skipped(f"{self._name}:{entry.number}", "no path in this row"))
                continue
            found = self._look_at(entry, entry.path)
            seen.listed, seen.first = seen.listed + 1, seen.first or found
            seen.there += found.tag is not None or is_remote(os.fsdecode(found.path))
            yield found

    def _rows(self, file: BinaryIO, skipped: Report, rows_at_once: int) -> Iterator[Rows]:
        ending = suffix(os.fsencode(self._name))
        if ending == b".parquet":
            told = partial(self._left_out, skipped)
            yield from in_parquet(file, self._column, told, rows_at_once=rows_at_once)
            return
        start = file.read(3)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise Broken("it is UTF-16; save it as UTF-8")
        file.seek(3 if start == b"\xef\xbb\xbf" else 0)
        read = {b".txt": in_text, b".csv": in_csv, b".jsonl": in_json_lines}
        yield from read[ending](file, self._column, rows_at_once=rows_at_once)

    @contextmanager
    def _seen(self) -> Iterator[_Seen]:
        """Counts what is read, and puts into words what goes wrong meanwhile."""
        where, seen = self._place.where, _Seen()
        try:
            yield seen
        except (Broken, pa.ArrowException, csv.Error, OSError) as error:
            raise SourceError(f"{where} cannot be read as a list of images: {error}") from error
        if seen.first is not None and not seen.there:
            raise SourceError(
                f"{where}: none of the {seen.listed} paths that it lists is there, the first is "
                f"{to_text(seen.first.path)}; relative paths start at the folder of the list"
            )

    def _left_out(self, skipped: Report, column: str) -> None:
        skipped(Skipped(f"{self._name}#{column}", "a column of bytes is not carried along"))

    def _look_at(self, entry: Entry, path: str) -> Found:
        """The file of a row, there or not."""
        extra = entry.extra
        try:
            if is_remote(path):
                return Found(_address(path, entry.number), os.fsencode(path), None, None, extra)
            name = local_path(path)
        except (UnicodeEncodeError, ValueError) as error:
            raise Broken(f"{path!r} is not a path", entry.number) from error
        if not name or b"\0" in name:
            raise Broken(f"{path!r} is not a path", entry.number)
        return self._place.look_at(name, extra)


def _entries(rows: Rows) -> Iterable[Entry]:
    return rows.entries() if isinstance(rows, Block) else rows


@dataclass(slots=True)
class _Seen:
    """How many rows name an image, and how many of these are there, or may be."""

    listed: int = 0
    there: int = 0
    first: Found | None = None


class _Local:
    """A manifest on this machine; its relative paths start at its folder."""

    base = None

    def __init__(self, path: bytes) -> None:
        self._path = os.path.abspath(path)
        self._folder = os.path.dirname(self._path)
        self.where = to_text(self._path)

    def open(self) -> BinaryIO:
        return open(self._path, "rb")

    def look_at(self, name: bytes, extra: str | None) -> Found:
        path = b"/" + os.path.normpath(os.path.join(self._folder, name)).lstrip(b"/")
        try:
            status = os.stat(path)
        except OSError:  # its row will say that it is missing
            return Found(path, name, None, None, extra)
        return Found(path, name, status.st_size, str(status.st_mtime_ns), extra)


class _Stored:
    """A manifest in an object store; its relative paths start at the prefix that it lies under."""

    def __init__(self, url: ObjectUrl) -> None:
        self._url = url
        self._folder = url.key.rpartition("/")[0].encode()
        self.where = str(url)
        self.base = self.where[: self.where.rfind("/") + 1]

    def open(self) -> BinaryIO:
        return open_object(Bucket(self._url.scheme, self._url.bucket), self._url.key)

    def look_at(self, name: bytes, extra: str | None) -> Found:
        if name.startswith(b"/"):
            return _Local(b"/").look_at(name, extra)
        key = os.path.normpath(os.path.join(b"/", self._folder, name)).lstrip(b"/")
        return Found(f"{self._url.scheme}://{self._url.bucket}/".encode() + key, name, None, None, extra)


def _address(text: str, number: int) -> bytes:
    """The address in its one form; as it came where no request can reach it, which its row will say."""
    if scheme_of(text) not in (*SCHEMES, *WEB):
        known = ", ".join(f"{each}://" for each in (*SCHEMES, *WEB))
        raise Broken(f"{scheme_of(text)}:// is not read; wanted {known}, file:// or a path", number)
    try:
        url = parse_object_url(text, read_only=True)
    except UnreachableKey:
        return os.fsencode(text)
    except StorageError as error:
        raise Broken(str(error), number) from error
    return os.fsencode(text if url.scheme in WEB else str(url))
