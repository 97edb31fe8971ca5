"""Lists of images: text, CSV, JSON lines, Parquet, and everything that people call so."""

from __future__ import annotations

import datetime
import json
import math
import os
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amg.errors import SourceError
from amg.shards import schema, writer
from amg.sources.extra import as_json, canonical
from amg.sources.inputs import open_source
from amg.sources.paths import from_text
from amg.sources.source import Columnar, Skipped
from amg.values import Failure, ImageRef, Status

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with `a.jpg`, `b c.png` and `deep/d.jpg`, beside which the lists are written."""
    for name in ("a.jpg", "b c.png", "deep/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


def write(path: Path, content: bytes | str | pa.Table | list[dict]) -> Path:
    if isinstance(content, pa.Table):
        pq.write_table(content, path)
    elif isinstance(content, list):
        path.write_text("".join(json.dumps(each) + "\n" for each in content))
    else:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def listing(*inputs: str | Path) -> tuple[list[ImageRef], dict[str, str]]:
    skipped: list[Skipped] = []
    refs = list(open_source(*inputs).refs(skipped=skipped.append))
    return refs, {each.path: each.reason for each in skipped}


def keys(*inputs: str | Path) -> list[str]:
    return [ref.key for ref in listing(*inputs)[0]]


def extras(*inputs: str | Path) -> list[object]:
    return [json.loads(ref.extra) if ref.extra else None for ref in listing(*inputs)[0]]


PATHS = ["deep/d.jpg", "a.jpg", "b c.png"]
LABELS = [{"label": "x", "n": n} for n in range(3)]
FORMATS = {
    "list.txt": "\n".join(PATHS),
    "list.csv": "n,path,label\n" + "".join(f'{n},"{path}",x\n' for n, path in enumerate(PATHS)),
    "list.jsonl": [{"path": path, **label} for path, label in zip(PATHS, LABELS, strict=True)],
    "list.parquet": pa.table({"n": [0, 1, 2], "path": PATHS, "label": ["x"] * 3}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_images_come_as_listed_with_what_the_list_says(photos, name):
    file = write(photos / name, FORMATS[name])
    refs, skipped = listing(file)
    assert not skipped
    assert [ref.key for ref in refs] == PATHS
    assert [ref.row for ref in refs] == [0, 1, 2]
    assert [ref.uri for ref in refs] == [str(photos / path) for path in PATHS]
    assert {ref.size_bytes for ref in refs} == {len(PNG)}
    assert refs[0].tag == str((photos / PATHS[0]).stat().st_mtime_ns)
    assert [open_source(file).read(ref) for ref in refs] == [PNG] * 3
    wanted = [None] * 3 if name == "list.txt" else LABELS
    if name == "list.csv":
        wanted = [{"label": "x", "n": str(n)} for n in range(3)]
    assert extras(file) == wanted
    assert name == "list.txt" or refs[0].extra == json.dumps(wanted[0], sort_keys=True, separators=(",", ":"))


def in_columns(*inputs: str | Path) -> list[ImageRef]:
    """What the source lists as columns, without what is told only once."""
    source = open_source(*inputs)
    assert isinstance(source, Columnar)
    rows = [row for batch in source.columns() for row in batch.to_pylist()]
    first = {row["uri"]: row for row in reversed(rows)}
    return [ImageRef(n, **first[uri]) for n, uri in enumerate(dict.fromkeys(row["uri"] for row in rows))]


@pytest.mark.parametrize("name", FORMATS)
def test_columns_say_what_references_do(photos, name):
    file = write(photos / name, FORMATS[name])
    assert in_columns(file) == listing(file)[0]
    assert in_columns(photos, file)[:3] == listing(photos)[0]


ADDRESSES = [
    "s3://b/a.jpg",
    "gs://b/d/50%.jpg",
    "az://b/d.d/.h/ü x.jpg",
    "s3://b/x/y/z..jpg",
    "s3://b/...",
    "s3://b/a?b#c",
]
ODD_ADDRESSES = [
    "s3://b//a.jpg",
    "s3://b/a/./b.jpg",
    "s3://b/a/../b",
    "s3://b/a\x01.jpg",
    "S3://b/a.jpg",
    "s3://b/a/",
    "a.jpg",
    "https://h/a%20b.jpg",
]


@pytest.mark.parametrize("odd", [None, *ODD_ADDRESSES])
@pytest.mark.parametrize("name", ["l.parquet", "l.jsonl"])
def test_columns_of_addresses_are_those_of_references(photos, name, odd):
    paths = [*ADDRESSES, *([odd] if odd else [])]
    n = len(paths)
    said = {
        "n": list(range(n)),
        "label": ['"q"' if odd else f"ü{k}" for k in range(n)],
        "none": [None] * n,
        "yes": [True, *[None] * (n - 1)],
    }
    table = pa.table({"path": paths, **said})
    file = write(photos / name, table if name == "l.parquet" else table.to_pylist())
    assert in_columns(file) == listing(file)[0]


def test_extra_columns_are_the_same_json_for_all_rows_at_once_and_for_each():
    some = datetime.datetime(2024, 1, 2)
    columns = {
        "int": [1, None, -3],
        "text": ["a", None, "ü\u2028"],
        "bool": [True, False, None],
        "large": pa.array(["x", "", None], pa.large_string()),
        "dict": pa.array(["x", "y", None]).dictionary_encode(),
        "big": pa.array([2**64 - 1, 0, None], pa.uint64()),
    }
    odd = {
        "float": [1.0, math.nan, None],
        "time": [some, None, some],
        "list": [[1], [], None],
        "quote": ['"', "\\", "\n"],
    }
    for names in (["int"], list(columns), *[[*columns, name] for name in odd]):
        batch = pa.record_batch({name: {**columns, **odd}[name] for name in names})
        assert as_json(batch).to_pylist() == [canonical(row) for row in batch.to_pylist()]
        assert [json.loads(text) for text in as_json(batch).to_pylist()]


def test_the_digest_of_a_list_is_that_of_what_it_says(photos):
    def digest(*inputs: str | Path) -> str | None:
        source = open_source(*inputs)
        assert isinstance(source, Columnar)
        return source.digest()

    file = write(photos / "l.csv", "path,photo\na.jpg,b c.png\n")
    first = digest(file)
    assert first is not None
    assert digest(file) == first
    assert len({first, digest(f"{file}#photo"), digest(file, file), digest(photos)}) == 4
    assert digest(file, photos) is None
    assert digest(write(photos / "l.csv", "path,photo\na.jpg,a.jpg\n")) != first


def test_text_lists_may_have_comments_blank_lines_and_any_name(photos):
    name = os.fsdecode(b"caf\xe9%.jpg")
    for each in (name, "#1.jpg", " spaced .jpg"):
        (photos / each).write_bytes(PNG)
    lines = [b"# photos", b"", b"a.jpg\r", b"   ", b"./#1.jpg", b" spaced .jpg", b"caf\xe9%.jpg", b"deep/../b c.png"]
    file = write(photos / "list.TXT", b"\xef\xbb\xbf" + b"\n".join(lines))
    refs, _ = listing(file)
    assert [ref.key for ref in refs] == ["a.jpg", "./#1.jpg", " spaced .jpg", "caf%E9%25.jpg", "deep/../b c.png"]
    assert refs[-1].uri == str(photos / "b c.png")
    assert [open_source(file).read(ref) for ref in refs] == [PNG] * 5


def test_urls_and_absolute_paths_are_paths(photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    lines = [(photos / "b c.png").as_uri(), str(photos / "a.jpg"), f"../{photos.name}/deep/d.jpg"]
    refs, _ = listing(write(elsewhere / "list.txt", "\n".join(lines[:2])))
    assert [ref.key for ref in refs] == [ref.uri for ref in refs] == [str(photos / "b c.png"), str(photos / "a.jpg")]
    assert [ref.uri for ref in listing(write(photos / "list.txt", lines[2]))[0]] == [str(photos / "deep/d.jpg")]
    assert keys((photos / "list.txt").as_uri()) == [lines[2]]


def test_a_name_with_a_newline_fits_in_csv_and_json(photos):
    (photos / "new\nline.jpg").write_bytes(PNG)
    for name, content in (("n.csv", 'path,x\n"new\nline.jpg",1\na.jpg,2\n'), ("n.jsonl", [{"path": "new\nline.jpg"}])):
        assert keys(write(photos / name, content))[0] == "new\nline.jpg"


def test_undecodable_names_survive_every_text_format(photos):
    raw = b"caf\xe9.jpg"
    Path(os.fsdecode(os.path.join(os.fsencode(photos), raw))).write_bytes(PNG)
    contents = {"l.txt": raw, "l.csv": b"path,note\n" + raw + b",\xe9\n", "l.jsonl": b'{"path": "' + raw + b'"}\n'}
    for name, content in contents.items():
        (ref,) = listing(write(photos / name, content))[0]
        assert ref.key == "caf%E9.jpg"
        assert from_text(ref.uri) == os.path.join(os.fsencode(photos), raw)
    assert extras(photos / "l.csv") == [{"note": "\ufffd"}]


def test_a_path_listed_twice_is_one_image_and_the_later_is_told(photos):
    file = write(photos / "list.csv", f"path,n\na.jpg,1\n./a.jpg,2\n{photos}/a.jpg,3\nb c.png,4\n")
    refs, skipped = listing(file)
    assert [(ref.key, ref.extra) for ref in refs] == [("a.jpg", '{"n":"1"}'), ("b c.png", '{"n":"4"}')]
    assert skipped == dict.fromkeys(["./a.jpg", f"{photos}/a.jpg"], "listed twice; the first one counts")


def test_what_is_gone_or_no_image_gets_a_row(photos):
    (photos / "notes.md").write_text("no image")
    os.mkfifo(photos / "pipe.jpg")
    refs, skipped = listing(write(photos / "list.txt", "gone.jpg\nnotes.md\ndeep\npipe.jpg\na.jpg"))
    assert not skipped
    source = open_source(photos / "list.txt")
    assert (refs[0].size_bytes, refs[0].tag) == (None, None)
    results = [source.read(ref) for ref in refs]
    assert [each.status if isinstance(each, Failure) else each for each in results] == [
        Status.MISSING,
        b"no image",
        Status.MISSING,
        Status.MISSING,
        PNG,
    ]


@pytest.mark.parametrize("column", ["file", "file_name", "FileName", "image", "uri", "image_path", " Path "])
def test_the_column_with_the_paths_is_found_by_its_name(photos, column):
    assert keys(write(photos / "list.csv", f"x,{column}\n1,a.jpg\n")) == ["a.jpg"]
    assert keys(write(photos / "list.jsonl", [{"x": 1, column: "a.jpg"}])) == ["a.jpg"]
    assert keys(write(photos / "list.parquet", pa.table({"x": [1], column: ["a.jpg"]}))) == ["a.jpg"]


def test_another_column_is_named_behind_the_list(photos):
    for name, content in (
        ("list.csv", "path,scan no\nnone,a.jpg\n"),
        ("list.jsonl", [{"path": "none", "scan no": "a.jpg"}]),
        ("list.parquet", pa.table({"path": ["none"], "scan no": ["a.jpg"]})),
    ):
        file = write(photos / name, content)
        assert keys(f"{file}#scan no") == ["a.jpg"]
        assert keys(f"{file.as_uri()}#scan no") == ["a.jpg"]
        assert extras(f"{file}#scan no") == [{"path": "none"}]


def test_a_file_whose_name_has_a_hash_is_itself(photos):
    write(photos / "list.csv#1.txt", "a.jpg\n")
    (photos / "folder.txt").mkdir()
    (photos / "folder.txt" / "x.jpg").write_bytes(PNG)
    assert keys(photos / "list.csv#1.txt") == ["a.jpg"]
    assert keys(photos / "folder.txt") == ["x.jpg"]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_csv_as_other_programs_write_it(photos, delimiter):
    text = delimiter.join(["label", "path"]) + "\r\n" + delimiter.join(["a,b", "a.jpg"]) + "\r\n\r\n"
    assert extras(write(photos / "list.csv", b"\xef\xbb\xbf" + text.encode())) == [{"label": "a,b"}]


def test_values_of_every_kind_become_json(photos):
    moment = datetime.datetime(2020, 1, 2, 3, 4, 5)
    table = pa.table(
        {
            "path": ["a.jpg"],
            "when": [moment],
            "nan": [math.nan],
            "boxes": [[[1.5, 2.0]]],
            "tags": pa.array([{"b": "ü", "a": None}]),
            "image": pa.array([{"bytes": b"123", "path": "x"}]),
            "hash": [b"\0\1"],
        }
    )
    refs, skipped = listing(write(photos / "list.parquet", table))
    assert refs[0].extra == ('{"boxes":[[1.5,2.0]],"nan":null,"tags":{"a":null,"b":"ü"},"when":"2020-01-02T03:04:05"}')
    assert set(skipped) == {"list.parquet#image", "list.parquet#hash"}
    write(photos / "list.jsonl", '{"path": "a.jpg", "x": "\\ud800", "y": NaN}\n')
    assert extras(photos / "list.jsonl") == [{"x": "\ufffd", "y": None}]


def test_rows_without_a_path_are_told_by_their_number(photos):
    for name, content, row in (
        ("list.csv", "path,x\na.jpg,1\n,2\n", 3),
        ("list.jsonl", '{"path": "a.jpg"}\n\n{"path": null}\n', 3),
        ("list.parquet", pa.table({"path": ["a.jpg", None]}), 2),
    ):
        refs, skipped = listing(write(photos / name, content))
        assert [ref.key for ref in refs] == ["a.jpg"]
        assert skipped == {f"{name}:{row}": "no path in this row"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "l.csv",
            "a,b\n1,2\n",
            r"no column with the paths; the columns are 'a', 'b', wanted one of path, file, .*#COLUMN",
        ),
        ("l.csv", "", "the columns are none"),
        ("l.csv", "path,x\na.jpg,1\nb.jpg\n", "line 3: 1 fields, the first line has 2"),
        ("l.csv", "path,x\na.jpg,1\nb.jpg,1,2\n", "line 3: 3 fields, the first line has 2"),
        ("l.csv", 'path,x\n"a.jpg,1\n', "line 2: unexpected end of data"),
        ("l.csv", "path,x,path\n", "the column 'path' comes twice"),
        ("l.csv", b"\xff\xfep\0a\0t\0h\0", "it is UTF-16; save it as UTF-8"),
        ("l.jsonl", '{"path": "a.jpg"}\n{"path": \n', "line 2: not JSON"),
        ("l.jsonl", '{"path": "a.jpg"}\n["a.jpg"]\n', "line 2: wanted a JSON object, this is a list"),
        ("l.jsonl", '{"path": "a.jpg"}\n{"path": 5}\n', "line 2: 'path' is 5, wanted a path as text"),
        ("l.jsonl", '{"photo": "a.jpg"}\n', "no column with the paths; the columns are 'photo'"),
        ("l.jsonl", '{"path": "a\\u0000.jpg"}\n', "line 1: .* is not a path"),
        ("l.jsonl", '{"path": "a\\ud800.jpg"}\n', "line 1: .* is not a path"),
        ("l.txt", "a.jpg\nftp://example.org/b.jpg\n", "line 2: ftp:// is not read; wanted s3://.*https://"),
        (
            "l.txt",
            "https://host/b.jpg?X-Amz-Signature=secret",
            r"line 1: https://host/\.\.\.\?\.\.\.: addresses with a query",
        ),
        ("l.txt", "s3://key:secret@bucket/b.jpg", r"line 1: s3://\.\.\.: wanted s3://bucket/folder, this has a user"),
        ("l.jsonl", '{"path": "s3://bucket/\\ud800.jpg"}', "is not a path"),
        ("l.txt", b"\xff\xfea\0", "it is UTF-16"),
        ("l.parquet", b"PAR1 and no more", "cannot be read as a list of images"),
        (
            "l.parquet",
            pa.table({"path": [5], "image": [{"bytes": b""}]}),
            "the columns are 'path', 'image', wanted one",
        ),
        (
            "l.txt",
            "gone.jpg\nlost.jpg\n",
            r"none of the 2 paths that it lists is there, the first is /.*/gone.jpg; rela",
        ),
        ("l.txt", "# nothing\n", "no images in .*l.txt: 0 entries were skipped"),
    ],
)
def test_a_list_that_is_none_says_what_came_and_what_was_wanted(photos, name, content, message):
    with pytest.raises(SourceError, match=message):
        listing(write(photos / name, content))


def test_columns_that_are_asked_for_must_be_there(photos):
    write(photos / "l.csv", "path\na.jpg\n")
    with pytest.raises(SourceError, match="no column 'scan' that holds text; the columns are 'path'"):
        listing(f"{photos}/l.csv#scan")
    write(photos / "l.txt", "a.jpg\n")
    with pytest.raises(SourceError, match=r"a \.txt file has no columns, 'scan' was asked for"):
        listing(f"{photos}/l.txt#scan")
    with pytest.raises(SourceError, match="there is no file or folder"):
        listing(f"{photos}/no.csv#scan")


def test_our_own_shards_are_no_list(photos):
    table = writer.to_table([Failure(ImageRef(0, "a", "/a"), Status.MISSING, "gone")])
    (photos / "part.parquet").write_bytes(writer.to_bytes(table, {}))
    assert schema.VERSION_KEY
    with pytest.raises(SourceError, match="it is a shard that sam-amg wrote, with annotations; give the images"):
        listing(photos / "part.parquet")


def test_lists_and_folders_mix_and_share_no_key(photos):
    for folder in ("one", "two"):
        (photos / folder).mkdir()
        (photos / folder / "a.jpg").write_bytes(PNG)
        write(photos / folder / "list.txt", "a.jpg\n../a.jpg\n")
    refs, skipped = listing(photos / "one" / "list.txt", photos / "deep", photos / "two" / "list.txt", photos)
    assert [ref.key for ref in refs] == ["a.jpg", "../a.jpg", "d.jpg", "two/a.jpg", "b c.png"]
    assert len({ref.uri for ref in refs}) == 5
    assert skipped["../a.jpg"] == skipped["deep/d.jpg"] == "listed twice; the first one counts"


def test_long_lists_are_streamed(photos):
    n = 50_000
    names = [f"deep/{i:07}.jpg" for i in range(n - 1)] + ["a.jpg"]
    write(photos / "list.parquet", pa.table({"path": names, "label": ["some text"] * n}))
    tracemalloc.start()
    started = time.perf_counter()
    assert sum(1 for _ in open_source(photos / "list.parquet").refs()) == n
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 30
    assert peak < 25e6  # the paths and keys that were handed out, no rows
