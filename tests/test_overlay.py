"""Retries laid over shards, by everything that reads an output. No model: rows are planted."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from amg.errors import FormatError
from amg.export.formats import export_shards
from amg.review.view import write_review
from amg.run.status import RetryStatus, failed_images, job_status
from amg.run.verify import Verified, verify_output
from amg.shards import overlay
from amg.shards.overlay import read_overlay
from amg.shards.reader import read_shards, read_table, snapshot
from amg.shards.verify import Finding
from amg.storage.local import LocalStore
from amg.storage.url import open_store
from amg.storage.within import Within
from amg.values import Failure, ImageRef, MaskSet, Status
from tests.outputs import make_output, mask_set, retry_output

KEYS = [f"{n:02d}.png" for n in range(40)]
"""3, 13, 23, 33 are decode errors, 8, 18, 28, 38 missing; three in a shard."""


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "out"
    make_output(folder, KEYS, images_per_shard=3)
    return folder


@pytest.fixture
def out(first: Path, tmp_path: Path) -> Path:
    """What was missing was tried again: 8 and 28 have masks now, 18 and 38 are strange; then 38 got masks as well."""
    folder = Path(shutil.copytree(first, tmp_path / "out"))
    retry_output(folder, ["missing"], images_per_shard=3, become=lambda ref: _some(ref, strange=(18, 38)))
    retry_output(folder, ["unsupported"], images_per_shard=3, become=lambda ref: _some(ref, strange=(18,)))
    return folder


def _some(ref: ImageRef, strange: tuple[int, ...]) -> MaskSet | Failure:
    return Failure(ref, Status.UNSUPPORTED, "it is strange") if ref.row in strange else mask_set(ref, 4)


def statuses(folder: Path) -> dict[int, str]:
    return {row["image_id"]: row["status"] for row in read_shards(folder, columns=("image_id", "status"))}


def findings(folder: Path) -> list[Finding]:
    found: list[Finding] = []
    verify_output(str(folder), found=found.append)
    return found


def test_every_image_comes_once_in_order_with_its_newest_row(first: Path, out: Path) -> None:
    before, after = list(read_shards(first)), list(read_shards(out))
    assert [row["image_id"] for row in after] == list(range(40))
    changed = {row["image_id"]: row for row, old in zip(after, before, strict=True) if row != old}
    assert {n: row["status"] for n, row in changed.items()} == {8: "ok", 18: "unsupported", 28: "ok", 38: "ok"}
    assert all(len(row["annotations"]) == 4 for row in changed.values() if row["status"] == "ok")


def test_columns_are_those_asked_for_whatever_is_laid_over(out: Path) -> None:
    assert [set(row) for row in read_shards(out, columns=["key"])] == [{"key"}] * 40
    assert next(read_shards(out, columns=["num_masks", "image_id"])) == {"image_id": 0, "num_masks": 0}
    areas = read_table(out, columns=["annotations.list.element.area"])
    assert areas.column_names == ["annotations"]
    assert [len(row or []) for row in areas["annotations"].to_pylist()] == [
        row["num_masks"] or 0 for row in read_shards(out)
    ]


def test_a_table_has_the_rows_of_the_stream(out: Path) -> None:
    assert read_table(out).to_pylist() == list(read_shards(out))


def test_the_data_folder_and_a_single_shard_have_the_first_rows(first: Path, out: Path) -> None:
    assert list(read_shards(out / "data")) == list(read_shards(first))
    (row,) = (row for row in read_shards(out / "data" / "part-000002.parquet") if row["image_id"] == 8)
    assert row["status"] == "missing"
    generation = list(read_shards(out / "retries" / "g1"))
    assert [row["image_id"] for row in generation] == [8, 18, 28, 38]


def test_only_a_few_rows_of_a_retry_are_in_memory(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    batches = overlay.shard_file.batches

    def noted(store: LocalStore, path: str, *arguments: object, **named: object) -> Iterator[object]:
        read.append(path)
        return batches(store, path, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(overlay.shard_file, "batches", noted)
    assert len(list(read_shards(out))) == 40
    of_retries = [path for path in read if path.startswith("retries/")]
    assert of_retries == ["retries/g1/data/part-000000.parquet", "retries/g2/data/part-000000.parquet"]


def test_rows_of_a_retry_in_any_order_are_found(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS, images_per_shard=40)
    generation = retry_output(tmp_path, ["missing", "decode_error"], images_per_shard=8)
    path = "retries/g1/data/part-000000.parquet"
    content = read_table(tmp_path / path)
    shuffled = content.take(np.array([5, 2, 7, 0, 1, 6, 3, 4]))
    (tmp_path / path).unlink()
    from amg.shards.writer import to_bytes

    generation.store.create_if_absent("data/part-000000.parquet", to_bytes(shuffled, {}))
    assert set(statuses(tmp_path).values()) == {"ok"}
    assert list(statuses(tmp_path)) == list(range(40))


def test_what_a_retry_has_not_yet_committed_has_its_old_row(first: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(first, tmp_path / "out"))
    retry_output(folder, ["missing"], shards=range(1, 3))
    assert {n: statuses(folder)[n] for n in (8, 18, 28, 38)} == {8: "missing", 18: "ok", 28: "ok", 38: "missing"}
    assert job_status(str(folder)).retries == (RetryStatus(1, ("missing",), 4, 2),)


def test_a_retry_of_what_is_not_there_yet_waits_for_it(out: Path) -> None:
    (out / "data" / "part-000002.parquet").unlink()
    assert 8 not in statuses(out)
    state = job_status(str(out))
    assert (state.done, state.left) == (37, 3)
    assert state.rows == {"ok": 32, "decode_error": 4, "unsupported": 1}


def test_status_counts_newest_rows(first: Path, out: Path) -> None:
    before, after = job_status(str(first)), job_status(str(out))
    assert before.rows == {"ok": 32, "decode_error": 4, "missing": 4}
    assert after.rows == {"ok": 35, "decode_error": 4, "unsupported": 1}
    assert after.masks == before.masks + 3 * 4 == sum(row["num_masks"] or 0 for row in read_shards(out))
    assert (after.done, after.left, after.shards_done) == (40, 0, 14)
    assert after.retries == (RetryStatus(1, ("missing",), 4, 4), RetryStatus(2, ("unsupported",), 2, 2))
    assert json.loads(after.to_json())["retries"][1] == {
        "generation": 2, "statuses": ["unsupported"], "images": 2, "done": 2
    }  # fmt: skip


def test_failures_are_those_of_newest_rows(out: Path) -> None:
    assert [lost.key for lost in failed_images(str(out))] == ["03.png", "13.png", "18.png", "23.png", "33.png"]
    (lost,) = failed_images(str(out), ["unsupported"])
    assert (lost.key, lost.reason) == ("18.png", "it is strange")


def test_export_and_review_take_newest_rows(out: Path, tmp_path: Path) -> None:
    exported = export_shards(str(out), to="coco", out=str(tmp_path / "coco.json"))
    assert (exported.images, exported.left_out) == (35, {"decode_error": 4, "unsupported": 1})
    names = [image["file_name"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]]
    assert "38.png" in names
    assert write_review(out, limit=1).rows == {"ok": 35, "decode_error": 4, "unsupported": 1}


def test_duckdb_lays_retries_over_shards_as_the_format_says(out: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "format.md").read_text()
    (query,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    rows = duckdb.sql(query.replace("annotations/", f"{out}/")).fetchall()
    assert [(key, status) for key, status, _ in rows] == [(row["key"], row["status"]) for row in read_shards(out)]


def test_a_damaged_retry_is_said(out: Path) -> None:
    part = out / "retries" / "g2" / "data" / "part-000000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    with pytest.raises(FormatError, match=r"retries/g2/data/part-000000.parquet is not a whole Parquet file"):
        list(read_shards(out))
    state = job_status(str(out))
    assert state.rows["unsupported"] == 2
    assert "retries/g2/data/part-000000.parquet" in state.damaged[0]
    assert [each.kind for each in findings(out)] == ["damaged"]


def test_verify_looks_at_retries(out: Path) -> None:
    assert findings(out) == []
    folders = [out / "data", out / "retries" / "g1", out / "retries" / "g2"]
    masks = sum(row["num_masks"] or 0 for folder in folders for row in read_shards(folder))
    assert verify_output(str(out), found=print) == Verified(14, 40, masks, 0, retried=6)


def test_verify_names_what_is_wrong_among_retries(out: Path, first: Path, tmp_path: Path) -> None:
    g1, g2 = out / "retries" / "g1", out / "retries" / "g2"
    (g2 / "data" / "part-000000.parquet").unlink()
    (g1 / "data" / "part-000007.parquet").write_bytes(b"x")
    (g1 / "notes.txt").write_text("x")
    (out / "retries" / "g9" / "data").mkdir(parents=True)
    shutil.copy(first / "data" / "part-000000.parquet", out / "retries" / "g9" / "data")
    found = {(each.kind, each.where) for each in findings(out)}
    assert found == {
        ("missing", "retries/g2/data/part-000000.parquet"),
        ("stray", "retries/g1/data/part-000007.parquet"),
        ("stray", "retries/g1/notes.txt"),
        ("stray", "retries/g9/data/part-000000.parquet"),
    }
    (missing,) = (each for each in findings(out) if each.kind == "missing")
    assert "sam-amg retry` with --status unsupported again" in missing.advice


def test_verify_holds_rows_of_retries_against_their_plan(out: Path, first: Path) -> None:
    shutil.copy(first / "data" / "part-000000.parquet", out / "retries" / "g1" / "data" / "part-000000.parquet")
    assert {each.kind for each in findings(out)} == {"rows"}
    shutil.copy(out / "retries" / "g2" / "plan.parquet", out / "retries" / "g1" / "plan.parquet")
    assert "rows" in {each.kind for each in findings(out)}


def test_verify_names_the_plan_of_a_retry_that_is_another_jobs(out: Path, tmp_path: Path) -> None:
    make_output(tmp_path / "other", KEYS, images_per_shard=3, generate__points_per_side=4)
    retry_output(tmp_path / "other", ["missing"])
    shutil.copy(tmp_path / "other" / "retries" / "g1" / "plan.parquet", out / "retries" / "g1" / "plan.parquet")
    (finding,) = findings(out)
    assert (finding.kind, finding.where) == ("retry_plan", "retries/g1")
    assert "belongs to another job" in finding.came
    (out / "retries" / "g1" / "plan.parquet").write_bytes(b"no plan")
    (finding,) = findings(out)
    assert "is not the plan of a retry" in finding.came


def test_images_are_looked_up_by_their_id(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS, images_per_shard=40)
    retry_output(tmp_path, ["missing"], images_per_shard=8)
    found = read_overlay(open_store(tmp_path))
    assert found.find(np.array([7, 8, 9, 38, 1000])).tolist() == [-1, 0, -1, 3, -1]
    assert read_overlay(open_store(tmp_path / "nothing")).find(np.array([1])).tolist() == [-1]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS[:2], images_per_shard=1)
    (tmp_path / "data" / "part-000001.parquet").rename(tmp_path / "data" / "part-1000000.parquet")
    (tmp_path / "data" / "part-000000.parquet").rename(tmp_path / "data" / "part-999999.parquet")
    assert snapshot(tmp_path).paths == ("data/part-999999.parquet", "data/part-1000000.parquet")
    assert list(statuses(tmp_path)) == [0, 1]


def test_a_folder_of_a_store_is_a_store(tmp_path: Path) -> None:
    outer = open_store(tmp_path, create=True)
    inner = Within(outer, "a/b")
    assert list(inner.list()) == []
    assert inner.create_if_absent("c/d", b"1")
    assert not inner.create_if_absent("c/d", b"2")
    assert outer.read("a/b/c/d") == inner.read("c/d") == b"1"
    assert inner.exists("c/d")
    assert not inner.exists("a/b/c/d")
    assert [entry.path for entry in inner.list()] == [entry.path for entry in inner.list("c")] == ["c/d"]
    with inner.open("c/d") as stream:
        assert stream.read() == b"1"
    (tmp_path / "_tmp" / "x.inprogress").write_bytes(b"")
    assert inner.sweep() == 1
    assert inner.url.endswith("/a/b")
