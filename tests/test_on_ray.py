"""Jobs on Ray, started here on loopback, with the stand-in for the network; and one with the real model.

Actors import this checkout from the working directory.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import PIL.Image
import psutil
import pytest

from amg.cli.main import main
from amg.config import Config, load_config
from amg.errors import ConfigError, StorageError
from amg.run.local import Local
from amg.run.local import run_local as run_locally
from amg.run.on_ray import OnRay, on_ray, pick_device
from amg.run.on_ray import run_on_ray as run_really_on_ray
from amg.run.progress import Silent, Summary
from amg.run.ray_crew import Reserved, reserve
from amg.run.retry import preview_retry, retry_with
from amg.run.runner import run_with
from amg.shards.reader import read_shards
from amg.sources.inputs import open_source
from amg.values import Failure, MaskSet
from tests.chaos import standin
from tests.chaos.killer import rows
from tests.chaos.standin import make_photos, run_local, run_on_ray
from tests.local_ray import local_ray
from tests.test_workers import Heard, by_status, tiny_disk

__all__ = ["tiny_disk"]  # a fixture


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with local_ray(tmp_path_factory.mktemp("ray")):
        yield


def config(**settings: object) -> Config:
    named = {"run.workers": 2, "run.threads": 1, "shards.images_per_shard": 4}
    return load_config(overrides=named | {name.replace("__", "."): value for name, value in settings.items()})


def job(photos: Path, out: Path, observer: Silent | None = None, **settings: object) -> Summary:
    return run_on_ray([str(photos)], str(out), config(**settings), observer=observer or Silent())


def actors() -> list[psutil.Process]:
    """The processes of this test's workers, wherever they are."""
    return [p for p in psutil.process_iter(["cmdline"]) if "ray::RayWorker" in " ".join(p.info["cmdline"] or ())]


@pytest.mark.usefixtures("cluster")
class TestOnOneMachine:
    def test_rows_and_what_is_told_are_those_of_one_process(self, tmp_path: Path) -> None:
        photos = make_photos(tmp_path / "photos", 20)
        here, there = Heard(), Heard()
        settings = config(run__workers=1)
        one = run_local([str(photos)], str(tmp_path / "one"), settings, observer=here)
        two = job(photos, tmp_path / "two", there)
        assert rows(tmp_path / "two") == rows(tmp_path / "one")
        assert (two.rows, two.masks, two.shards_written) == (one.rows, one.masks, one.shards_written)
        assert sorted(there.keys) == sorted(here.keys)
        assert there.masks == here.masks
        assert job(photos, tmp_path / "two").shards_written == 0

    def test_poison_and_only_poison_is_marked(self, tmp_path: Path) -> None:
        poison = ["0003-segv-in-model", "0006-killed", "0007-eats-memory-in-read"]
        photos = make_photos(tmp_path / "photos", 10, names=poison)
        out = tmp_path / "out"
        job(photos, out)
        found = by_status(out)
        assert found["crash"] == ["0003-segv-in-model", "0006-killed"]
        assert found["out_of_memory"] == ["0007-eats-memory-in-read"]
        assert len(found["ok"]) == 9
        reasons = {row["key"]: row["error"] for row in rows(out) if row["status"] == "crash"}
        assert "3 times in a row, the last time without a word, as by a crash" in reasons["0006-killed.png"]

    def test_an_image_that_hangs_gets_a_row_timeout(self, tmp_path: Path) -> None:
        photos = make_photos(tmp_path / "photos", 3, names=["0001-hang"])
        job(photos, tmp_path / "out", run__image_timeout_s=3.0)
        assert by_status(tmp_path / "out") == {"ok": ["0000", "0001", "0002"], "timeout": ["0001-hang"]}

    def test_a_worker_that_is_stopped_for_long_loses_its_shard_and_may_come_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may be stopped at an image, or when it is about to write them."""
        monkeypatch.setattr("amg.run.pool.SECONDS_TO_WRITE", 5.0)

        class Stopper(Heard):
            def image(self, result: MaskSet | Failure, shard: int) -> None:
                super().image(result, shard)
                if len(self.keys) == 5:
                    self.stopped = actors()[0]
                    self.stopped.suspend()

        photos = make_photos(tmp_path / "photos", 30)
        stopper = Stopper()
        job(photos, tmp_path / "out", stopper, run__image_timeout_s=5.0)
        with suppress(psutil.NoSuchProcess):
            stopper.stopped.resume()
        run_local([str(photos)], str(tmp_path / "calm"), config(run__workers=1), observer=Silent())
        assert rows(tmp_path / "out") == rows(tmp_path / "calm")

    def test_workers_killed_at_random_cost_no_row(self, tmp_path: Path) -> None:
        class Killer(Heard):
            kills = 0

            def image(self, result: MaskSet | Failure, shard: int) -> None:
                super().image(result, shard)
                if len(self.keys) % 12 == 0 and (there := actors()):
                    rng.choice(there).kill()
                    self.kills += 1

        rng = random.Random(1)
        photos = make_photos(tmp_path / "photos", 50)
        killer = Killer()
        job(photos, tmp_path / "out", killer)
        run_local([str(photos)], str(tmp_path / "calm"), config(run__workers=1), observer=Silent())
        assert rows(tmp_path / "out") == rows(tmp_path / "calm")
        assert killer.kills >= 3

    def test_an_error_of_all_workers_ends_the_job(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(standin, "stand_in", lambda: standin.breaks)
        photos = make_photos(tmp_path / "photos", 3)
        with pytest.raises(StorageError, match="no room on cpu"):
            job(photos, tmp_path / "out")

    def test_a_full_disk_stops_the_job_and_more_room_lets_it_finish(self, tmp_path: Path, tiny_disk: Path) -> None:
        photos, out = make_photos(tmp_path / "photos", 60), tiny_disk / "out"
        (tiny_disk / "ballast").write_bytes(bytes(1_900_000))
        with pytest.raises(StorageError, match=r"No space left.*make room on that disk.*what is finished is kept"):
            job(photos, out)
        assert not list((out / "_tmp").iterdir())
        kept = len(list((out / "data").iterdir()))
        (tiny_disk / "ballast").unlink()
        assert job(photos, out).shards_written == 15 - kept
        run_local([str(photos)], str(tmp_path / "calm"), config(run__workers=1), observer=Silent())
        assert rows(out) == rows(tmp_path / "calm")

    def test_no_actor_outlives_its_job(self, tmp_path: Path) -> None:
        class Fails(Heard):
            def image(self, result: MaskSet | Failure, shard: int) -> None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            job(make_photos(tmp_path / "photos", 30), tmp_path / "out", Fails())
        _, alive = psutil.wait_procs(actors(), timeout=10)
        assert alive == []
        assert list((tmp_path / "out" / "_tmp").iterdir()) == []


@pytest.mark.usefixtures("cluster")
def test_real_masks_on_ray_are_those_of_local_workers(tmp_path: Path) -> None:
    """Twelve small pictures cut from the sample photos, real weights, one thread a worker on both sides."""
    photos = cuttings(tmp_path / "photos")
    settings = {"run.threads": 1, "generate.points_per_side": 4, "run.workers": 2, "shards.images_per_shard": 2}
    assert run_locally([str(photos)], str(tmp_path / "local"), load_config(overrides=settings), observer=Silent()).masks
    on_ray = load_config(overrides=settings | {"run.runner": "ray"})
    summary = run_really_on_ray([str(photos)], str(tmp_path / "ray"), on_ray, observer=Silent())
    assert summary.labeled == 12
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")


def cuttings(folder: Path) -> Path:
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket", "studio"):
        with PIL.Image.open(Path(__file__).parent / "photos" / f"{name}.jpg") as photo:
            for n in range(3):
                left = n * photo.width // 4
                photo.crop((left, 0, left + photo.width // 3, photo.height // 2)).save(folder / f"{name}-{n}.png")
    return folder


def test_workers_on_ray_have_the_threads_that_as_many_have_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that their masks are the same to the last digit, and an output can go on here or there."""
    monkeypatch.setattr("amg.run.machine.cores", lambda: 8)
    settings = load_config(overrides={"run.device": "cpu", "run.workers": 3})
    there, here = OnRay(lambda: None).settle(settings, None), Local().settle(settings, None)
    assert there.config.run.threads == here.config.run.threads == 2
    assert there.depends_on == here.depends_on


@pytest.mark.usefixtures("cluster")
def test_images_that_failed_are_labeled_again_on_ray(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 8, names=["0003-killed"])
    out = tmp_path / "out"
    job(photos, out)
    assert by_status(out)["crash"] == ["0003-killed"]
    (photos / "0003-killed.healed").touch()
    where = {"run.runner": "ray", "run.workers": 2}
    with standin.on_ray(config().run) as runner:
        assert preview_retry(runner, str(out), ["crash"], where).isolated == 1
        retried = retry_with(runner, str(out), ["crash"], where, observer=Silent())
    assert retried.summary is not None
    assert retried.summary.rows == {"ok": 1}
    assert len([row for row in read_shards(out) if row["status"] == "ok"]) == 8
    assert not actors()


def test_what_is_refused_before_it_is_settled_starts_no_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, out = make_photos(tmp_path / "photos", 3), tmp_path / "out"
    run_local([str(photos)], str(out), config(run__workers=1), observer=Silent())
    monkeypatch.setattr("amg.run.on_ray.connected", lambda _: pytest.fail("Ray was started"))
    with on_ray(config().run) as runner:
        assert retry_with(runner, str(out), ["crash"], observer=Silent()).summary is None
    (tmp_path / "file").touch()
    with on_ray(config().run) as runner, pytest.raises(StorageError):
        run_with(runner, open_source(str(photos)), str(tmp_path / "file"), config(), observer=Silent())


@pytest.mark.usefixtures("cluster")
def test_a_dry_run_on_ray_says_what_the_run_would_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos, out = make_photos(tmp_path / "photos", 6), tmp_path / "out"
    arguments = ["sam-amg", "run", str(photos), "--out", str(out), "--runner", "ray", "--workers", "2", "--dry-run"]
    monkeypatch.setattr("sys.argv", arguments)
    assert main() == 0
    assert "to do: 6 images in 2 shards" in capsys.readouterr().out
    assert not out.exists()
    monkeypatch.setattr("sys.argv", [*arguments, "--device", "cuda:1"])
    assert main() == 2
    assert "Ray chooses which one" in capsys.readouterr().err


def test_what_a_worker_reserves_follows_from_its_device() -> None:
    assert reserve(config(), "cpu") == Reserved(0.0, 1.0)
    assert reserve(config(run__threads=3), "cpu") == Reserved(0.0, 3.0)
    assert reserve(config(), "cuda") == Reserved(1.0, 1.0)
    assert reserve(config(run__gpus_per_worker=0.25, run__cpus_per_worker=2), "cuda") == Reserved(0.25, 2.0)
    with pytest.raises(ConfigError, match=r"run\.gpus_per_worker is 0 and run\.device is cuda"):
        reserve(config(run__gpus_per_worker=0), "cuda")
    with pytest.raises(ConfigError, match="a worker on cpu needs none"):
        reserve(config(run__gpus_per_worker=1), "cpu")


def test_room_is_what_the_scarcer_resource_allows() -> None:
    assert Reserved(0.5, 2.0).fit({"GPU": 2.0, "CPU": 16.0}) == 4
    assert Reserved(0.5, 8.0).fit({"GPU": 2.0, "CPU": 16.0}) == 2
    assert Reserved(1.0, 1.0).fit({"CPU": 16.0}) == 0


@pytest.mark.usefixtures("cluster")
def test_the_device_is_the_clusters_unless_it_is_said() -> None:
    assert pick_device(config().run) == "cpu"
    assert pick_device(config(run__gpus_per_worker=1).run) == "cuda"
    assert pick_device(config(run__device="cuda").run) == "cuda"
    with pytest.raises(ConfigError, match="Ray chooses which one"):
        pick_device(config(run__device="cuda:1").run)
