"""The rows of a manifest, in each of the formats it may have: where an image lies, and what is said of it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from amg.sources.extra import as_json, canonical

PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "uri", "image_path")
ROWS_AT_ONCE = 4096

_OURS = b"sam_amg.schema_version"


@dataclass(frozen=True, slots=True)
class Entry:
    """Line (in Parquet: row) `number` of a manifest; `extra` as in `ImageRef`."""

    number: int
    path: str | None
    extra: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Rows of a manifest one after the other: their numbers, and paths and `extra` as columns of text."""

    numbers: Sequence[int]
    paths: pa.Array
    extras: pa.Array

    def entries(self) -> Iterator[Entry]:
        return map(Entry, self.numbers, self.paths.to_pylist(), self.extras.to_pylist())


Rows = Block | list[Entry]
"""Some rows, as entries where a path or a value is text that is not UTF-8."""


class Broken(Exception):
    """What is wrong with a manifest, and in which line when it is one."""

    def __init__(self, reason: str, number: int | None = None) -> None:
        super().__init__(reason if number is None else f"line {number}: {reason}")


def in_text(file: BinaryIO, column: str | None, *, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Rows]:
    if column is not None:
        raise Broken(f"a .txt file has no columns, {column!r} was asked for")
    first = 1
    while lines := list(islice(file, rows_at_once)):
        numbers = range(first, first + len(lines))
        first += len(lines)
        try:
            yield _lines(numbers, pa.array(lines, pa.binary()).cast(pa.string()))
        except pa.ArrowInvalid:  # a name that is not UTF-8
            texts = [line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8", "surrogateescape") for line in lines]
            yield [Entry(number, text) for number, text in zip(numbers, texts, strict=True) if _names_a_path(text)]


def _without_ends(lines: pa.Array) -> pa.Array:
    return pc.call_function("replace_substring_regex", [lines], pc.ReplaceSubstringOptions(r"\r?\n?$", ""))


def _lines(numbers: Sequence[int], lines: pa.Array) -> Block:
    paths = _without_ends(lines)
    odd = pc.call_function("match_substring_regex", [paths], pc.MatchSubstringOptions("^(?:#|$|[^!-~])"))
    asked = np.flatnonzero(np.asarray(odd))
    if len(asked):
        kept = np.ones(len(paths), bool)
        kept[asked] = [_names_a_path(path) for path in paths.take(pa.array(asked)).to_pylist()]
        paths, numbers = paths.filter(pa.array(kept)), (np.flatnonzero(kept) + numbers[0]).tolist()
    return Block(numbers, paths, pa.nulls(len(paths), pa.string()))


def _names_a_path(line: str) -> bool:
    return bool(line.strip()) and not line.startswith("#")


def in_csv(file: BinaryIO, column: str | None, *, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Rows]:
    """The first line names the columns and settles whether commas, semicolons or tabs stand between them."""
    header = next(file, b"").decode("utf-8", "surrogateescape")
    delimiter = max(",;\t", key=header.count)
    (names,) = csv.reader([header], delimiter=delimiter, strict=True) if header.strip() else [[]]
    chosen = _path_column(names, column)
    first = 2
    while lines := list(islice(file, rows_at_once)):
        is_quoted = any(b'"' in line for line in lines)  # then a row may have several lines, and end in another block
        block = None if is_quoted else _split_csv(lines, first, names, chosen, delimiter)
        if block is not None:
            yield block
        else:
            for numbers, rows in _read_csv(chain(lines, file if is_quoted else ()), first, delimiter, rows_at_once):
                yield _csv_block(names, chosen, numbers, rows)
        first += len(lines)


def _split_csv(lines: list[bytes], first: int, names: Sequence[str], chosen: str, delimiter: str) -> Block | None:
    """Lines without quotes, each of which is a row; None where one needs a closer look."""
    try:
        texts = pa.array(lines, pa.binary()).cast(pa.string())
    except pa.ArrowInvalid:  # a byte that is not UTF-8
        return None
    texts = _without_ends(texts)
    odd = pc.call_function("match_substring_regex", [texts], pc.MatchSubstringOptions("\r|^$"))
    fields = pc.call_function("split_pattern", [texts], pc.SplitPatternOptions(delimiter))
    counts = np.asarray(pc.call_function("list_value_length", [fields]))
    if pc.call_function("any", [odd]).as_py() or (counts != len(names)).any():
        return None
    flat, n = fields.flatten(), len(names)
    columns = {name: flat.take(pa.array(np.arange(place, len(flat), n))) for place, name in enumerate(names)}
    paths = columns.pop(chosen)
    extras = as_json(pa.record_batch(columns)) if columns else pa.nulls(len(lines), pa.string())
    return Block(range(first, first + len(lines)), paths, extras)


def _read_csv(
    lines: Iterable[bytes], first: int, delimiter: str, rows_at_once: int
) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """The rows that are not empty, and their numbers."""
    texts = (line.decode("utf-8", "surrogateescape") for line in lines)
    reader = csv.reader(texts, delimiter=delimiter, strict=True)
    numbered = ((first - 1 + reader.line_num, fields) for fields in reader if fields)
    try:
        while part := list(islice(numbered, rows_at_once)):
            yield [number for number, _ in part], [fields for _, fields in part]
    except csv.Error as error:
        raise Broken(str(error), first - 1 + reader.line_num) from error


def _csv_block(names: Sequence[str], chosen: str, numbers: Sequence[int], rows: Sequence[list[str]]) -> Rows:
    if set(map(len, rows)) != {len(names)}:
        number, fields = next(each for each in zip(numbers, rows, strict=True) if len(each[1]) != len(names))
        raise Broken(f"{len(fields)} fields, the first line has {len(names)}", number)
    said = dict(zip(names, zip(*rows, strict=True), strict=True))
    paths = said.pop(chosen)
    try:
        columns = {name: pa.array(values, pa.string()) for name, values in said.items()}
        extras = as_json(pa.record_batch(columns)) if columns else pa.nulls(len(rows), pa.string())
        return Block(numbers, pa.array(paths, pa.string()), extras)
    except UnicodeError:  # a byte that is not UTF-8
        extras = (canonical(dict(zip(said, values, strict=True))) for values in zip(*said.values(), strict=True))
        return list(map(Entry, numbers, paths, extras if said else [None] * len(rows)))


def in_json_lines(file: BinaryIO, column: str | None, *, rows_at_once: int = ROWS_AT_ONCE) -> Iterator[Rows]:
    entries = _json_entries((line.decode("utf-8", "surrogateescape") for line in file), column)
    while part := list(islice(entries, rows_at_once)):
        try:
            paths = pa.array([each.path for each in part], pa.string())
            yield Block([each.number for each in part], paths, pa.array([each.extra for each in part], pa.string()))
        except UnicodeError:
            yield part


def _json_entries(lines: Iterable[str], column: str | None) -> Iterator[Entry]:
    chosen = None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            extra = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Broken(f"not JSON ({error})", number) from error
        if not isinstance(extra, dict):
            raise Broken(f"wanted a JSON object, this is a {type(extra).__name__}", number)
        chosen = chosen or _path_column(list(extra), column)
        path = extra.pop(chosen, None)
        if path is not None and not isinstance(path, str):
            raise Broken(f"{chosen!r} is {path!r}, wanted a path as text", number)
        yield Entry(number, path, canonical(extra))


def in_parquet(
    file: BinaryIO, column: str | None, left_out: Callable[[str], None], *, rows_at_once: int = ROWS_AT_ONCE
) -> Iterator[Block]:
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    if _OURS in (schema.metadata or {}):
        raise Broken("it is a shard that sam-amg wrote, with annotations; give the images")
    chosen = _path_column(schema.names, column, [each.name for each in schema if _is_text(each.type)])
    carried = [each.name for each in schema if each.name != chosen and not _has_bytes(each.type)]
    for each in schema:
        if each.name != chosen and each.name not in carried:
            left_out(each.name)
    first = 1
    for batch in parquet.iter_batches(batch_size=rows_at_once, columns=[chosen, *carried]):
        numbers = range(first, first + batch.num_rows)
        yield Block(numbers, batch.column(chosen).cast(pa.string()), as_json(batch.select(carried)))
        first += batch.num_rows


def _path_column(names: Sequence[str], wanted: str | None, fit: Sequence[str] | None = None) -> str:
    """The column with the paths. `fit` are the columns that hold text, where the format knows."""
    came = ", ".join(repr(name) for name in names) or "none"
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise Broken(f"the column {twice[0]!r} comes twice")
    usable = names if fit is None else fit
    if wanted is not None:
        if wanted not in usable:
            raise Broken(f"no column {wanted!r} that holds text; the columns are {came}")
        return wanted
    by_name = {name.strip().lower(): name for name in reversed(usable)}
    chosen = next((by_name[name] for name in PATH_COLUMNS if name in by_name), None)
    if chosen is None:
        raise Broken(
            f"no column with the paths; the columns are {came}, wanted one of {', '.join(PATH_COLUMNS)}, "
            "or give its name as LIST#COLUMN"
        )
    return chosen


def _is_text(type_: pa.DataType) -> bool:
    if pa.types.is_dictionary(type_):
        return _is_text(type_.value_type)
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def _has_bytes(type_: pa.DataType) -> bool:
    if pa.types.is_nested(type_):
        return any(_has_bytes(type_.field(n).type) for n in range(type_.num_fields))
    binary = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary, pa.types.is_binary_view)
    return any(test(type_) for test in binary)
