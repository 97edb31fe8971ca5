"""Stores in a bucket: one winner whatever happens on the way, and errors in words that give nothing away."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amg.errors import StorageError
from amg.storage import bucket
from amg.storage.bucket import Bucket, NoObject, StoredObject
from amg.storage.object_url import ObjectUrl, parse_object_url
from amg.storage.remote import RemoteStore
from amg.storage.retries import Retries
from amg.storage.store import Entry
from amg.storage.url import open_store
from tests.object_store import ACCESS_KEY, KINDS, SECRET_KEY, ObjectStore

QUICK = Retries(answer_seconds=0.4, total_seconds=3, first_pause_seconds=0.01, longest_pause_seconds=0.05)
BRIEF = Retries(answer_seconds=0.2, total_seconds=0.5, first_pause_seconds=0.01, longest_pause_seconds=0.05)


def remote(object_store: ObjectStore, folder: str = "out", retries: Retries = QUICK) -> RemoteStore:
    return RemoteStore(ObjectUrl("s3", object_store.bucket, folder), retries)


@pytest.fixture
def store(object_store) -> RemoteStore:
    return remote(object_store)


def test_creates_once_and_keeps_the_first(store, object_store):
    assert store.create_if_absent("data/part-000000.parquet", b"first")
    assert not store.create_if_absent("data/part-000000.parquet", b"second")
    assert store.read("data/part-000000.parquet") == b"first"
    assert store.exists("data/part-000000.parquet")
    assert not store.exists("data/part-000001.parquet")
    assert object_store.get("out/data/part-000000.parquet") == b"first"
    assert store.sweep() == 0


def test_the_same_bytes_from_another_writer_are_not_our_own(object_store):
    assert remote(object_store).create_if_absent("x", b"same")
    assert not remote(object_store).create_if_absent("x", b"same")


def race(object_store: ObjectStore, path: str, writers: int = 8) -> list[bytes]:
    """The payloads of those who were told that they won."""
    stores = [remote(object_store, retries=Retries(2, 30, 0.01, 0.05)) for _ in range(writers)]
    start, wins = threading.Barrier(writers), []

    def write(store: RemoteStore, payload: bytes) -> None:
        start.wait()
        if store.create_if_absent(path, payload):
            wins.append(payload)

    threads = [threading.Thread(target=write, args=(each, bytes([n]) * 5000)) for n, each in enumerate(stores)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return wins


def test_of_many_writers_one_wins(object_store):
    for round_ in range(20):
        path = f"data/{round_}"
        wins = race(object_store, path)
        assert len(wins) == 1
        assert object_store.get(f"out/{path}") == wins[0]
        assert object_store.stored[f"out/{path}"] == 1


def test_of_many_writers_one_wins_whatever_the_network_does(object_store):
    object_store.faults.at_random(0.3, seed=5)
    for round_ in range(8):
        path = f"data/{round_}"
        wins = race(object_store, path)
        assert len(wins) == 1
        assert object_store.get(f"out/{path}") == wins[0]
        assert object_store.stored[f"out/{path}"] == 1


@pytest.mark.parametrize("kind", ["throttle", "error", "cut_upload", "lose_answer", "error_after", "hang"])
def test_a_write_that_failed_on_the_way_is_tried_again_and_knows_that_it_won(store, object_store, kind):
    object_store.faults.add(kind, 2, method="PUT", seconds=5)
    assert store.create_if_absent("data/x", b"x" * 100_000)
    assert object_store.get("out/data/x") == b"x" * 100_000
    assert object_store.stored["out/data/x"] == 1
    assert object_store.count(method="PUT") >= 2
    assert not store.create_if_absent("data/x", b"y")


def test_a_writer_whose_answer_was_lost_after_another_had_won_has_lost(store, object_store):
    assert remote(object_store).create_if_absent("data/x", b"theirs")
    object_store.faults.add("lose_answer", 1, method="PUT")
    assert not store.create_if_absent("data/x", b"ours")
    assert store.read("data/x") == b"theirs"


@pytest.mark.parametrize("kind", ["throttle", "error", "lose_answer", "cut_answer", "hang"])
def test_reading_survives_what_passes(store, object_store, kind):
    payload = bytes(range(256)) * 1000
    object_store.put("out/data/x", payload)

    def again(call: Callable[[], object]) -> object:
        object_store.faults.clear()
        object_store.faults.add(kind, 2, seconds=5)
        return call()

    assert again(lambda: store.read("data/x")) == payload
    assert again(lambda: store.open("data/x").read()) == payload
    assert again(lambda: [entry.path for entry in store.list("data")]) == ["data/x"]
    assert again(lambda: store.exists("data/x"))


def test_a_connection_that_is_cut_again_and_again_is_tried_beyond_the_librarys_own_tries(store, object_store):
    object_store.put("out/x", b"x" * 10_000)
    object_store.faults.add("cut_answer", 15, method="GET", key="out/x")
    assert store.read("x") == b"x" * 10_000
    object_store.faults.add("cut_answer", 15, method="GET", key="")
    assert [entry.path for entry in store.list()] == ["x"]


WORDS = {
    "throttle": r"the store is overloaded and wants fewer requests \(503 SlowDown\) after \d+ s of tries; wait or use",
    "error": r"the store failed \(500 InternalError\) after",
    "lose_answer": r"the connection was lost after \d+ s of tries; see to the network and the endpoint",
    "hang": r"no answer came in time after \d+ s of tries",
    "forbid": r"the credentials do not allow it \(403 AccessDenied\); ask for the right to",
    "unknown_key": r"the credentials were not accepted \(403 InvalidAccessKeyId\); correct or renew",
    "wrong_secret": r"the credentials were not accepted \(403 SignatureDoesNotMatch\)",
    "expired": r"the credentials were not accepted \(400 ExpiredToken\)",
    "elsewhere": r"the bucket lies in another region.*; set AWS_REGION",
    "unsupported": r"the server does not know a request.*If-None-Match",
}


@pytest.mark.parametrize("kind", WORDS)
def test_what_does_not_pass_is_told_in_words_without_secrets(object_store, kind, caplog):
    caplog.set_level(logging.DEBUG)
    store = remote(object_store, retries=BRIEF)
    object_store.put("out/data/x", b"x")
    object_store.faults.add(kind, 10_000, seconds=5)
    calls = {
        "write": lambda: store.create_if_absent("data/y", b"y"),
        "read": lambda: store.read("data/x"),
        "list": lambda: list(store.list("data")),
    }
    for verb, call in calls.items():
        with pytest.raises(
            StorageError, match=rf"cannot {verb} s3://{object_store.bucket}/out/data.*: {WORDS[kind]}"
        ) as caught:
            call()
        told = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert SECRET_KEY not in told and ACCESS_KEY not in told and "Signature=" not in told
        assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    object_store.faults.clear()
    stored = {entry.path: store.read(entry.path) for entry in store.list("data")}
    assert stored in ({"data/x": b"x"}, {"data/x": b"x", "data/y": b"y"}), "a write without an answer may have worked"


def test_every_fault_of_the_proxy_is_used_by_a_test():
    assert {*WORDS, "cut_upload", "error_after", "cut_answer"} == set(KINDS)


def test_a_missing_bucket_says_so_whatever_is_asked(object_store):
    store = RemoteStore(ObjectUrl("s3", "no-such-bucket", "out"), QUICK)
    for call in (
        lambda: store.create_if_absent("x", b""),
        lambda: store.read("x"),
        lambda: list(store.list()),
        lambda: store.exists("x"),
        store.create_folder,
    ):
        with pytest.raises(StorageError, match=r"there is no such bucket.*; create it, or correct its name"):
            call()


def test_an_endpoint_that_is_not_there_is_named_so(monkeypatch, object_store):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match=r"the endpoint cannot be reached.*AWS_ENDPOINT_URL"):
        remote(object_store, retries=BRIEF).read("x")


def test_reading_what_is_not_there_names_it(store):
    with pytest.raises(NoObject, match=r"cannot read s3://.*/out/nothing: there is no such object"):
        store.read("nothing")
    with pytest.raises(NoObject, match=r"/out/nothing: there is no such object"):
        store.open("nothing")


def test_a_server_that_ignores_the_condition_is_refused_before_any_work(object_store, monkeypatch):
    store = remote(object_store)
    store.create_folder()
    puts = object_store.count(method="PUT")
    remote(object_store).create_folder()
    assert object_store.count(method="PUT") == puts + 1
    assert object_store.stored["out/_state/create-if-absent"] == 1
    object_store.ignores_conditions = True
    with pytest.raises(StorageError, match=r"replaces objects that it was told to create only if they are absent"):
        remote(object_store, "elsewhere").create_folder()


ODD = [
    "a b",
    "50%",
    "50%25",
    "ü/日本",
    "plus+and&=?#;~*'",
    "back\\slash",
    '[brackets]{}|^`<>"',
    "dots..",
    ".hidden",
    "e\u0301",
    "x" * 900,
]


def test_odd_names_survive_a_round_trip(object_store):
    store = remote(object_store, "a b/50%/ü?x#y")
    assert open_store(store.url).url == store.url == f"{object_store.url}/a b/50%/ü?x#y"
    for n, path in enumerate(ODD):
        assert store.create_if_absent(path, f"{n}".encode())
    assert [entry.path for entry in store.list()] == sorted(ODD, key=str.encode)
    assert [store.read(path) for path in ODD] == [f"{n}".encode() for n in range(len(ODD))]
    assert [store.open(path).read() for path in ODD] == [f"{n}".encode() for n in range(len(ODD))]
    assert object_store.get("a b/50%/ü?x#y/50%25") == b"2"


def test_lists_a_folder_by_the_bytes_of_the_paths_and_nothing_beside_it(store, object_store):
    paths = ["a-b", "a/b", "a.c", "b/ä", "b/z", "b/Z", "c\U0001f600", "c\uffee"]
    for path in paths:
        object_store.put(f"out/{path}", path.encode())
    object_store.put("output/x", b"")
    object_store.put("out", b"an object with the folder's name")
    listed = list(store.list())
    assert [entry.path for entry in listed] == sorted(paths, key=str.encode)
    assert [entry.path for entry in store.list("b")] == ["b/Z", "b/z", "b/ä"]
    assert list(store.list("nowhere")) == []
    assert listed[0].size_bytes == 3
    assert 0 <= time.time() - listed[0].modified < 600


def test_a_listing_asks_once_for_each_page(store, object_store):
    object_store.page = 50
    for n in range(101):
        object_store.put(f"out/data/part-{n:06d}.parquet", b"")
    object_store.requests.clear()
    assert sum(1 for _ in store.list("data")) == 101
    assert (object_store.count(listing=True), object_store.count()) == (3, 3)


@pytest.fixture
def broken_off(store, object_store, monkeypatch) -> Iterator[Entry]:
    """A listing of 30 objects of which the first 10 are told; more tries than the library makes will fail."""
    monkeypatch.setattr(bucket, "PAGE", 10)
    object_store.page = 10
    for n in range(30):
        object_store.put(f"out/{n:02d}", b"")
    stream = store.list()
    assert [next(stream).path for _ in range(10)] == [f"{n:02d}" for n in range(10)]
    object_store.faults.add("cut_answer", 15, method="GET")
    return stream


def test_a_listing_that_breaks_off_goes_on_where_it_was(broken_off, object_store):
    assert [entry.path for entry in broken_off] == [f"{n:02d}" for n in range(10, 30)]
    assert object_store.count(listing=True) > 15


def test_a_listing_that_cannot_go_on_where_it_was_says_so(broken_off, object_store):
    object_store.delete("out/09")
    with pytest.raises(StorageError, match=r"was interrupted while it was listed, and out/09 is gone since; run"):
        next(broken_off)


def test_an_unordered_listing_is_refused(store, monkeypatch):
    monkeypatch.setattr(Bucket, "_listed", lambda *_, **__: iter([StoredObject(f"out/{k}", 0, 0, None) for k in "ba"]))
    with pytest.raises(StorageError, match="in no order"):
        list(store.list())


def test_a_file_in_a_store_reads_as_a_parquet_reader_wants(store, object_store, tmp_path):
    table = pa.table({"n": range(60_000), "text": [f"row {n}" for n in range(60_000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=20_000)
    content = (tmp_path / "x.parquet").read_bytes()
    assert store.create_if_absent("x.parquet", content)
    with store.open("x.parquet") as file:
        assert pq.ParquetFile(file).read().equals(table)
    object_store.requests.clear()
    with store.open("x.parquet") as file:
        assert pq.ParquetFile(file).metadata.num_rows == 60_000
    assert object_store.count() == 1
    with store.open("x.parquet") as file, (tmp_path / "x.parquet").open("rb") as local:
        for place, whence, count in ((-8, 2, 8), (0, 0, 4), (1 << 20, 0, 3 << 20), (10, 1, 5), (10**9, 0, 5)):
            assert file.seek(place, whence) == local.seek(place, whence)
            assert file.read(count) == local.read(count)
            assert file.tell() == local.tell()


def test_a_failing_read_inside_a_parquet_reader_is_still_a_storage_error(object_store, tmp_path):
    pq.write_table(pa.table({"n": range(400_000)}), tmp_path / "x.parquet", compression=None, use_dictionary=False)
    object_store.put("out/x.parquet", (tmp_path / "x.parquet").read_bytes())
    with remote(object_store, retries=BRIEF).open("x.parquet") as stream:
        file = pq.ParquetFile(stream)
        object_store.faults.add("throttle", 10_000)
        with pytest.raises(StorageError, match="SlowDown"):
            file.read()


@pytest.mark.parametrize("size", [1, (1 << 16) - 1, 1 << 16, (1 << 16) + 1, 200_000])
def test_a_file_is_read_in_pieces_as_it_is(store, object_store, size):
    content = bytes(n * n % 251 for n in range(size))
    store.create_if_absent("x", content)
    object_store.requests.clear()
    assert store.open("x").read() == content
    assert object_store.count() == (1 if size <= 1 << 16 else 2)
    with store.open("x") as file:
        pieces = list(iter(lambda: file.read(997), b""))
    assert b"".join(pieces) == content


def test_an_empty_object_is_a_file_too(store):
    assert store.create_if_absent("empty", b"")
    assert store.read("empty") == store.open("empty").read() == b""


def test_ctrl_c_ends_a_request_that_hangs(store, object_store):
    object_store.faults.add("hang", 100, seconds=20)
    for call in (lambda: store.read("x"), lambda: store.create_if_absent("x", b""), lambda: list(store.list())):
        timer = threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGINT))
        began = time.monotonic()
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            call()
        assert time.monotonic() - began < 2


def test_stores_travel_to_other_processes(store):
    assert store.create_if_absent("x", b"1")
    twin = pickle.loads(pickle.dumps(store))
    assert (twin.url, twin.read("x")) == (store.url, b"1")
    assert b"secret" not in pickle.dumps(store)


def test_a_folder_is_removed_with_all_in_it_and_nothing_beside_it(store, object_store):
    for path in ("data/x", "data/deep/y", "data2", "_plan/plan.json"):
        store.create_if_absent(path, b"")
    store.remove_folder("data")
    store.remove_folder("nothing")
    assert [entry.path for entry in store.list()] == ["_plan/plan.json", "data2"]


def test_large_uploads_may_take_longer(store):
    small, large = store._bucket._client(1000), store._bucket._client(1 << 30)
    assert small.client_options["timeout"] != large.client_options["timeout"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("s3://bucket", ObjectUrl("s3", "bucket")),
        ("S3://bucket/a//", None),
        ("gs://b/a/b.parquet", ObjectUrl("gs", "b", "a/b.parquet")),
        ("az://box/x y%20?#z/", ObjectUrl("az", "box", "x y%20?#z")),
    ],
)
def test_addresses_are_taken_literally(text, wanted):
    if wanted is None:
        assert str(parse_object_url(text)) == "s3://bucket/a"
    else:
        assert parse_object_url(text) == wanted
        assert parse_object_url(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("s3://", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://b/a//b", "may be empty"),
        ("s3://b/a/../b", r"\. or \.\."),
        ("s3://b/a\nb", "control"),
        ("s3a://b/x", "write s3://"),
        ("abfss://b@a/x", "write az://"),
        ("ftp://host/x", "it knows s3://, gs://, az://"),
    ],
)
def test_addresses_that_lead_nowhere_say_why(text, words):
    with pytest.raises(StorageError, match=words):
        open_store(text)


def test_a_password_in_an_address_is_refused_and_not_repeated():
    with pytest.raises(StorageError, match="come from the environment") as caught:
        open_store("s3://AKIAKEY:hunter2@bucket/x")
    assert "hunter2" not in str(caught.value) and "AKIAKEY" not in str(caught.value)


def test_keys_and_region_may_come_from_the_profile(object_store, monkeypatch, tmp_path: Path):
    (tmp_path / "credentials").write_text(f"[work]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = x%y\n")
    (tmp_path / "config").write_text("[default]\nregion = eu-west-1\n[profile work]\nregion = ap-south-1\n")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert remote(object_store).create_if_absent("x", b"")
    assert f"{ACCESS_KEY}/" in object_store.requests[-1].headers["authorization"]
    assert "/ap-south-1/" in object_store.requests[-1].headers["authorization"]
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert remote(object_store).create_if_absent("y", b"")
    assert "/us-west-2/" in object_store.requests[-1].headers["authorization"]
