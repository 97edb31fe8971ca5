"""The short forms of `python -m tests.chaos`, here and on Ray, and one kill of a job with the real model."""

import subprocess
import time
from pathlib import Path

import PIL.Image

from tests.chaos.killer import chaos, faults, finish, orphans, rows, start, strike
from tests.chaos.on_ray import chaos_on_ray, cluster_of_raylets
from tests.chaos.standin import POISON, make_photos
from tests.object_store import ObjectStore

PHOTOS = Path(__file__).parent.parent / "photos"
SECONDS_TO_FIRST_SHARD = 300.0


def test_a_dozen_kills_lose_no_row_and_leave_nothing_behind(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    assert finish(start(photos, tmp_path / "calm"))[0] == 0
    seen = chaos(tmp_path, photos, rows(tmp_path / "calm"), kills=12, seed=3)
    assert (seen.wrong, seen.orphans, seen.deaf) == ([], [], [])
    assert sum(seen.kills.values()) == 12


def test_a_dozen_kills_on_ray_lose_no_row_and_blame_no_innocent(tmp_path: Path, object_store: ObjectStore) -> None:
    """Workers, drivers, raylets; to a folder and, when that is done, to an object store that fails now and then."""
    photos = make_photos(tmp_path / "photos", 40, names=POISON[:3])
    assert finish(start(photos, tmp_path / "calm", "--workers", "2"))[0] == 0
    calm = rows(tmp_path / "calm")
    object_store.faults.at_random(0.05)
    with cluster_of_raylets(tmp_path) as cluster:
        seen = chaos_on_ray([str(tmp_path), object_store.url], photos, calm, cluster, kills=12, seed=1)
    assert seen.wrong == []
    assert sum(seen.kills.values()) == 12
    assert [row["status"] for row in calm].count("crash") == 3


def small_photos(folder: Path) -> Path:
    """Sample photos of at most 320 pixels a side, and last a file that is none."""
    folder.mkdir()
    for name in ("astronaut", "coffee", "rocket"):
        with PIL.Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.thumbnail((320, 320))
            photo.save(folder / f"{name}.png")
    (folder / "truncated.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    return folder


def test_a_real_job_that_is_killed_between_its_shards_goes_on_to_the_same_rows(tmp_path: Path) -> None:
    photos, out, undisturbed = small_photos(tmp_path / "photos"), tmp_path / "out", tmp_path / "undisturbed"
    settings = ("generate.points_per_side=4", "shards.images_per_shard=1", "run.threads=1")
    arguments = ["--quiet"] + [part for setting in settings for part in ("--set", setting)]
    killed = start(photos, out, *arguments, "--device", "cpu,cpu", module="amg")
    kept = wait_for_a_shard(out, killed)
    assert strike(killed, "SIGKILL group")
    killed.communicate()
    assert orphans(killed.pid) == []
    made = {file.name: file.read_bytes() for file in (out / "data").iterdir()}
    assert kept <= set(made)
    assert 1 <= len(made) < 4
    assert "ok" in [row["status"] for row in rows(out)]

    jobs = [start(photos, folder, *arguments, "--device", "cpu", module="amg") for folder in (out, undisturbed)]
    assert [finish(job) for job in jobs] == [(0, ""), (0, "")]
    assert {name: (out / "data" / name).read_bytes() for name in made} == made
    assert faults(out, rows(undisturbed)) == []
    assert [row["status"] for row in rows(out)].count("ok") == 3
    assert sum(row["num_masks"] or 0 for row in rows(out)) > 0


def wait_for_a_shard(out: Path, job: subprocess.Popen[str]) -> set[str]:
    """The names of the first shards, as soon as there is one."""
    until = time.monotonic() + SECONDS_TO_FIRST_SHARD
    while not (there := {file.name for file in (out / "data").glob("*.parquet")}):
        assert job.poll() is None, job.communicate()
        assert time.monotonic() < until
        time.sleep(0.005)
    return there
