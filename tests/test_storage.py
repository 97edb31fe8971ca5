"""The local store: one winner, nothing half-written, clear errors."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import pytest

from amg.errors import StorageError
from amg.storage import local
from amg.storage.local import LocalStore
from amg.storage.store import Entry
from amg.storage.url import open_store


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def refuse(number: int):
    def call(*args, **_):
        raise OSError(number, os.strerror(number), str(args[-1]))

    return call


WAYS = ["link", "rename", "claim"]


@pytest.fixture(params=WAYS)
def way(request, monkeypatch) -> str:
    """Each way of publishing, reached by a file system that refuses the ways before it."""
    if request.param != "link":
        monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    if request.param == "claim":
        monkeypatch.setattr(local, "_rename_exclusively", refuse(errno.EINVAL))
    return request.param


def leftovers(root: Path) -> list[str]:
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and path.parent.name == "_tmp"]


@pytest.mark.usefixtures("way")
def test_creates_once_and_keeps_the_first(store, tmp_path):
    assert store.create_if_absent("data/part-000000.parquet", b"first")
    assert not store.create_if_absent("data/part-000000.parquet", b"second")
    assert store.read("data/part-000000.parquet") == b"first"
    assert store.exists("data/part-000000.parquet")
    assert not store.exists("data/part-000001.parquet")
    assert leftovers(tmp_path) == []


@pytest.mark.usefixtures("way")
def test_of_many_writers_one_wins_and_nobody_sees_half_a_file(store, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: time.sleep(0.001))
    payloads = [bytes([n]) * 300_000 for n in range(8)]
    for round_ in range(10):
        path = f"data/{round_}"
        wins, seen, stop = [], [], threading.Event()

        def write(payload, path=path, wins=wins):
            if store.create_if_absent(path, payload):
                wins.append(payload)

        def watch(path=path, seen=seen, stop=stop):
            while not stop.is_set():
                if store.exists(path):
                    seen.append(store.read(path))
                    time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        writers = [threading.Thread(target=write, args=(payload,)) for payload in payloads]
        watcher.start()
        for thread in writers:
            thread.start()
        for thread in writers:
            thread.join()
        stop.set()
        watcher.join()
        assert len(wins) == 1
        assert store.read(path) == wins[0]
        assert all(content == wins[0] for content in seen)
    assert leftovers(tmp_path) == []


def test_a_link_whose_answer_got_lost_counts_as_won(store, monkeypatch):
    link = os.link

    def link_then_fail(old, new):
        link(old, new)
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", link_then_fail)
    assert store.create_if_absent("a", b"x")


def test_a_stale_claim_does_not_hold_a_shard_for_ever(store, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse(errno.EPERM))
    monkeypatch.setattr(local, "_rename_exclusively", refuse(errno.EINVAL))
    (tmp_path / "_tmp").mkdir()
    (tmp_path / "data").mkdir()
    claim = tmp_path / "_tmp" / "data-x.claim"
    claim.touch()
    os.utime(claim, (time.time() - 100,) * 2)
    assert store.create_if_absent("data/x", b"x")
    assert leftovers(tmp_path) == []


def test_lists_by_the_bytes_of_the_path(store, tmp_path):
    paths = ["a-b", "a/b", "a.c", "b/ä", "b/z", "b/Z"]
    for path in paths:
        store.create_if_absent(path, path.encode())
    listed = [entry for entry in store.list() if not entry.path.startswith("_tmp")]
    assert [entry.path for entry in listed] == sorted(paths, key=str.encode)
    assert list(store.list("b")) == [entry for entry in listed if entry.path.startswith("b/")]
    assert list(store.list("nowhere")) == []
    first = listed[0]
    assert first == Entry("a-b", 3, (tmp_path / "a-b").stat().st_mtime)


def test_a_full_disk_leaves_nothing_and_says_what_to_do(store, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.ENOSPC))
    with pytest.raises(StorageError, match=r"cannot write .*/data/x: No space left on device; make room"):
        store.create_if_absent("data/x", b"x")
    assert not store.exists("data/x")
    assert leftovers(tmp_path) == []
    monkeypatch.undo()
    assert store.create_if_absent("data/x", b"x")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_the_kernel_saying_full_is_a_storage_error(store, monkeypatch):
    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, mode: opened(Path("/dev/full") if "x" in mode else path, "rb+"))
    with pytest.raises(StorageError, match="No space left on device"):
        store.create_if_absent("data/x", b"x" * 100_000)


def test_a_read_only_disk_says_so(store, monkeypatch):
    monkeypatch.setattr(os, "mkdir", refuse(errno.EROFS))
    with pytest.raises(StorageError, match="Read-only file system; make it writable"):
        store.create_if_absent("data/x", b"x")


def test_a_vanished_folder_is_not_made_anew(tmp_path):
    store = open_store(tmp_path / "out", create=True)
    assert store.create_if_absent("data/x", b"x")
    (tmp_path / "out").rename(tmp_path / "gone")
    with pytest.raises(StorageError, match=r"out/data/y: No such file.*is its disk mounted\?"):
        store.create_if_absent("data/y", b"y")
    assert not (tmp_path / "out").exists()


def test_reading_what_is_not_there_names_the_path(store):
    with pytest.raises(StorageError, match=r"cannot read .*/nothing: No such file"):
        store.read("nothing")
    with pytest.raises(StorageError, match=r"cannot read .*/nothing: No such file"):
        store.open("nothing")


def _write_and_hang(root: str) -> None:
    os.link = lambda *_: time.sleep(60)
    LocalStore(Path(root)).create_if_absent("data/x", b"x" * 1000)


def test_sweep_removes_what_killed_writers_left_and_spares_living_ones(store, tmp_path):
    writer = multiprocessing.get_context("spawn").Process(target=_write_and_hang, args=(str(tmp_path),))
    writer.start()
    try:
        deadline = time.time() + 20
        while not any(path.stat().st_size for path in tmp_path.glob("_tmp/*")):
            assert time.time() < deadline
            assert writer.is_alive()
            time.sleep(0.01)
        assert store.sweep() == 0
        assert writer.pid is not None
        os.kill(writer.pid, signal.SIGKILL)
    finally:
        writer.join()
    (tmp_path / "_tmp" / "notes.txt").write_text("not ours")
    assert store.sweep() == 1
    assert leftovers(tmp_path) == ["_tmp/notes.txt"]


def test_a_writer_whose_file_was_swept_writes_it_again(store, tmp_path, monkeypatch):
    link, calls = os.link, []

    def swept_once(old, new):
        calls.append(old)
        if len(calls) == 1:
            os.unlink(old)
        link(old, new)

    monkeypatch.setattr(os, "link", swept_once)
    assert store.create_if_absent("data/x", b"x")
    assert len(calls) == 2
    assert store.read("data/x") == b"x"
    assert leftovers(tmp_path) == []


def test_without_locks_only_old_leftovers_are_swept(store, tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", refuse(errno.ENOSYS))
    (tmp_path / "_tmp").mkdir()
    for name, age in (("old.inprogress", 4000), ("new.inprogress", 10)):
        (tmp_path / "_tmp" / name).touch()
        os.utime(tmp_path / "_tmp" / name, (time.time() - age,) * 2)
    assert store.sweep() == 1
    assert leftovers(tmp_path) == ["_tmp/new.inprogress"]


def test_file_urls_are_paths(tmp_path):
    folder = tmp_path / "with space"
    store = open_store(folder.as_uri(), create=True)
    assert store.url == str(folder)
    assert folder.is_dir()


def test_a_file_in_the_way_of_the_folder_says_so(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(StorageError, match=r"cannot create .*/out: File exists; a file of that name is in the way"):
        open_store(tmp_path / "out", create=True)


def test_paths_stay_inside(store):
    with pytest.raises(AssertionError):
        store.read("../x")
