"""The plan: it grows, knows its images again, and holds 200,000 of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from amg.errors import FormatError
from amg.run import plan as planning
from amg.run.growth import grow
from amg.run.listing import batches
from amg.run.plan import Plan
from amg.run.preview import Preview, drift, preview
from amg.sources.inputs import open_source
from amg.sources.source import Skipped
from amg.storage.local import LocalStore
from amg.values import ImageRef

SETTINGS = {"generate.points_per_side": 32}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "c/a.jpg", "c/z.jpg", "notes.txt", "readme.md"):
        write(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    (tmp_path / "out").mkdir()
    return LocalStore(tmp_path / "out")


def write(path: Path, content: str = "picture") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def grown(store: LocalStore, *inputs: Path, images_per_shard: int = 2) -> Plan:
    skipped: list[Skipped] = []
    plan = planning.read_plan(store) or planning.create_plan(store, SETTINGS)
    refs = open_source(*inputs).refs(skipped=skipped.append)
    return grow(store, plan, refs, skipped, images_per_shard=images_per_shard)


def seen(store: LocalStore, *inputs: Path, finished: tuple[int, ...] = ()) -> Preview:
    skipped: list[Skipped] = []
    return preview(
        planning.read_plan(store),
        open_source(*inputs).refs(skipped=skipped.append),
        skipped,
        images_per_shard=2,
        seconds_per_image=60,
        finished=finished,
    )


def keys(plan: Plan) -> list[str]:
    return [ref.key for shard in plan.shards() for ref in shard.refs]


def test_a_listing_becomes_shards_and_is_read_back(photos, store):
    plan = grown(store, photos)
    shards = list(plan.shards())
    assert [shard.number for shard in shards] == [0, 1]
    assert [ref for shard in shards for ref in shard.refs] == list(open_source(photos).refs())
    again = planning.read_plan(store)
    assert again is not None
    assert again.manifest.equals(plan.manifest)
    assert again.fingerprint == plan.fingerprint
    skipped = pq.read_table(Path(store.url) / "_plan" / "skipped-00000.parquet").to_pylist()
    assert [each["path"] for each in skipped] == ["notes.txt", "readme.md"]


def test_new_images_become_new_shards(photos, store):
    grown(store, photos, images_per_shard=3)
    write(photos / "0.jpg")
    plan = grown(store, photos, images_per_shard=3)
    assert [len(shard.refs) for shard in plan.shards()] == [3, 1, 1]
    assert keys(plan) == ["a.jpg", "b.jpg", "c/a.jpg", "c/z.jpg", "0.jpg"]
    assert plan.n_shards == 3
    assert grown(store, photos).manifest.equals(plan.manifest)


def test_what_is_left_to_do_are_the_rows_of_unfinished_shards(photos, store):
    plan = grown(store, photos, images_per_shard=1)
    left = plan.without({0, 2})
    assert [shard.number for shard in left.shards()] == [1, 3]
    assert (left.n_images, left.n_shards) == (2, 2)
    assert left.fingerprint == plan.fingerprint
    assert list(plan.without(range(4)).shards()) == []
    assert plan.without(range(4)).n_shards == 0


def test_what_a_manifest_says_is_in_the_plan(photos, store):
    (photos / "list.csv").write_text("path,label\na.jpg,dog\nb.jpg,cat\n")
    plan = grown(store, photos / "list.csv")
    assert [ref.extra for shard in plan.shards() for ref in shard.refs] == ['{"label":"dog"}', '{"label":"cat"}']
    assert grown(store, photos / "list.csv").n_images == 2


def test_another_writer_of_the_same_plan_is_met_halfway(photos, store, monkeypatch):
    create = LocalStore.create_if_absent
    raced = []

    def race(self: LocalStore, path: str, data: bytes) -> bool:
        if "manifest" in path and not raced:
            raced.append(path)
            grown(store, photos / "c")
        return create(self, path, data)

    monkeypatch.setattr(LocalStore, "create_if_absent", race)
    plan = grown(store, photos)
    assert keys(plan) == ["a.jpg", "z.jpg", "photos/a.jpg", "b.jpg"]
    stored = planning.read_plan(store)
    assert stored is not None
    assert stored.manifest.equals(plan.manifest)


def test_a_plan_that_was_read_before_another_job_added_to_it_grows_from_what_is_there(photos, store):
    stale = planning.create_plan(store, SETTINGS)
    first = grown(store, photos / "c")
    plan = grow(store, stale, open_source(photos).refs(), [], images_per_shard=2)
    assert keys(first) == ["a.jpg", "z.jpg"]
    assert keys(plan) == ["a.jpg", "z.jpg", "photos/a.jpg", "b.jpg"]
    assert grow(store, stale, open_source(photos).refs(), [], images_per_shard=2).n_images == 4
    stored = planning.read_plan(store)
    assert stored is not None
    assert stored.manifest.equals(plan.manifest)
    assert (stored.n_manifests, plan.n_manifests, stored.n_shards) == (2, 2, 2)


def test_a_plan_that_lacks_a_manifest_is_refused(photos, store):
    grown(store, photos / "c")
    grown(store, photos)
    (store.root / "_plan" / "manifest-00000.parquet").unlink()
    with pytest.raises(FormatError, match=r"has 1 manifests, and _plan/manifest-00000.parquet is not among them"):
        planning.read_plan(store)


def test_an_image_is_the_same_under_other_inputs(photos, store):
    grown(store, photos)
    assert grown(store, photos / "c").n_images == 4
    assert grown(store, photos / "c", photos).n_images == 4


def test_other_images_of_the_same_name_are_new_and_get_their_own_key(photos, store, tmp_path):
    grown(store, photos)
    for name in ("a.jpg", "c/a.jpg"):
        write(tmp_path / "other" / name, "another picture")
    plan = grown(store, tmp_path / "other")
    assert keys(plan)[4:] == ["other/a.jpg", "other/c/a.jpg"]
    assert grown(store, tmp_path / "other").n_images == grown(store, photos).n_images == 6


def test_a_copy_elsewhere_is_another_image_while_the_first_is_listed(photos, store, tmp_path):
    grown(store, photos)
    shutil.copytree(photos, tmp_path / "copy")
    plan = grown(store, photos, tmp_path / "copy")
    assert keys(plan)[4:] == ["copy/a.jpg", "copy/b.jpg", "copy/c/a.jpg", "copy/c/z.jpg"]


def test_a_moved_folder_keeps_its_rows_and_is_read_where_it_is(photos, store, tmp_path):
    before = grown(store, photos)
    moved = photos.rename(tmp_path / "moved")
    assert seen(store, moved).new == 0
    plan = grown(store, moved)
    assert keys(plan) == keys(before)
    assert {os.path.dirname(ref.uri) for shard in plan.shards() for ref in shard.refs} == {str(moved), str(moved / "c")}
    stored = planning.read_plan(store)
    assert stored is not None
    assert stored.manifest.equals(before.manifest)


def test_changed_gone_and_moved_images_are_counted_with_examples(photos, store, tmp_path):
    plan = grown(store, photos)
    assert drift(plan, open_source(photos).refs()).lines() == []
    write(photos / "a.jpg", "a longer picture")
    os.utime(photos / "b.jpg", ns=(0, 0))
    (photos / "c" / "z.jpg").unlink()
    write(photos / "new.jpg")
    found = drift(plan, open_source(photos).refs())
    assert (found.changed, found.changed_first) == (2, ("a.jpg", "b.jpg"))
    assert (found.gone, found.gone_first) == (1, ("c/z.jpg",))
    assert (found.moved, found.moved_first) == (0, ())
    assert found.lines()[0].startswith("2 images changed since the plan was made (a.jpg, b.jpg): each keeps its row")
    some = list(open_source(photos).refs())[:1]
    assert drift(plan, some).gone == 3
    assert drift(plan, some, is_whole=False).gone == 0
    photos.rename(tmp_path / "moved")
    elsewhere = drift(plan, open_source(tmp_path / "moved").refs())
    assert (elsewhere.moved, elsewhere.gone, elsewhere.changed) == (1, 3, 0)


def test_a_listed_image_that_vanished_is_gone_and_one_that_came_back_has_changed(photos, store):
    (photos / "list.txt").write_text("a.jpg\nb.jpg\nlater.jpg\n")
    plan = grown(store, photos / "list.txt")
    (photos / "a.jpg").unlink()
    write(photos / "later.jpg")
    found = drift(plan, open_source(photos / "list.txt").refs())
    assert (found.gone_first, found.changed_first) == (("a.jpg",), ("later.jpg",))


def test_examples_are_few(store):
    refs = [ImageRef(n, f"{n}.jpg", f"/{n}.jpg", size_bytes=1, tag="1") for n in range(10)]
    plan = grow(store, planning.create_plan(store, SETTINGS), refs, [], images_per_shard=5)
    found = drift(plan, refs[:1])
    assert (found.gone, found.gone_first) == (9, ("1.jpg", "2.jpg", "3.jpg"))
    assert "(1.jpg, 2.jpg, 3.jpg, ...)" in found.lines()[0]
    assert drift(plan, batches(refs)).lines() == []


def test_a_preview_says_in_numbers_what_a_run_would_do(photos, store):
    assert seen(store, photos) == Preview(
        found=4,
        planned=0,
        new=4,
        drift=drift(Plan(SETTINGS), []),
        skipped={"not an image: a .txt file": 1, "not an image: a .md file": 1},
        shards=2,
        images=4,
        expected_seconds=240,
        bytes_to_read=4 * len("picture"),
    )
    assert list(store.list()) == []
    grown(store, photos)
    write(photos / "new.jpg", "p")
    later = seen(store, photos, finished=(0,))
    assert (later.found, later.planned, later.new, later.images, later.shards) == (5, 4, 1, 3, 2)
    assert later.bytes_to_read == 2 * len("picture") + 1
    assert json.loads(later.to_json())["drift"]["gone_first"] == []
    text = later.render()
    assert text.startswith("5 images found, 1 new, 4 planned before\n2 entries skipped:\n  1 x not an image")
    assert text.endswith("to do: 3 images in 2 shards, 0.0 MB to read, roughly 3 minutes")


def test_a_preview_of_a_finished_job_has_nothing_to_do(photos, store):
    grown(store, photos)
    done = seen(store, photos, finished=(0, 1))
    assert (done.images, done.shards, done.expected_seconds, done.bytes_to_read) == (0, 0, 0, 0)
    assert done.render().endswith("to do: 0 images in 0 shards, 0.0 MB to read")


def test_what_was_skipped_is_known_even_if_the_job_dies_before_its_images_are(photos, store):
    class Dying(LocalStore):
        def create_if_absent(self, path: str, data: bytes) -> bool:
            if "manifest" in path:
                raise KeyboardInterrupt
            return super().create_if_absent(path, data)

    with pytest.raises(KeyboardInterrupt):
        grown(Dying(store.root), photos)
    assert not list((store.root / "_plan").glob("manifest-*"))
    assert grown(store, photos).n_images == 4
    skipped = pq.read_table(store.root / "_plan" / "skipped-00000.parquet").to_pylist()
    assert [each["path"] for each in skipped] == ["notes.txt", "readme.md"]


def test_a_manifest_that_lacks_a_column_is_refused(photos, store):
    grown(store, photos)
    file = store.root / "_plan" / "manifest-00000.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["tag"]), file)
    with pytest.raises(FormatError, match="is not a manifest of a plan"):
        planning.read_plan(store)


PLAN_BY_COMMAND = """
import json, resource, sys
from amg.cli.main import main
from amg.run import local
from amg.sam import weights
from tests.outputs import stands_for_published

def report():
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    if sys.platform != "darwin":  # ru_maxrss begins with what the parent had when it forked
        peak = next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    heavy = [name for name in ("torch", "torchvision", "numba") if name in sys.modules]
    print(json.dumps({"mb": peak, "heavy": heavy}), file=sys.stderr)

def open_label(checkpoint, config, device):
    report()
    raise SystemExit(0)

local.open_label = open_label
stands_for_published(weights, sys.argv.pop(1))
if main() == 0:
    report()
"""


def make_files(folder: Path, n: int) -> None:
    for i in range(n):
        if i % 1000 == 0:
            (folder / "photos" / f"{i:06}").mkdir(parents=True)
        os.close(os.open(folder / "photos" / f"{i // 1000 * 1000:06}" / f"{i:06}.jpg", os.O_CREAT))
    (folder / "list.txt").write_text("".join(f"photos/{i // 1000 * 1000:06}/{i:06}.jpg\n" for i in range(n)))
    (folder / "weights.pt").write_bytes(b"stands for weights")


def command_until_labeling(folder: Path, *arguments: str) -> tuple[dict[str, Any], str, float]:
    """What `sam-amg run` comes to when the model would be loaded, or at its end; its stdout; its seconds in all."""
    command = [sys.executable, "-c", PLAN_BY_COMMAND, str(folder / "weights.pt"), "run", *arguments]
    began = time.perf_counter()
    done = subprocess.run(
        [*command, "--device", "cpu", "--set", "shards.images_per_shard=64"],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    return json.loads(done.stderr.splitlines()[-1]), done.stdout, time.perf_counter() - began


@pytest.mark.parametrize(
    ("n", "most_mb", "most_seconds"),
    [(20_000, 250, 60), pytest.param(200_000, 500, 20, marks=pytest.mark.slow)],
    ids=["20k", "200k"],
)
def test_the_command_plans_many_images_before_it_loads_torch(
    n: int, most_mb: float, most_seconds: float, tmp_path: Path
) -> None:
    make_files(tmp_path, n)
    photos, listed, out = str(tmp_path / "photos"), str(tmp_path / "list.txt"), tmp_path / "out"
    for arguments in (
        [photos, "--out", str(out), "--dry-run", "--json"],
        [photos, "--out", str(out)],
        [photos, "--out", str(out)],
        [listed, "--out", f"{out}2"],
    ):
        came, said, seconds = command_until_labeling(tmp_path, *arguments)
        print(arguments[0].rpartition("/")[2], *arguments[3:], came, f"{seconds:.1f} s")
        assert came["heavy"] == []
        assert came["mb"] < most_mb
        assert seconds < most_seconds
        if said:
            assert json.loads(said)["images"] == n
        else:
            plan = planning.read_plan(LocalStore(Path(arguments[2])))
            assert plan is not None
            assert (plan.n_images, plan.n_shards) == (n, -(-n // 64))
