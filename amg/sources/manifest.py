"""A list of images in a file: text with a path a line, or CSV, JSON lines or Parquet with a column of paths.

Order: as listed. Relative paths start at the manifest's folder; `file://` URLs are paths. Key: the path as listed.
What the manifest says beside the path goes along as `extra`. Everything listed gets a row, also what is gone or no
image; rows without a path are told as skipped. A manifest of which nothing is there is an error: the disk is not
mounted, or the paths start elsewhere.

Text: blank lines and lines that start with `#` are passed over (write `./#1.jpg` for such a name).
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from amg.errors import SourceError
from amg.sources.kinds import suffix
from amg.sources.local import Found, Report, local_path
from amg.sources.paths import to_text
from amg.sources.source import Skipped

PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "uri", "image_path")
ROWS_AT_ONCE = 4096

_REMOTE = re.compile(r"(?!file:)[A-Za-z][A-Za-z0-9+.-]*://")
_OURS = b"sam_amg.schema_version"


@dataclass(frozen=True, slots=True)
class _Entry:
    """Line (in Parquet: row) `number` of a manifest."""

    number: int
    path: str | None
    extra: Mapping[str, Any] | None = None


class _Broken(Exception):
    """What is wrong with a manifest, and in which line when it is one."""

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(reason if number is None else f"line {number}: {reason}")


class Manifest:
    """The `Listing` of a manifest; `column` names the one with the paths, else the first of PATH_COLUMNS is taken."""

    may_repeat = True

    def __init__(self, path: bytes, *, column: str | None = None) -> None:
        self._path = os.path.abspath(path)
        self._name = to_text(os.path.basename(path))
        self._column = column

    def found(self, skipped: Report) -> Iterator[Found]:
        """Every listed file, streamed; SourceError for what is no manifest, a broken line, or when nothing is there."""
        folder, listed, there, first = os.path.dirname(self._path), 0, 0, None
        try:
            for entry in self._entries(skipped):
                if not entry.path:
                    skipped(Skipped(f"{self._name}:{entry.number}", "no path in this row"))
                    continue
                found = _look_at(folder, entry)
                listed, there, first = listed + 1, there + (found.tag is not None), first or found
                yield found
        except (_Broken, pa.ArrowException, csv.Error, OSError) as error:
            raise SourceError(f"{to_text(self._path)} cannot be read as a list of images: {error}") from error
        if first is not None and not there:
            raise SourceError(
                f"{to_text(self._path)}: none of the {listed} paths that it lists is there, the first is "
                f"{to_text(first.path)}; relative paths start at the folder of the list"
            )

    def _entries(self, skipped: Report) -> Iterator[_Entry]:
        with open(self._path, "rb") as file:
            if suffix(os.path.basename(self._path)) == b".parquet":
                yield from _in_parquet(file, self._column, lambda column: self._left_out(column, skipped))
                return
            start = file.read(3)
            if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
                raise _Broken("it is UTF-16; save it as UTF-8")
            file.seek(3 if start == b"\xef\xbb\xbf" else 0)
            lines = (line.decode("utf-8", "surrogateescape") for line in file)
            read = {b".txt": _in_text, b".csv": _in_csv, b".jsonl": _in_json_lines}
            yield from read[suffix(os.path.basename(self._path))](lines, self._column)

    def _left_out(self, column: str, skipped: Report) -> None:
        skipped(Skipped(f"{self._name}#{column}", "a column of bytes is not carried along"))


def _in_text(lines: Iterable[str], column: str | None) -> Iterator[_Entry]:
    if column is not None:
        raise _Broken(f"a .txt file has no columns, {column!r} was asked for")
    for number, line in enumerate(lines, 1):
        path = line.removesuffix("\n").removesuffix("\r")
        if path.strip() and not path.startswith("#"):
            yield _Entry(number, path)


def _in_csv(lines: Iterable[str], column: str | None) -> Iterator[_Entry]:
    """The first line names the columns and settles whether commas, semicolons or tabs stand between them."""
    lines = iter(lines)
    header = next(lines, "")
    delimiter = max(",;\t", key=header.count)
    (names,) = csv.reader([header], delimiter=delimiter, strict=True) if header.strip() else [[]]
    chosen = _path_column(names, column)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    for fields in _csv_rows(rows):
        number = rows.line_num + 1
        if not fields:
            continue
        if len(fields) != len(names):
            raise _Broken(f"{len(fields)} fields, the first line has {len(names)}", number)
        extra = dict(zip(names, fields, strict=True))
        yield _Entry(number, extra.pop(chosen), extra)


def _csv_rows(rows: Any) -> Iterator[list[str]]:
    try:
        yield from rows
    except csv.Error as error:
        raise _Broken(str(error), rows.line_num + 1) from error


def _in_json_lines(lines: Iterable[str], column: str | None) -> Iterator[_Entry]:
    chosen = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            extra = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _Broken(f"not JSON ({error})", number) from error
        if not isinstance(extra, dict):
            raise _Broken(f"wanted a JSON object, this is a {type(extra).__name__}", number)
        chosen = chosen or _path_column(list(extra), column)
        path = extra.pop(chosen, None)
        if path is not None and not isinstance(path, str):
            raise _Broken(f"{chosen!r} is {path!r}, wanted a path as text", number)
        yield _Entry(number, path, extra)


def _in_parquet(file: BinaryIO, column: str | None, left_out: Callable[[str], None]) -> Iterator[_Entry]:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    if _OURS in (schema.metadata or {}):
        raise _Broken("it is a shard that sam-amg wrote, with annotations; give the images")
    chosen = _path_column(schema.names, column, [each.name for each in schema if _is_text(each.type)])
    carried = [each.name for each in schema if each.name != chosen and not _has_bytes(each.type)]
    for each in schema:
        if each.name != chosen and each.name not in carried:
            left_out(each.name)
    number = 0
    for batch in parquet.iter_batches(batch_size=ROWS_AT_ONCE, columns=[chosen, *carried]):
        extras = batch.select(carried).to_pylist()
        for path, extra in zip(batch.column(chosen).to_pylist(), extras, strict=True):
            number += 1
            yield _Entry(number, path, extra)


def _path_column(names: Sequence[str], wanted: str | None, fit: Sequence[str] | None = None) -> str:
    """The column with the paths. `fit` are the columns that hold text, where the format knows."""
    came = ", ".join(repr(name) for name in names) or "none"
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise _Broken(f"the column {twice[0]!r} comes twice")
    usable = names if fit is None else fit
    if wanted is not None:
        if wanted not in usable:
            raise _Broken(f"no column {wanted!r} that holds text; the columns are {came}")
        return wanted
    by_name = {name.strip().lower(): name for name in reversed(usable)}
    chosen = next((by_name[name] for name in PATH_COLUMNS if name in by_name), None)
    if chosen is None:
        raise _Broken(
            f"no column with the paths; the columns are {came}, wanted one of {', '.join(PATH_COLUMNS)}, "
            "or give its name as LIST#COLUMN"
        )
    return chosen


def _look_at(folder: bytes, entry: _Entry) -> Found:
    """The file of a row, there or not."""
    assert entry.path
    if _REMOTE.match(entry.path):
        raise _Broken(f"{entry.path}: remote images come in a later version; copy them to a folder", entry.number)
    try:
        name = local_path(entry.path) if entry.path.startswith("file://") else os.fsencode(entry.path)
    except (UnicodeEncodeError, ValueError) as error:
        raise _Broken(f"{entry.path!r} is not a path", entry.number) from error
    if not name or b"\0" in name:
        raise _Broken(f"{entry.path!r} is not a path", entry.number)
    path = b"/" + os.path.normpath(os.path.join(folder, name)).lstrip(b"/")
    extra = _canonical(entry.extra) if entry.extra else None
    try:
        status = os.stat(path)
    except OSError:  # its row will say that it is missing
        return Found(path, name, None, None, extra)
    return Found(path, name, status.st_size, str(status.st_mtime_ns), extra)


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_):
        return any(_has_bytes(type_.field(n).type) for n in range(type_.num_fields))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(type_) for test in binary)


def _canonical(extra: Mapping[str, Any]) -> str:
    return json.dumps(_plain(extra), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, times as ISO 8601, text that is UTF-8 (a byte that was none becomes U+FFFD)."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
