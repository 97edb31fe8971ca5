"""Compaction: one clean folder with the newest row of every image, whatever was killed on the way."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from amg.cli.main import main
from amg.errors import FormatError, OutputRefused, StorageError, UnfinishedError
from amg.export.formats import export_shards
from amg.review.view import write_review
from amg.run import compact as compaction
from amg.run import regroup
from amg.run.compact import Compacted, compact
from amg.run.growth import grow
from amg.run.plan import Plan, read_plan
from amg.run.status import failed_images, job_status
from amg.run.verify import verify_output
from amg.shards.reader import footer, read_shards
from amg.shards.verify import Finding
from amg.shards.writer import BYTES_PER_GROUP, ROWS_PER_GROUP
from amg.sources.source import Skipped
from amg.storage.local import LocalStore
from amg.storage.url import open_store
from amg.values import ImageRef
from tests.outputs import make_output, retry_output

KEYS = [f"{n:03d}.png" for n in range(150)]
MUCH = 10**9


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 shards of 3; all that was missing has masks now, in two retries."""
    folder = tmp_path_factory.mktemp("sound") / "out"
    make_output(folder, KEYS, images_per_shard=3)
    retry_output(folder, ["missing"], images_per_shard=4)
    retry_output(folder, ["decode_error"], images_per_shard=100)
    return folder


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "out"))


def clean(folder: Path, out: Path, target_bytes: int = MUCH, *, partial: bool = False) -> Compacted:
    return compact(str(folder), str(out), target_bytes=target_bytes, partial=partial)


def plan_of(folder: Path) -> Plan:
    plan = read_plan(open_store(folder))
    assert plan is not None
    return plan


def kinds(folder: Path) -> list[str]:
    found: list[Finding] = []
    verify_output(str(folder), found=found.append)
    return [finding.kind for finding in found]


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_one_file_has_the_newest_row_of_every_image(sound: Path, tmp_path: Path) -> None:
    before = files(sound)
    done = clean(sound, tmp_path / "new")
    assert list(read_shards(tmp_path / "new")) == list(read_shards(sound))
    assert files(sound) == before
    assert kinds(tmp_path / "new") == []
    assert [path.name for path in (tmp_path / "new" / "data").iterdir()] == ["part-000000.parquet"]
    assert done == Compacted(
        out=str(tmp_path / "new"),
        files_before=50 + 4 + 1,
        files=1,
        written=1,
        images=150,
        left=0,
        rows={"ok": 150},
        masks=sum(row["num_masks"] for row in read_shards(sound)),
    )


def test_row_groups_are_as_the_writer_makes_them(sound: Path, tmp_path: Path) -> None:
    clean(sound, tmp_path / "new")
    with pq.ParquetFile(tmp_path / "new" / "data" / "part-000000.parquet") as file:
        groups = [file.metadata.row_group(n) for n in range(file.num_row_groups)]
    assert [group.num_rows for group in groups] == [100, 50] == [ROWS_PER_GROUP, 50]
    assert all(group.total_byte_size < BYTES_PER_GROUP for group in groups)


def test_files_are_as_large_as_the_target_and_the_plan_says_what_is_in_which(sound: Path, tmp_path: Path) -> None:
    whole = sum(path.stat().st_size for path in sound.rglob("part-*.parquet"))
    done = clean(sound, tmp_path / "new", whole // 5)
    sizes = [path.stat().st_size for path in (tmp_path / "new" / "data").iterdir()]
    assert 5 <= done.files == len(sizes) <= 7
    assert max(sizes) <= whole // 5
    plan = plan_of(tmp_path / "new")
    assert plan.n_shards == done.files
    for shard in plan.shards():
        rows = list(read_shards(tmp_path / "new" / shard.path, columns=["image_id", "key"]))
        assert [(row["image_id"], row["key"]) for row in rows] == [(ref.row, ref.key) for ref in shard.refs]
    assert plan.fingerprint == plan_of(sound).fingerprint
    assert kinds(tmp_path / "new") == []
    before, after = (footer(folder / "data" / "part-000001.parquet") for folder in (sound, tmp_path / "new"))
    changed = {key for key in before if before[key] != after[key]}
    assert changed <= {"sam_amg.stats", "sam_amg.code_version", "sam_amg.created"}


def test_a_target_below_the_smallest_shard_leaves_shards_as_they_are(sound: Path, tmp_path: Path) -> None:
    assert clean(sound, tmp_path / "new", 1).files == 50
    assert plan_of(tmp_path / "new").images_by_shard() == plan_of(sound).images_by_shard()


def test_every_command_reads_a_compacted_output(sound: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    clean(sound, new, 60_000)
    state = job_status(str(new))
    assert (state.planned, state.done, state.left, state.rows, state.retries) == (150, 150, 0, {"ok": 150}, ())
    assert state.images_per_second is None  # nothing was labeled here
    assert state.masks == job_status(str(sound)).masks
    assert list(failed_images(str(new))) == []
    assert export_shards(str(new), to="coco", out=str(tmp_path / "coco.json")).images == 150
    assert write_review(new, limit=1).rows == {"ok": 150}


def test_a_compacted_output_grows_as_any_other(sound: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    clean(sound, new, 40_000)
    plan = plan_of(new)
    refs = [ImageRef(n, key, f"/photos/{key}", None, 10, "tag") for n, key in enumerate([*KEYS, "new.png"])]
    grown = grow(open_store(new), plan, refs, [Skipped("x", "no image")], images_per_shard=3)
    assert (grown.n_images, grown.n_shards) == (151, plan.n_shards + 1)
    assert kinds(new) == ["missing"]


def test_manifests_are_cut_between_shards(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regroup, "ROWS_PER_MANIFEST", 40)
    monkeypatch.setattr(regroup, "ROWS_PER_GROUP", 16)
    grouped = tmp_path / "grouped"
    clean(sound, grouped, 40_000)
    sizes = plan_of(grouped).images_by_shard()
    clean(grouped, tmp_path / "new", 1)
    manifests = sorted((tmp_path / "new" / "_plan").glob("manifest-*.parquet"))
    assert len(manifests) > 2
    shards = [set(pq.read_table(path)["shard"].to_pylist()) for path in manifests]
    assert sum(map(len, shards)) == len(set.union(*shards)) == len(sizes)
    assert plan_of(tmp_path / "new").images_by_shard() == sizes
    assert kinds(tmp_path / "new") == []


def test_what_the_listings_left_out_is_kept(tmp_path: Path) -> None:
    make_output(tmp_path / "out", KEYS[:3])
    store = open_store(tmp_path / "out")
    refs = [ImageRef(n, key, f"/photos/{key}", None, 10, "tag") for n, key in enumerate(KEYS[:4])]
    grow(store, plan_of(tmp_path / "out"), refs, [Skipped("b.txt", "not an image")], images_per_shard=2)
    clean(tmp_path / "out", tmp_path / "new", partial=True)
    skipped = pq.read_table(tmp_path / "new" / "_plan" / "skipped-00000.parquet").to_pylist()
    assert skipped == [{"path": "b.txt", "reason": "not an image"}]


def test_an_unfinished_output_is_refused_with_what_is_missing(out: Path, tmp_path: Path) -> None:
    (out / "data" / "part-000007.parquet").unlink()
    (out / "retries" / "g1" / "data" / "part-000002.parquet").unlink()
    with pytest.raises(UnfinishedError) as refused:
        clean(out, tmp_path / "new")
    assert "3 of its 150 images have no row yet: finish `sam-amg run`" in str(refused.value)
    assert f"retry g1 has 4 images left: finish `sam-amg retry {out} --status missing`" in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_partial_takes_what_is_there_and_leaves_the_rest_to_be_done(out: Path, sound: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    for number in (7, 8, 49):
        (out / "data" / f"part-{number:06d}.parquet").unlink()
    (out / "retries" / "g1" / "data" / "part-000002.parquet").unlink()
    done = clean(out, new, partial=True)
    assert (done.images, done.left, done.files) == (141, 9, 2)
    assert list(read_shards(new)) == list(read_shards(out))
    assert plan_of(new).images_by_shard() == {0: 21, 1: 3, 2: 3, 3: 120, 4: 3}
    assert kinds(new) == ["missing", "missing"]  # 1 and 2, and 4: a run on it labels them
    assert job_status(str(new)).rows == {"ok": 137, "missing": 4}
    assert clean(out, new, partial=True).written == 0


class Killed(BaseException):
    pass


@pytest.mark.parametrize("writes", [1, 2, 4, 5, 7])
def test_a_compaction_that_was_killed_goes_on(
    sound: Path, tmp_path: Path, writes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes the note, what was skipped, the manifest, the plan and four shards."""
    new, create, left = tmp_path / "new", LocalStore.create_if_absent, [writes]
    target = sum(path.stat().st_size for path in sound.rglob("part-*.parquet")) // 3

    def dies(self: LocalStore, path: str, data: bytes) -> bool:
        left[0] -= 1
        if not left[0]:
            raise Killed
        return create(self, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "create_if_absent", dies)
        with pytest.raises(Killed):
            clean(sound, new, target)
    encoded: list[int] = []
    encode = compaction.writer.encode
    monkeypatch.setattr(compaction.writer, "encode", lambda *given: [encoded.append(1), encode(*given)][1])
    done = clean(sound, new, target)
    assert (done.files, done.written) == (4, len(encoded)) == (4, 4 - max(0, writes - 5))
    assert len(files(new)) == 4 + 4
    assert list(read_shards(new)) == list(read_shards(sound))
    assert kinds(new) == []


def test_a_compaction_that_was_begun_from_another_state_is_refused(out: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    clean(out, new, 50_000)
    with pytest.raises(OutputRefused, match=r"was begun with --target-mb 0\.05, its files"):
        clean(out, new, 60_000)
    (out / "retries" / "g1" / "data" / "part-000002.parquet").unlink()
    with pytest.raises(OutputRefused, match="was begun from another state of"):
        clean(out, new, 50_000, partial=True)


def test_only_an_empty_folder_or_its_own_is_written_to(sound: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputRefused, match=r"holds _plan/manifest-00000\.parquet, which is of no compaction"):
        clean(sound, out)
    with pytest.raises(OutputRefused, match="of no compaction"):
        clean(out, out)
    clean(sound, tmp_path / "new")
    with pytest.raises(OutputRefused, match="was begun from another state"):
        clean(tmp_path / "new", tmp_path / "new")
    with pytest.raises(StorageError, match="no job in"):
        clean(tmp_path / "nothing", tmp_path / "newer")
    (tmp_path / "new" / "_plan" / "compacted.json").write_text("[]")
    with pytest.raises(FormatError, match=r"compacted\.json is not what this program writes"):
        clean(sound, tmp_path / "new")


def test_damage_ends_a_compaction_and_names_the_file(out: Path, tmp_path: Path) -> None:
    part = out / "data" / "part-000005.parquet"
    kept = part.read_bytes()
    part.write_bytes(kept[:100])
    with pytest.raises(FormatError, match=r"data/part-000005\.parquet is not a whole Parquet file"):
        clean(out, tmp_path / "new")
    shutil.copy(out / "data" / "part-000004.parquet", part)
    with pytest.raises(FormatError, match="do not have the images 0 to 149 once each and in order"):
        clean(out, tmp_path / "newer")
    assert not (tmp_path / "newer" / "data").exists()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sam-amg", *arguments])
    return main()


def test_the_command_says_what_it_made(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    new = str(tmp_path / "new")
    assert call(monkeypatch, "compact", str(out), "--out", new, "--target-mb", "0.05") == 0
    said = capsys.readouterr().out
    assert said.startswith("150 images (150 ok), ")
    assert f"  55 files became {len(list((tmp_path / 'new' / 'data').iterdir()))} in {new}/data\n" in said
    assert call(monkeypatch, "compact", str(out), "--out", new, "--target-mb", "0.05", "--json") == 0
    assert json.loads(capsys.readouterr().out)["written"] == 0
    assert call(monkeypatch, "compact", str(out), "--out", new) == 2
    assert call(monkeypatch, "verify", new) == 0
    (out / "data" / "part-000000.parquet").unlink()
    assert call(monkeypatch, "compact", str(out), "--out", new) == 1
    assert "3 of its 150 images have no row yet" in capsys.readouterr().err
