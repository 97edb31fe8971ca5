"""Jobs in several processes, with a stand-in for the network that dies of what some images are called.

Workers import this module's imports again, so those that need torch are in the tests.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from amg.config import Config, load_config, masks_depend_on
from amg.errors import StorageError, WorkerError
from amg.run import pool
from amg.run.job import Hands, run_job
from amg.run.metrics import DriverMetrics, NotRecorded
from amg.run.progress import Silent, Summary
from amg.run.shard import Job
from amg.run.tally import Tally
from amg.run.workers import ProcessCrew
from amg.sources.inputs import open_source
from amg.storage.url import open_store
from amg.values import Failure, MaskSet, Receipt
from tests.chaos import disk, standin
from tests.chaos.killer import family, rows
from tests.chaos.standin import make_photos, run_local

DEPENDS_ON = masks_depend_on(load_config(), weights_digest=standin.DIGEST)


def config(**settings: object) -> Config:
    named = {"run.workers": 2, "shards.images_per_shard": 4}
    return load_config(overrides=named | {name.replace("__", "."): value for name, value in settings.items()})


class Heard(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.masks = 0
        self.receipts: list[Receipt] = []

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        self.keys.append(result.ref.key)
        self.masks += len(result) if isinstance(result, MaskSet) else 0

    def shard(self, receipt: Receipt) -> None:
        self.receipts.append(receipt)


def job(photos: Path, out: Path, observer: Silent | None = None, **settings: object) -> Summary:
    return run_local([str(photos)], str(out), config(**settings), observer=observer or Silent())


def by_status(out: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows(out):
        found.setdefault(row["status"], []).append(row["key"].removesuffix(".png"))
    return found


def children() -> list[int]:
    return [p.pid for p in family(os.getsid(0)) if p.ppid() == os.getpid() and "spawn_main" in " ".join(p.cmdline())]


def test_workers_make_the_rows_of_one_process_and_tell_the_same(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 20)
    alone, together = Heard(), Heard()
    one = job(photos, tmp_path / "one", alone, run__workers=1)
    two = job(photos, tmp_path / "two", together)
    assert rows(tmp_path / "two") == rows(tmp_path / "one")
    assert (two.rows, two.masks, two.shards_written) == (one.rows, one.masks, one.shards_written)
    assert sorted(together.keys) == sorted(alone.keys)
    assert together.masks == alone.masks == two.masks
    assert sorted(r.shard for r in together.receipts) == [r.shard for r in alone.receipts]
    assert two.failures
    assert two.seconds["encode"] == pytest.approx(one.seconds["encode"])
    assert job(photos, tmp_path / "two").shards_written == 0
    assert not children()


def test_poison_and_only_poison_is_marked_and_the_rest_of_its_shard_is_saved(tmp_path: Path) -> None:
    poison = ["0003-segv-in-model", "0006-segv-in-read", "0007-killed", "0007-eats-memory-in-read"]
    photos = make_photos(tmp_path / "photos", 12, names=poison)
    out = tmp_path / "out"
    heard = Heard()
    summary = job(photos, out, heard)
    found = by_status(out)
    assert found["crash"] == ["0003-segv-in-model", "0006-segv-in-read", "0007-killed"]
    assert found["out_of_memory"] == ["0007-eats-memory-in-read"]
    assert found["decode_error"] == ["0005"]
    assert len(found["ok"]) == 11
    reasons = {row["key"]: row["error"] for row in rows(out) if row["status"] == "crash"}
    assert "2 times in a row, the last time by signal 11 (SIGSEGV)" in reasons["0003-segv-in-model.png"]
    assert "signal 9 (SIGKILL" in reasons["0007-killed.png"]
    assert summary.rows == {status: len(keys) for status, keys in found.items()}
    assert len(heard.keys) == len(set(heard.keys)) == 16
    assert not list((out / "_tmp").iterdir())


def test_an_image_that_hangs_gets_a_row_timeout_even_with_one_worker(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3, names=["0001-hang"])
    job(photos, tmp_path / "out", run__workers=1, run__image_timeout_s=1.0)
    assert by_status(tmp_path / "out") == {"ok": ["0000", "0001", "0002"], "timeout": ["0001-hang"]}


def test_workers_killed_at_random_cost_no_row(tmp_path: Path) -> None:
    class Killer(Heard):
        def image(self, result: MaskSet | Failure, shard: int) -> None:
            super().image(result, shard)
            if len(self.keys) % 9 == 0:
                os.kill(rng.choice(children()), signal.SIGKILL)

    rng = random.Random(1)
    photos = make_photos(tmp_path / "photos", 60)
    killer = Killer()
    job(photos, tmp_path / "out", killer)
    assert set(by_status(tmp_path / "out")) == {"ok", "decode_error"}
    assert len(killer.keys) == 60
    job(photos, tmp_path / "calm", run__workers=1)
    assert rows(tmp_path / "out") == rows(tmp_path / "calm")
    assert (tmp_path / "out" / "_state" / "attempts").is_dir()


def test_a_restarted_job_remembers_what_its_workers_died_of(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 3, names=["0001-segv-in-model"])
    out = tmp_path / "out"
    job(photos, out)
    deaths = len(list((out / "_state" / "attempts").iterdir()))
    (out / "data" / "part-000000.parquet").unlink()
    job(photos, out)
    assert by_status(out)["crash"] == ["0001-segv-in-model"]
    assert len(list((out / "_state" / "attempts").iterdir())) == deaths == 3


def test_workers_that_never_get_ready_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "stand_in", lambda: standin.dies_at_once)
    monkeypatch.setattr(pool, "ENDS_IN_VAIN", 2)
    with pytest.raises(WorkerError, match="2 workers in a row ended before they were ready, the last by exit status 3"):
        job(make_photos(tmp_path / "photos", 8), tmp_path / "out")
    assert not children()


def test_an_error_in_a_worker_is_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standin, "stand_in", lambda: standin.breaks)
    with pytest.raises(StorageError, match="no room") as raised:
        job(make_photos(tmp_path / "photos", 8), tmp_path / "out")
    assert "in breaks" in raised.value.__notes__[0]
    assert not children()


def test_a_shard_that_cannot_be_finished_ends_the_job_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standin, "stand_in", lambda: standin.stops_at_the_end)
    with pytest.raises(
        WorkerError, match=r"1 shard could not be finished.*\n.*0000.png to 0002.png.*died 10 times in vain"
    ):
        job(make_photos(tmp_path / "photos", 3), tmp_path / "out")
    assert not (tmp_path / "out" / "data").exists()


def test_each_worker_and_each_that_replaces_it_is_told_its_device(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 8, names=["0003-segv-in-model"])

    def devices(name: str, devices: list[str], files: list[Path]) -> list[str]:
        (tmp_path / name).mkdir()
        run_job(
            Job(open_source(*map(str, files)), open_store(tmp_path / f"{name}-out", create=True), config(), DEPENDS_ON),
            Hands(partial(standin.notes_its_device, tmp_path / name), devices[0], partial(ProcessCrew, devices)),
            images_per_shard=1,
            observer=Silent(),
        )
        return sorted(file.name.partition("@")[0] for file in (tmp_path / name).iterdir())

    sound = [file for file in sorted(photos.iterdir()) if "segv" not in file.name]
    assert devices("three", ["cuda:0", "cuda:1", "cuda:0"], sound) == ["cuda:0", "cuda:0", "cuda:1"]
    assert devices("one", ["cuda:1"], [photos / "0003-segv-in-model.png"]) == ["cuda:1"] * 4  # the last commits the row
    assert by_status(tmp_path / "one-out") == {"crash": ["0003-segv-in-model"]}


def test_the_summary_tells_the_memory_of_the_largest_process_wherever_it_was(tmp_path: Path) -> None:
    heard = Heard()
    summary = job(make_photos(tmp_path / "photos", 4), tmp_path / "out", heard)
    assert 10 < max(receipt.peak_memory_mb for receipt in heard.receipts) <= summary.peak_memory_mb
    tally = Tally(Silent(), DriverMetrics(NotRecorded()))
    tally.shard(Receipt(0, {"ok": 1}, 3, True, {}, 1000, peak_memory_mb=1e6))
    tally.shard(Receipt(1, {"ok": 1}, 3, True, {}, 1000, peak_memory_mb=1e5))
    assert tally.summary("out", 2, 0, 1.0).peak_memory_mb == 1e6


def test_workers_share_the_cores_and_the_plan_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    from amg.run.local import pin

    monkeypatch.setattr("amg.run.machine.cores", lambda: 8)
    assert pin(config(), None, ["cpu"] * 3).run.threads == 2
    assert pin(config(), None, ["cpu"] * 9).run.threads == 1
    assert pin(config(run__threads=5), None, ["cpu"] * 3).run.threads == 5


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(disk.tiny_disk(tmp_path / "disk", "2m"))
        except disk.NotMounted as error:
            pytest.skip(str(error))
        yield folder


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_stops_the_job_and_more_room_lets_it_finish(tmp_path: Path, tiny_disk: Path, workers: int) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    (tiny_disk / "ballast").write_bytes(bytes(1_900_000))
    out = tiny_disk / "out"
    with pytest.raises(StorageError, match=r"No space left.*make room on that disk.*what is finished is kept") as full:
        job(photos, out, run__workers=workers)
    assert full.value.exit_status == 1
    kept = len(list((out / "data").iterdir()))
    assert 2 <= kept < 15
    assert not list((out / "_tmp").iterdir())
    subprocess.run(["mount", "-o", "remount,size=8m", str(tiny_disk)], check=True)
    assert job(photos, out, run__workers=workers).shards_written == 15 - kept
    job(photos, tmp_path / "calm", run__workers=1)
    assert rows(out) == rows(tmp_path / "calm")


def test_an_output_that_vanishes_stops_the_job_and_is_not_made_anew(tmp_path: Path) -> None:
    out = tmp_path / "out"

    class Unmount(Silent):
        def shard(self, receipt: Receipt) -> None:
            if receipt.shard == 1:
                out.rename(tmp_path / "elsewhere")

    photos = make_photos(tmp_path / "photos", 20)
    with pytest.raises(StorageError, match="the folder is not there: bring it back"):
        job(photos, out, Unmount(), run__workers=1)
    assert not out.exists()
    (tmp_path / "elsewhere").rename(out)
    assert job(photos, out, run__workers=1).already_done == 8


def test_a_folder_that_turns_read_only_stops_the_job(tmp_path: Path, tiny_disk: Path) -> None:
    class Freeze(Silent):
        def shard(self, receipt: Receipt) -> None:
            subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)

    photos = make_photos(tmp_path / "photos", 12)
    with pytest.raises(StorageError, match=r"Read-only file system; make it writable for this user, then run the same"):
        job(photos, tiny_disk / "out", Freeze(), run__workers=1)
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    assert job(photos, tiny_disk / "out", run__workers=1).already_done == 4


def test_shards_that_another_run_made_meanwhile_are_not_made_again(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    job(photos, tmp_path / "theirs")
    out = tmp_path / "out"

    class Rival(Silent):
        def shard(self, receipt: Receipt) -> None:
            for file in (tmp_path / "theirs" / "data").iterdir():
                if not (out / "data" / file.name).exists():
                    os.link(file, out / "data" / file.name)

    summary = job(photos, out, Rival(), run__workers=1)
    assert (summary.shards_written, summary.already_done, sum(summary.rows.values())) == (1, 8, 4)
    assert rows(out) == rows(tmp_path / "theirs")


def test_workers_leave_alone_what_another_run_has_made_since_the_plan_was_read(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 12)
    job(photos, tmp_path / "theirs")
    out = tmp_path / "out"

    class Rival(Heard):
        def start(self, total: int, done: int) -> None:
            shutil.copytree(tmp_path / "theirs" / "data", out / "data")

    rival = Rival()
    summary = job(photos, out, rival)
    assert (summary.shards_written, summary.already_done, summary.rows, rival.keys) == (0, 12, {}, [])
    assert rows(out) == rows(tmp_path / "theirs")


def test_images_over_the_memory_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    import PIL.Image

    photos = make_photos(tmp_path / "photos", 1)
    PIL.Image.new("RGB", (1000, 1000)).save(photos / "large.png")
    job(photos, tmp_path / "out", run__workers=1, memory__image_mb=1)
    large = rows(tmp_path / "out")[1]
    assert large["status"] == "too_large"
    assert "memory.image_mb" in large["error"]
    assert job(photos, tmp_path / "out", run__workers=1).shards_written == 0


def test_an_overdue_worker_is_killed_soon(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 0, names=["hang"])
    began = time.monotonic()
    job(photos, tmp_path / "out", run__workers=1, run__image_timeout_s=0.5)
    assert by_status(tmp_path / "out") == {"timeout": ["hang"]}
    assert time.monotonic() - began < 60
