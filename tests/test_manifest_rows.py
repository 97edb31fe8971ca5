"""Rows of a manifest in blocks: what reading line by line gives, wherever a block ends."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Iterable

import pytest

from amg.sources.extra import canonical
from amg.sources.manifest_rows import Block, Broken, Entry, Rows, in_csv, in_json_lines, in_text


def entries(rows: Iterable[Rows]) -> list[Entry]:
    return [entry for part in rows for entry in (part.entries() if isinstance(part, Block) else part)]


def texts(content: bytes) -> list[str]:
    return [line.decode("utf-8", "surrogateescape") for line in io.BytesIO(content)]


def slow_text(content: bytes) -> list[Entry]:
    paths = [line.removesuffix("\n").removesuffix("\r") for line in texts(content)]
    return [Entry(n, path) for n, path in enumerate(paths, 1) if path.strip() and not path.startswith("#")]


def slow_csv(content: bytes) -> list[Entry]:
    names, *rows = csv.reader(texts(content), strict=True)
    reader = csv.reader(texts(content), strict=True)
    numbers = [reader.line_num for _ in reader][1:]
    said = [(n, dict(zip(names, fields, strict=True))) for n, fields in zip(numbers, rows, strict=True) if fields]
    return [Entry(number, each.pop("path"), canonical(each)) for number, each in said]


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, 1000])
def test_lines_of_text(rows_at_once):
    pieces = [b"a.jpg", b"#c", b" ", b"", b"\t", b"\xc2\xa0", b" x", "ä.jpg".encode(), b"\xe9.jpg", b"b\r", b"\r", b"%"]
    for seed in range(200):
        rng = random.Random(seed)
        ends = [b"\n", b"\n", b"\r\n"]
        content = b"".join(rng.choice(pieces) + rng.choice(ends) for _ in range(rng.randrange(12))) + rng.choice(pieces)
        assert entries(in_text(io.BytesIO(content), None, rows_at_once=rows_at_once)) == slow_text(content), content


@pytest.mark.parametrize("rows_at_once", [1, 2, 5, 1000])
def test_rows_of_csv(rows_at_once):
    values = [b"a.jpg", b"", b"b c", "ä".encode(), b"\xe9", b'"q, ""x"""', b'"two\nlines"', b"1.5", b"\\", b"\t"]
    for seed in range(200):
        rng = random.Random(seed)
        some = values if seed % 2 else [value for value in values if b'"' not in value]
        names = rng.choice([b"path", b"path,n", b"n,path,label"])
        lines = [b",".join(rng.choice(some) for _ in names.split(b",")) for _ in range(rng.randrange(12))]
        lines = [line or b"z" for line in lines]
        lines.insert(rng.randrange(len(lines) + 1), b"")
        content = b"\n".join([names, *lines]) + rng.choice([b"", b"\n", b"\r\n"])
        assert entries(in_csv(io.BytesIO(content), None, rows_at_once=rows_at_once)) == slow_csv(content), content


@pytest.mark.parametrize("rows_at_once", [1, 2, 1000])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"path,n\na,1\nb,2\n\nc\n", "line 5: 1 fields, the first line has 2"),
        (b'path,n\na,1\n"b\nb",2\nc\n', "line 5: 1 fields, the first line has 2"),
        (b'path,n\na,1\nb,"2\nc,3\n', "line 4: unexpected end of data"),
        (b"path,n\na,1\nb,\r2\n", "line 3: new-line character seen in unquoted field"),
    ],
)
def test_a_broken_row_of_csv_is_named_by_its_line(rows_at_once, content, message):
    with pytest.raises(Broken, match=message):
        entries(in_csv(io.BytesIO(content), None, rows_at_once=rows_at_once))


def test_lines_of_json_of_which_one_is_not_utf8():
    content = b'{"path": "a"}\n\n{"path": "\xe9", "n": 1}\n{"path": null}\n'
    wanted = [Entry(1, "a"), Entry(3, "\udce9", '{"n":1}'), Entry(4, None)]
    for rows_at_once in (1, 2, 1000):
        assert entries(in_json_lines(io.BytesIO(content), None, rows_at_once=rows_at_once)) == wanted
