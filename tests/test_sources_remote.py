"""Images in object stores: under prefixes, by globs, from lists, and what becomes of those that cannot be had."""

from __future__ import annotations

import pickle
import threading
import tracemalloc
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amg.errors import SourceError, StorageError
from amg.sources import read
from amg.sources.inputs import open_source
from amg.sources.source import Columnar, Skipped
from amg.storage.bucket import Bucket, StoredObject
from amg.storage.retries import Retries
from amg.values import Failure, ImageRef, Status
from tests.object_store import ObjectStore

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30
QUICK = Retries(answer_seconds=0.4, total_seconds=0.6, first_pause_seconds=0.01, longest_pause_seconds=0.05)


def fill(object_store: ObjectStore, *keys: str, content: bytes = PNG) -> None:
    for key in keys:
        object_store.put(key, content)


def listing(*inputs: str | Path) -> tuple[list[ImageRef], dict[str, str]]:
    skipped: list[Skipped] = []
    refs = list(open_source(*inputs).refs(skipped=skipped.append))
    return refs, {each.path: each.reason for each in skipped}


def keys_of(*inputs: str | Path) -> list[str]:
    return [ref.key for ref in listing(*inputs)[0]]


def test_lists_a_prefix_by_the_bytes_of_its_keys(object_store):
    names = ["b.jpg", "a/z.PNG", "a-b.jpg", "a.jpg", "a/b/c.webp", "Z.jpeg", "ä.gif", "a b%41.tif"]
    fill(object_store, *(f"photos/{name}" for name in names), "photos2/x.jpg", "x.jpg")
    for url in (f"{object_store.url}/photos", f"{object_store.url}/photos/"):
        refs, skipped = listing(url)
        assert not skipped
        assert [ref.key.replace("%25", "%") for ref in refs] == sorted(names, key=str.encode)
        assert [ref.row for ref in refs] == list(range(len(names)))
    source = open_source(url)
    assert [source.read(ref) for ref in refs] == [PNG] * len(names)
    percent = next(ref for ref in refs if "%" in ref.key)
    assert (percent.key, percent.uri) == ("a b%2541.tif", f"{object_store.url}/photos/a b%2541.tif")
    assert {(ref.size_bytes, ref.tag) for ref in refs} == {(len(PNG), refs[0].tag)}
    assert refs[0].tag is not None and len(refs[0].tag) == 32
    assert keys_of(object_store.url)[-1] == "x.jpg"


def test_a_suffix_makes_an_image_and_no_object_is_opened_to_see(object_store):
    fill(object_store, "p/really.dat", "p/empty.jpg", "p/readme.md", "p/no-suffix", "p/deep/", content=b"")
    fill(object_store, "p/png-without-suffix")
    object_store.requests.clear()
    refs, skipped = listing(f"{object_store.url}/p/")
    assert [ref.key for ref in refs] == ["empty.jpg"]
    assert skipped.pop("readme.md") == "not an image: a .md file"
    assert set(skipped) == {"really.dat", "no-suffix", "png-without-suffix", "deep"}
    assert set(skipped.values()) == {"no suffix of an image; name it itself"}
    assert object_store.count() == object_store.count(listing=True) == 2


def test_an_object_that_is_named_itself_may_have_any_name(object_store):
    fill(object_store, "p/x", "p/.hidden.jpg", "p/x/inside.jpg", "p/a[1].jpg")
    fill(object_store, "p/notes.md", "p/text", "p/nothing", content=b"")
    assert [ref.uri for ref in listing(f"{object_store.url}/p/x")[0]] == [f"{object_store.url}/p/x"]
    assert keys_of(f"{object_store.url}/p/x") == ["x"]
    assert keys_of(f"{object_store.url}/p/x/") == ["inside.jpg"]
    assert keys_of(f"{object_store.url}/p/.hidden.jpg") == [".hidden.jpg"]
    assert keys_of(f"{object_store.url}/p/a[1].jpg") == ["a[1].jpg"]
    for name, reason in (("notes.md", "a .md file"), ("text", "by its first bytes"), ("nothing", "by its first bytes")):
        with pytest.raises(SourceError, match=rf"1 entries were skipped, the first is {name} \(not an image.*{reason}"):
            listing(f"{object_store.url}/p/{name}")


def test_hidden_names_and_other_outputs_are_told_once_and_not_taken(object_store):
    fill(object_store, "p/.git/a.jpg", "p/.git/b/c.jpg", "p/.x.jpg", "p/a.jpg", "p/deep/.t/b.jpg", "p/deep/.t/c.jpg")
    fill(object_store, "p/out/_plan/plan.json", "p/out/data/part-000000.parquet", "p/out/review/a.jpg", "p/outer.jpg")
    told: list[Skipped] = []
    refs = list(open_source(f"{object_store.url}/p").refs(skipped=told.append))
    assert [ref.key for ref in refs] == ["a.jpg", "outer.jpg"]
    assert [(each.path, each.reason.partition(":")[0]) for each in told] == [
        (".git", "hidden"),
        (".x.jpg", "hidden"),
        ("deep/.t", "hidden"),
        ("out", "an output of sam-amg"),
    ]
    assert keys_of(f"{object_store.url}/p/.git") == ["a.jpg", "b/c.jpg"]
    assert keys_of(f"{object_store.url}/p/out/review") == ["a.jpg"]


@pytest.mark.parametrize(
    ("glob", "wanted"),
    [
        ("*.jpg", ["x.jpg"]),
        ("**/*.jpg", ["2023/a.jpg", "2024/b.jpg", "2024/deep/c.jpg", "x.jpg"]),
        ("2024/*.jpg", ["b.jpg"]),
        ("2024/**/c.*", ["deep/c.jpg"]),
        ("202[34]", ["2023/a.jpg", "2024/b.jpg", "2024/d.png", "2024/deep/c.jpg"]),
        ("202?/*.png", ["2024/d.png"]),
        (".*/*.jpg", [".h/e.jpg"]),
    ],
)
def test_globs_mean_what_they_mean_in_folders(object_store, tmp_path, glob, wanted):
    names = ["2023/a.jpg", "2024/b.jpg", "2024/deep/c.jpg", "2024/d.png", "x.jpg", ".h/e.jpg"]
    fill(object_store, *(f"p/{name}" for name in names))
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(PNG)
    assert keys_of(f"{object_store.url}/p/{glob}") == wanted == keys_of(f"{tmp_path}/{glob}")


def test_inputs_that_are_not_there_say_so(object_store):
    with pytest.raises(SourceError, match=r"there is nothing under s3://.*/photos; wanted an object, a prefix"):
        open_source(f"{object_store.url}/photos")
    with pytest.raises(SourceError, match=r"nothing under s3://.*/no, before the wildcards"):
        open_source(f"{object_store.url}/no/*.jpg")
    with pytest.raises(StorageError, match="there is no such bucket"):
        open_source("s3://no-such-bucket/photos")
    with pytest.raises(StorageError, match=r"https:// is no address of a store.*list such addresses in a manifest"):
        open_source("https://example.org/a.jpg")
    fill(object_store, "p/readme.md")
    with pytest.raises(SourceError, match=r"no images in s3://.*/p: 1 entries were skipped"):
        listing(f"{object_store.url}/p")


def test_local_and_remote_inputs_are_one_job(object_store, tmp_path):
    fill(object_store, "p/a.jpg", "q/a.jpg")
    (tmp_path / "a.jpg").write_bytes(PNG)
    source = open_source(tmp_path, f"{object_store.url}/p", f"{object_store.url}/q", f"{object_store.url}/p")
    skipped: list[Skipped] = []
    refs = list(source.refs(skipped=skipped.append))
    assert [ref.key for ref in refs] == ["a.jpg", "p/a.jpg", "q/a.jpg"]
    assert [each.path for each in skipped] == ["a.jpg"]
    twin = pickle.loads(pickle.dumps(source))
    assert [twin.read(ref) for ref in refs] == [PNG] * 3


LISTS = {
    "list.txt": "{0}/p/a.jpg\n{0}/p/50%.jpg\n{0}/gone.jpg\n",
    "list.csv": 'path,label\n{0}/p/a.jpg,x\n"{0}/p/50%.jpg",x\n{0}/gone.jpg,x\n',
    "list.jsonl": '{{"path": "{0}/p/a.jpg"}}\n{{"path": "{0}/p/50%.jpg"}}\n{{"path": "{0}/gone.jpg"}}\n',
    "list.parquet": "",
}


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("name", LISTS)
def test_lists_may_name_objects_and_lie_in_a_store_themselves(object_store, tmp_path, name, where):
    fill(object_store, "p/a.jpg", "p/50%.jpg")
    content = LISTS[name].format(object_store.url).encode()
    if name == "list.parquet":
        sink = pa.BufferOutputStream()
        pq.write_table(
            pa.table({"path": [f"{object_store.url}/{key}" for key in ("p/a.jpg", "p/50%.jpg", "gone.jpg")]}), sink
        )
        content = sink.getvalue().to_pybytes()
    (tmp_path / name).write_bytes(content)
    object_store.put(f"lists/{name}", content)
    object_store.requests.clear()
    source = open_source(tmp_path / name if where == "here" else f"{object_store.url}/lists/{name}")
    refs = list(source.refs())
    assert object_store.count() <= (0 if where == "here" else 4), "no request for each row"
    assert [ref.key for ref in refs] == [ref.uri for ref in refs]
    assert isinstance(source, Columnar)
    assert [row["uri"] for batch in source.columns() for row in batch.to_pylist()] == [ref.uri for ref in refs]
    assert source.digest() == source.digest() is not None
    assert [ref.uri for ref in refs] == [f"{object_store.url}/{key}" for key in ("p/a.jpg", "p/50%25.jpg", "gone.jpg")]
    read = [source.read(ref) for ref in refs]
    assert read[:2] == [PNG] * 2
    assert read[2] == Failure(refs[2], Status.MISSING, "the object is gone")


def test_relative_paths_of_a_list_in_a_store_start_at_its_prefix(object_store, tmp_path):
    fill(object_store, "set/lists/b.jpg", "set/a b.jpg", "top.jpg")
    (tmp_path / "here.jpg").write_bytes(PNG)
    lines = ["b.jpg", "../a b.jpg", "./../../top.jpg", f"{tmp_path}/here.jpg", (tmp_path / "here.jpg").as_uri()]
    object_store.put("set/lists/l.txt", "\n".join(lines).encode())
    source = open_source(f"{object_store.url}/set/lists/l.txt")
    skipped: list[Skipped] = []
    refs = list(source.refs(skipped=skipped.append))
    assert [ref.key for ref in refs] == lines[:4]
    assert [ref.uri.removeprefix(object_store.url) for ref in refs] == [
        "/set/lists/b.jpg",
        "/set/a b.jpg",
        "/top.jpg",
        f"{tmp_path}/here.jpg",
    ]
    assert [each.reason for each in skipped] == ["listed twice; the first one counts"]
    assert [source.read(ref) for ref in refs] == [PNG] * 4
    assert isinstance(source, Columnar)
    columns = [row for batch in source.columns() for row in batch.to_pylist()]
    assert [row["uri"] for row in columns[:4]] == [ref.uri for ref in refs]
    object_store.put("set/plain.txt", b"lists/b.jpg\na b.jpg\n50%.jpg")
    plain = open_source(f"{object_store.url}/set/plain.txt")
    assert isinstance(plain, Columnar)
    rows = [row for batch in plain.columns() for row in batch.to_pylist()]
    assert [ImageRef(n, **row) for n, row in enumerate(rows)] == list(plain.refs())
    object_store.put("set/l.csv", b"photo,path\na b.jpg,nowhere\n")
    assert keys_of(f"{object_store.url}/set/l.csv#photo") == ["a b.jpg"]


def test_a_key_that_no_request_can_reach_gets_a_row_that_says_so(object_store, tmp_path):
    fill(object_store, "p//double.jpg", "p/a.jpg")
    (tmp_path / "l.txt").write_text(f"{object_store.url}/p//double.jpg\n{object_store.url}/p/a.jpg\n")
    source = open_source(tmp_path / "l.txt")
    refs = list(source.refs())
    failure = source.read(refs[0])
    assert isinstance(failure, Failure)
    assert failure.status is Status.MISSING
    assert "no part between two / may be empty" in failure.reason
    assert source.read(refs[1]) == PNG
    with pytest.raises(StorageError, match=r"an object whose key cannot be reached: 'p//double.jpg'; rename it, or"):
        keys_of(f"{object_store.url}/p")


@pytest.fixture
def quick(monkeypatch) -> None:
    """Readers that give up soon."""
    monkeypatch.setattr(read, "Bucket", lambda scheme, name, _: Bucket(scheme, name, QUICK))


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("kind", ["throttle", "lose_answer", "cut_answer", "hang", "expired"])
def test_a_store_that_fails_is_asked_again_and_never_turns_into_rows(object_store, kind):
    fill(object_store, "p/a.jpg")
    source = open_source(f"{object_store.url}/p")
    (ref,) = source.refs()
    if kind != "expired":
        object_store.faults.add(kind, 1, seconds=3)
        assert source.read(ref) == PNG
    object_store.faults.add(kind, 10_000, seconds=3)
    with pytest.raises(StorageError, match=r"cannot read s3://.*/p/a.jpg"):
        source.read(ref)


def test_what_is_wrong_with_one_object_is_its_row(object_store, monkeypatch):
    fill(object_store, "p/a.jpg", "p/b.jpg", "p/c.jpg")
    source = open_source(f"{object_store.url}/p")
    refs = list(source.refs())
    object_store.delete("p/a.jpg")
    assert source.read(refs[0]) == Failure(refs[0], Status.MISSING, "the object is gone")
    monkeypatch.setattr(read, "MAX_FILE_BYTES", 10)
    unlisted = ImageRef(0, "b.jpg", refs[1].uri)
    for ref in (refs[1], unlisted):
        assert source.read(ref) == Failure(
            ref, Status.TOO_LARGE, f"the object has {len(PNG)} bytes, at most 4 GiB are read"
        )


def test_one_object_that_is_withheld_is_a_row_and_a_bucket_that_is_withheld_an_error(object_store):
    fill(object_store, "p/a.jpg", "p/b.jpg", "p/c.jpg")
    refs = list(open_source(f"{object_store.url}/p").refs())
    reason = "the object cannot be read: the credentials do not allow it (403 AccessDenied)"
    object_store.faults.add("forbid", 10, key="p/b.jpg")
    assert open_source(f"{object_store.url}/p").read(refs[1]) == Failure(refs[1], Status.MISSING, reason)
    object_store.faults.add("forbid", 100, key="p/")
    with pytest.raises(StorageError, match="do not allow it"):
        open_source(f"{object_store.url}/p").read(refs[0])


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A server of the files in `tmp_path`."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_lists_may_name_addresses_of_the_web(tmp_path, web, quick):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/a b.jpg").write_bytes(PNG)
    rows = [f"{web}/deep/a%20b.jpg", f"{web}/gone.jpg", "http://127.0.0.1:9/x.jpg"]
    (tmp_path / "l.txt").write_text("\n".join(rows))
    source = open_source(tmp_path / "l.txt")
    refs = list(source.refs())
    assert [ref.key.replace("%25", "%") for ref in refs] == rows
    seen = [source.read(ref) for ref in refs]
    assert seen[0] == PNG
    assert [each.status for each in seen[1:] if isinstance(each, Failure)] == [Status.MISSING] * 2
    assert [each.reason for each in seen[1:] if isinstance(each, Failure)] == [
        "the object is gone",
        "the object cannot be read: the endpoint cannot be reached",
    ]


def test_a_listing_is_never_held_as_python_objects(object_store, monkeypatch):
    count = 20_000

    def listed(self: Bucket, prefix: str, *, after: str | None) -> Iterator[StoredObject]:
        for n in range(count):
            yield StoredObject(f"p/{n // 1000:05d}/{n:09d}.jpg", 1000, 0.0, "tag")

    fill(object_store, "p/x.jpg")
    source = open_source(f"{object_store.url}/p")
    monkeypatch.setattr(Bucket, "_listed", listed)
    tracemalloc.start()
    try:
        assert sum(1 for _ in source.refs()) == count
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1e6
