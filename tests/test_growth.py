"""A plan in many manifests: every image once, whoever writes at the same time and whenever a run dies."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from amg.run import growth
from amg.run.growth import digest_of, grow, is_listed, remember_listed
from amg.run.layout import Layout
from amg.run.listing import SkippedLog, list_source
from amg.run.plan import FIRST_SHARD, MANIFEST_SCHEMA, Plan, create_plan, read_plan
from amg.run.survey import survey
from amg.sources.inputs import open_source
from amg.sources.source import LISTING_SCHEMA, Skipped, ignore
from amg.storage.local import LocalStore
from amg.storage.store import Store
from amg.values import ImageRef
from tests.memory_store import MemoryStore

SETTINGS = {"generate.points_per_side": 32}


@pytest.fixture(autouse=True)
def small_manifests(monkeypatch):
    monkeypatch.setattr(growth, "IMAGES_PER_MANIFEST", 10)
    monkeypatch.setattr(growth, "IMAGES_PER_GROUP", 4)


def addresses(numbers: range) -> Iterator[pa.RecordBatch]:
    """Images in a bucket, a few at a time."""
    for start in range(0, len(numbers), 7):
        paths = pa.array([f"s3://bucket/{number // 10:03d}/{number}.jpg" for number in numbers[start : start + 7]])
        nothing = [pa.nulls(len(paths), LISTING_SCHEMA.field(n).type) for n in range(2, 6)]
        yield pa.RecordBatch.from_arrays([paths, paths, *nothing], schema=LISTING_SCHEMA)


def plan_all(store: Store, numbers: range, skipped: SkippedLog | None = None) -> Plan:
    plan = create_plan(store, SETTINGS)
    return grow(store, plan, addresses(numbers), skipped or SkippedLog(), images_per_shard=2)


def numbers_in(plan: Plan) -> list[int]:
    return [int(ref.uri.rpartition("/")[2].removesuffix(".jpg")) for shard in plan.shards() for ref in shard.refs]


def check(store: Store, numbers: range) -> Plan:
    """The plan as it is stored: these images, each once, rows and shards counted through, full but at its seams."""
    plan = read_plan(store)
    assert plan is not None
    shards = list(plan.shards())
    assert sorted(numbers_in(plan)) == list(numbers)
    assert [ref.row for shard in shards for ref in shard.refs] == list(range(len(numbers)))
    assert [shard.number for shard in shards] == list(range(plan.n_shards))
    assert plan.manifest["shard"].to_pylist() == [shard.number for shard in shards for _ in shard.refs]
    return plan


def test_a_long_listing_becomes_manifests_of_bounded_size_in_its_order():
    store = MemoryStore()
    plan = plan_all(store, range(47))
    assert numbers_in(plan) == list(range(47))
    stored = check(store, range(47))
    assert stored.manifest.equals(plan.manifest)
    assert (plan.n_manifests, plan.n_shards) == (5, 24)
    sizes = [pq.ParquetFile(store.open(f"_plan/manifest-{n:05d}.parquet")).metadata.num_rows for n in range(5)]
    assert sizes == [10, 10, 10, 10, 7]
    assert numbers_in(plan_all(store, range(60)))[47:] == list(range(47, 60))
    assert [len(shard.refs) for shard in check(store, range(60)).shards()][22:26] == [2, 1, 2, 2]


def test_a_run_that_dies_before_any_of_its_writes_is_completed_by_the_next():
    writes: list[str] = []
    undisturbed = MemoryStore(before=writes.append)
    wanted = plan_all(undisturbed, range(47)).manifest
    assert len(writes) == 7  # the plan, what was skipped, five manifests
    for n in range(len(writes)):
        store = MemoryStore()

        def die(path: str, at: str = writes[n]) -> None:
            if path == at:
                raise KeyboardInterrupt

        store.before = die
        with pytest.raises(KeyboardInterrupt):
            plan_all(store, range(47))
        store.before = lambda _: None
        assert plan_all(store, range(47)).manifest.equals(wanted)
        assert check(store, range(47)).manifest.equals(wanted)
        assert {path for path in store.files if "manifest" in path} == {path for path in writes if "manifest" in path}


@pytest.mark.parametrize("theirs", [range(47), range(20, 60), range(100, 103)])
def test_a_run_that_comes_between_any_two_writes_of_another_is_met_halfway(theirs):
    for n in range(7):
        store, seen = MemoryStore(), []

        def race(path: str, store: MemoryStore = store, seen: list[str] = seen, at: int = n) -> None:
            seen.append(path)
            if len(seen) == at + 1:
                plan_all(store, theirs)

        store.before = race
        mine = plan_all(store, range(47))
        everything = sorted({*range(47), *theirs})
        stored = read_plan(store)
        assert stored is not None
        assert sorted(numbers_in(stored)) == everything
        assert [row.as_py() for row in stored.manifest["row"]] == list(range(len(everything)))
        assert stored.manifest.equals(mine.manifest)


def test_what_was_left_out_stands_beside_the_first_manifest_of_its_listing():
    store, log = MemoryStore(), SkippedLog()
    for n in range(3):
        log(Skipped(f"{n}.txt", "not an image"))
    plan_all(store, range(25), log)
    left_out = [path for path in store.files if "skipped" in path]
    assert left_out == ["_plan/skipped-00000.parquet"]
    table = pq.read_table(store.open(left_out[0]))
    assert table.to_pylist() == [{"path": f"{n}.txt", "reason": "not an image"} for n in range(3)]
    assert log.reasons == {"not an image": 3}


def test_nothing_is_written_for_a_listing_that_fails():
    store = MemoryStore()
    plan = create_plan(store, SETTINGS)

    def broken() -> Iterator[pa.RecordBatch]:
        yield from addresses(range(40))
        raise OSError("the listing broke off")

    with pytest.raises(OSError, match="broke off"):
        grow(store, plan, broken(), SkippedLog(), images_per_shard=2)
    assert list(store.files) == ["_plan/plan.json"]


def test_a_plan_of_an_older_version_is_read_and_grows():
    store = MemoryStore()
    depends_on = create_plan(store, SETTINGS).depends_on
    refs = [ImageRef(n, f"{n}.jpg", f"/p/{n}.jpg", size_bytes=n, tag="1") for n in range(23)]
    columns = [[getattr(ref, name) for ref in refs] for name in MANIFEST_SCHEMA.names[:-1]]
    table = pa.table([*columns, [0] * 9 + [1] * 9 + [2] * 5], schema=MANIFEST_SCHEMA)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=6)  # as it was: groups end where they will
    store.files["_plan/manifest-00000.parquet"] = sink.getvalue().to_pybytes()
    plan = read_plan(store)
    assert plan is not None
    assert FIRST_SHARD.encode() not in plan.rows.files[0].metadata.metadata
    assert [(shard.number, len(shard.refs)) for shard in plan.shards()] == [(0, 9), (1, 9), (2, 5)]
    assert [ref for shard in plan.shards() for ref in shard.refs] == refs
    assert plan.depends_on == depends_on
    more = [*refs, *(ImageRef(n, f"{n}.jpg", f"/p/{n}.jpg") for n in range(23, 30))]
    plan = grow(store, plan, more, SkippedLog(), images_per_shard=4)
    assert plan.images_by_shard() == {0: 9, 1: 9, 2: 5, 3: 4, 4: 3}
    assert plan.shards_of(np.array([0, 8, 9, 22, 26, 29])) == [0, 1, 2, 3, 4]


def test_what_is_left_is_read_past_the_gaps():
    plan = plan_all(MemoryStore(), range(47))
    for seed in range(5):
        finished = random.Random(seed).sample(range(24), 15)
        left = plan.without(finished)
        assert [shard.number for shard in left.shards()] == sorted({*range(24)} - {*finished})
        assert left.n_images == sum(len(shard.refs) for shard in left.shards()) == left.manifest.num_rows
        assert list(left.images_by_shard()) == [shard.number for shard in left.shards()]


def test_shards_as_numbers_and_as_rule_are_the_same():
    numbers = np.array([3, 3, 3, 4, 4, 4, 5])
    counted, ruled = Layout.of_numbers(numbers, 10), Layout.even(7, first_shard=3, images_per_shard=3, first_place=10)
    for each in (counted, ruled):
        assert [each.number_S.tolist(), each.start_S.tolist(), each.stop_S.tolist()] == [
            [3, 4, 5],
            [10, 13, 16],
            [13, 16, 17],
        ]
        assert list(each.spans()) == [(10, 17)]
    assert list(counted.select(np.array([True, False, True])).spans()) == [(10, 13), (16, 17)]
    assert list(Layout.joined([]).spans()) == []


def test_a_list_of_addresses_that_has_not_changed_is_not_read_again(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("".join(f"s3://bucket/{n}.jpg\n" for n in range(30)))
    store = MemoryStore()
    source = open_source(file)
    assert not is_listed(store, Plan(SETTINGS), digest_of(source))
    seen = survey(Plan(SETTINGS), list_source(source, ignore))
    plan = grow(store, create_plan(store, SETTINGS), seen, SkippedLog(), images_per_shard=2)
    remember_listed(store, plan, seen, digest_of(source))
    assert is_listed(store, plan, digest_of(open_source(file)))
    assert not is_listed(store, Plan(SETTINGS), digest_of(source)), "the plan lacks what the note counts"
    file.write_text(file.read_text() + "s3://bucket/new.jpg\n")
    assert not is_listed(store, plan, digest_of(open_source(file)))
    assert not is_listed(store, plan, None)
    (note,) = [path for path in store.files if "listed" in path]
    store.files[note] = b"{"
    assert not is_listed(store, plan, digest_of(source))


def test_a_list_of_files_is_looked_at_anew(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"x")
    (tmp_path / "list.txt").write_text("a.jpg\ns3://bucket/b.jpg\n")
    store, source = MemoryStore(), open_source(tmp_path / "list.txt")
    seen = survey(Plan(SETTINGS), list_source(source, ignore))
    plan = grow(store, create_plan(store, SETTINGS), seen, SkippedLog(), images_per_shard=2)
    remember_listed(store, plan, seen, digest_of(source))
    assert not is_listed(store, plan, digest_of(source))
    assert digest_of(open_source(tmp_path)) is None


PLANNER = """
import sys
from pathlib import Path
from amg.run import growth
from amg.storage.local import LocalStore
from tests.test_growth import plan_all

growth.IMAGES_PER_MANIFEST = 100
sys.stdin.readline()
plan_all(LocalStore(Path(sys.argv[1])), range(int(sys.argv[2]), int(sys.argv[3])))
print("done")
"""


def planner(out: Path, numbers: range) -> subprocess.Popen[str]:
    """A process that plans them when it is told to."""
    command, pipe = [sys.executable, "-c", PLANNER, str(out), str(numbers.start), str(numbers.stop)], subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=Path(__file__).parent.parent)


def test_planners_that_are_killed_at_random_while_others_plan_leave_every_image_once(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, "IMAGES_PER_MANIFEST", 100)
    rng, killed_midway = random.Random(0), 0
    for round_ in range(2):
        out = tmp_path / str(round_)
        out.mkdir()
        listings = [range(5000), range(2500, 5000), range(5000)]
        processes = [planner(out, numbers) for numbers in listings]
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("begin\n")
            process.stdin.flush()
        for process in processes[:2]:
            before = len(list(out.glob("_plan/manifest-*")))
            enough = before + rng.randrange(1, 12)
            while len(list(out.glob("_plan/manifest-*"))) < enough and process.poll() is None:
                time.sleep(0.001)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed_midway += process.returncode == -signal.SIGKILL
        said, _ = processes[2].communicate(timeout=60)
        assert said == "done\n"
        store = LocalStore(out)
        store.sweep()
        check(store, range(5000))
    assert killed_midway >= 2


def test_the_command_plans_a_list_of_addresses_in_bounded_memory_and_knows_it_again(tmp_path):
    from tests.bench.scale import Scale, addresses, command, planned, write_list

    scale = Scale(200_000, "parquet", 1, tmp_path)
    write_list(scale.listed, addresses(scale.images))
    (tmp_path / "weights.pt").write_bytes(b"stands for weights")
    first = command(scale, scale.listed)
    again = command(scale, scale.listed)
    assert first["peak_gb"] < 0.4
    assert again["peak_gb"] < 0.25
    plan = planned(scale)
    assert (plan.n_images, plan.n_shards, plan.n_manifests) == (200_000, 782, 1)
    assert len(list((scale.out / "_plan").glob("listed-*.json"))) == 1
    assert json.loads(next((scale.out / "_plan").glob("listed-*.json")).read_text()) == {"images": 200_000}
    assert os.listdir(scale.out / "_tmp") == []
