"""Ctrl-C, SIGTERM and SIGKILL of a real process, whose network is a stand-in."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from amg.run.signals import Interrupted, held, interruptible
from tests.chaos.killer import family, finish, orphans, rows, start
from tests.chaos.standin import SECONDS_PER_IMAGE, make_photos

GOES_ON = "interrupted; finished shards are kept, and the same command goes on with the rest"


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SECONDS_PER_IMAGE, "0.1")
    return make_photos(tmp_path / "photos", 40)


def until(happens: Callable[[], object], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def running(photos: Path, out: Path, *arguments: str) -> subprocess.Popen[str]:
    """A job that has finished a shard and is at the next."""
    job = start(photos, out, *arguments)
    until(lambda: (out / "data").is_dir() and any((out / "data").iterdir()))
    return job


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one process", "two workers"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_job_in_seconds_and_the_same_command_goes_on(
    photos: Path, tmp_path: Path, arguments: tuple[str, ...], number: int, status: int
) -> None:
    out = tmp_path / "out"
    job = running(photos, out, *arguments)
    began = time.monotonic()
    job.send_signal(number)
    code, said = finish(job)
    assert (code, time.monotonic() - began < 5) == (status, True)
    assert GOES_ON in said
    assert "Traceback" not in said
    assert not list((out / "_tmp").iterdir())
    assert orphans(job.pid) == []
    kept = {file.name: file.read_bytes() for file in (out / "data").iterdir()}
    code, said = finish(start(photos, out, *arguments))
    assert code == 0
    assert "done before" in said
    assert len(rows(out)) == 40
    assert all((out / "data" / name).read_bytes() == content for name, content in kept.items())


def test_ctrl_c_reaches_the_whole_group_and_workers_leave_it_to_their_parent(photos: Path, tmp_path: Path) -> None:
    job = running(photos, tmp_path / "out", "--workers", "2")
    os.killpg(job.pid, signal.SIGINT)
    code, said = finish(job)
    assert code == 130
    assert "Traceback" not in said
    assert orphans(job.pid) == []


def test_workers_end_with_a_parent_that_is_killed(photos: Path, tmp_path: Path) -> None:
    job = running(photos, tmp_path / "out", "--workers", "2")
    assert len(family(job.pid)) >= 3
    job.kill()
    job.communicate()
    assert orphans(job.pid) == []


def test_a_second_ctrl_c_ends_at_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one waits for a decoder that does not come back."""
    monkeypatch.setenv(SECONDS_PER_IMAGE, "0.01")
    stuck = photos / "0008-stuck-in-read.png"
    stuck.write_bytes((photos / "0000.png").read_bytes())
    job = running(photos, tmp_path / "out")
    time.sleep(1.0)
    job.send_signal(signal.SIGINT)
    time.sleep(1.0)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    code, _ = finish(job)
    assert code == 130
    assert orphans(job.pid) == []


def test_only_the_first_signal_is_raised_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interruptible():
        with pytest.raises(Interrupted) as stopped:
            signal.raise_signal(signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # within the moment in which it is the same keystroke
    assert stopped.value.exit_status == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("others", [0, 3])
def test_held_signals_come_afterwards(others: int) -> None:
    """Also when another thread is there to take the signal."""
    reached = []
    done = threading.Event()
    threads = [threading.Thread(target=done.wait) for _ in range(others)]
    for thread in threads:
        thread.start()

    def hold() -> None:
        with held():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(1)
        reached.append(2)

    with interruptible(), pytest.raises(Interrupted):
        hold()
    done.set()
    assert reached == [1]


def test_overwrite_asks_removes_what_is_ours_and_refuses_the_rest(tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 4), tmp_path / "out"
    assert finish(start(photos, out))[0] == 0
    other = ("--set", "generate.points_per_side=3")
    code, said = finish(start(photos, out, *other))
    assert code == 2
    assert "generate.points_per_side: there 32, now 3" in said
    (out / "notes.txt").write_text("mine")
    code, said = finish(start(photos, out, *other, "--overwrite"))
    assert (code, "Remove the shards" in said, len(rows(out))) == (130, True, 4)
    assert finish(start(photos, out, *other, "--overwrite", "--yes"))[0] == 0
    assert (out / "notes.txt").read_text() == "mine"
    code, said = finish(start(photos, photos, "--overwrite", "--yes"))
    assert code == 2
    assert "is no output of this program" in said
    assert len(list(photos.iterdir())) == 4


def test_strict_counts_the_failures_of_earlier_runs(tmp_path: Path) -> None:
    photos, out = make_photos(tmp_path / "photos", 6), tmp_path / "out"
    assert finish(start(photos, out))[0] == 0
    assert finish(start(photos, out))[0] == 0
    assert finish(start(photos, out, "--strict"))[0] == 1
    (photos / "0005.png").unlink()
    assert finish(start(photos, tmp_path / "good", "--strict"))[0] == 0


def test_a_job_logs_json_lines(tmp_path: Path) -> None:
    import json

    photos, out = make_photos(tmp_path / "photos", 4), tmp_path / "out"
    code, said = finish(start(photos, out, "--log", "json"))
    events = [json.loads(line)["event"] for line in said.splitlines()]
    assert code == 0
    assert events == ["start", "image", "image", "shard", "image", "image", "shard", "finish"]


def test_nothing_of_these_tests_is_left() -> None:
    mine = [p.info for p in psutil.process_iter(["pid", "ppid", "cmdline"]) if p.info["ppid"] == os.getpid()]
    assert [p["pid"] for p in mine if "tests.chaos.job" in " ".join(p["cmdline"] or ())] == []
