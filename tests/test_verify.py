"""An output with one planted fault at a time, and what verify says of it."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from amg.cli.main import main
from amg.config import GenerateSettings
from amg.errors import StorageError
from amg.generate import generate_masks
from amg.geometry import Size
from amg.run.verify import verify_output
from amg.shards.verify import Finding
from amg.values import Image, ImageRef, MaskSet
from tests.fakes import RoughSam
from tests.outputs import make_output, rewrite

KEYS = ["a.png", "b.png", "c/a.png", "c/b.png", "d.png", "e.png", "f.png"]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound") / "out"
    make_output(folder, KEYS)
    return folder


@pytest.fixture
def out(sound: Path, tmp_path: Path) -> Path:
    """Four shards: images 0 1, 2 3, 4 5, 6; image 3 is a failure, 2 and 4 have masks 0 without a pixel, 1 of all."""
    return Path(shutil.copytree(sound, tmp_path / "out"))


def findings(folder: Path) -> list[Finding]:
    found: list[Finding] = []
    assert verify_output(str(folder), found=found.append).findings == len(found)
    return found


def only(folder: Path, kind: str) -> Finding:
    """The finding of this kind; there is no other kind."""
    found = findings(folder)
    assert [each.kind for each in found] == [kind], "\n".join(map(str, found))
    return found[0]


def shard(folder: Path, number: int) -> Path:
    return folder / "data" / f"part-{number:06d}.parquet"


def annotation(rows: list[dict[str, Any]], row: int = 0, mask: int = 2) -> dict[str, Any]:
    return rows[row]["annotations"][mask]


@pytest.mark.parametrize("style", ["exact", "sa1b"])
def test_a_sound_output_has_no_findings(tmp_path: Path, style: str) -> None:
    make_output(tmp_path / "out", KEYS, output__bbox_style=style)
    found: list[Finding] = []
    verified = verify_output(str(tmp_path / "out"), found=found.append)
    assert found == []
    assert (verified.shards, verified.rows, verified.masks, verified.findings) == (4, 7, 12, 0)


@pytest.mark.parametrize("style", ["exact", "sa1b"])
def test_masks_of_the_generator_are_sound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: str) -> None:
    def label(ref: ImageRef) -> MaskSet:
        pixels = np.zeros((30 + 40 * ref.row, 90, 3), np.uint8)
        image = Image(ref, pixels, Size(*pixels.shape[:2]))
        (masks,) = generate_masks(iter([image]), RoughSam().as_sam(), settings)
        assert isinstance(masks, MaskSet)
        assert len(masks)
        return masks

    settings = GenerateSettings(points_per_side=4, crop_n_layers=1, min_mask_region_area=20)
    monkeypatch.setattr("tests.outputs.result", label)
    make_output(tmp_path / "out", KEYS, output__bbox_style=style)
    assert findings(tmp_path / "out") == []


def test_rewriting_a_shard_is_no_fault(out: Path) -> None:
    rewrite(shard(out, 1))
    assert findings(out) == []


def test_missing_shards_are_one_line_a_stretch(out: Path) -> None:
    shard(out, 0).unlink()
    shard(out, 2).unlink()
    shard(out, 3).unlink()
    found = findings(out)
    assert [each.where for each in found] == [
        "data/part-000000.parquet",
        "data/part-000002.parquet to data/part-000003.parquet",
    ]
    assert all("run the same command again" in str(each) for each in found)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_shard(out: Path, share: float) -> None:
    whole = shard(out, 1).read_bytes()
    shard(out, 1).write_bytes(whole[: int(len(whole) * share)])
    assert "made anew" in str(only(out, "damaged"))


def test_a_flipped_byte_on_the_disk_wherever_data_lies(out: Path) -> None:
    whole = shard(out, 1).read_bytes()
    column = pq.ParquetFile(shard(out, 1)).metadata.row_group(0)
    places = np.random.default_rng(0).integers(0, 1 << 20, 2 * column.num_columns)
    for n in range(column.num_columns):
        chunk = column.column(n)
        start = chunk.dictionary_page_offset or chunk.data_page_offset
        end = start + chunk.total_compressed_size
        for place in (end - 1, end - 1 - int(places[n]) % min(8, end - start - 30)):
            damaged = bytearray(whole)
            damaged[place] ^= 0x10
            shard(out, 1).write_bytes(damaged)
            assert "damaged" in [each.kind for each in findings(out)], (chunk.path_in_schema, place - start)


@pytest.mark.parametrize("place", range(6))
def test_a_flipped_byte_in_a_run_length_string(out: Path, place: int) -> None:
    def flip(rows: list[dict[str, Any]]) -> None:
        text = annotation(rows)["segmentation"]["counts"]
        annotation(rows)["segmentation"]["counts"] = text[:place] + chr(ord(text[place]) ^ 1) + text[place + 1 :]

    rewrite(shard(out, 2), rows=flip)
    found = findings(out)
    assert {each.where for each in found} == {"data/part-000002.parquet: image 4 (d.png), mask 2"}
    assert {each.kind for each in found} <= {"run_lengths", "area", "bbox"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("zzzz", "not a COCO run-length string"),
        ("", "not a COCO run-length string"),
        ("`", "cut off inside a number"),
        ("`9", "cover 304 pixels"),
    ],
)
def test_a_string_that_is_none_or_covers_something_else(out: Path, text: str, why: str) -> None:
    rewrite(shard(out, 2), rows=lambda rows: annotation(rows)["segmentation"].update(counts=text))
    finding = only(out, "run_lengths")
    assert why in finding.came
    assert "1200 pixels" in finding.wanted


def test_a_wrong_area(out: Path) -> None:
    rewrite(shard(out, 2), rows=lambda rows: annotation(rows, mask=1).update(area=1199))
    finding = only(out, "area")
    assert str(finding) == (
        "data/part-000002.parquet: image 4 (d.png), mask 1: area 1199, wanted 1200; "
        "remove the file and run the same command again: it is made anew"
    )


def test_a_wrong_box_and_boxes_of_the_other_style(out: Path) -> None:
    rewrite(shard(out, 2), rows=lambda rows: annotation(rows, mask=1).update(bbox=[0, 0, 39, 29]))
    assert "bbox [0.0, 0.0, 39.0, 29.0], wanted [0, 0, 40, 30] (bbox_style exact)" in str(only(out, "bbox"))


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("id", {"id": 7}),
        ("size", {"segmentation": {"size": [40, 30], "counts": "P15"}}),
    ],
)
def test_wrong_ids_and_sizes(out: Path, kind: str, change: dict[str, Any]) -> None:
    rewrite(shard(out, 2), rows=lambda rows: annotation(rows, mask=1).update(change))
    assert kind in [each.kind for each in findings(out)]


def test_wrong_counts_of_masks(out: Path) -> None:
    rewrite(shard(out, 2), rows=lambda rows: rows[0].update(num_masks=3))
    assert "num_masks is 3, wanted 4" in str(only(out, "num_masks"))
    rewrite(shard(out, 2), rows=lambda rows: (rows[0].update(num_masks=4), rows[0]["funnel"].update(kept=9)))
    assert "funnel.kept is 9, wanted 4" in str(only(out, "funnel"))


def test_a_row_too_few(out: Path) -> None:
    rewrite(shard(out, 1), rows=lambda rows: rows.pop())
    found = {each.kind: str(each) for each in findings(out)}
    assert set(found) == {"row_count", "rows", "stats"}
    assert "1 rows, wanted 2" in found["row_count"]
    assert "no row, wanted image 3 (c/b.png)" in found["rows"]


def test_a_duplicated_row_in_a_shard_and_one_of_another_shard(out: Path) -> None:
    rewrite(shard(out, 1), rows=lambda rows: rows.insert(1, dict(rows[0])))
    found = {each.kind: str(each) for each in findings(out)}
    assert {"row_count", "duplicate", "rows"} <= set(found)
    assert "image 2 in 2 rows, wanted one" in found["duplicate"]
    foreign = pq.read_table(shard(out, 0)).to_pylist()[0]
    rewrite(shard(out, 1), rows=lambda rows: rows.__setitem__(slice(None), [foreign, rows[2]]))
    found = {each.kind: str(each) for each in findings(out)}
    assert "image 0 (a.png), wanted image 2 (c/a.png)" in found["rows"]


def test_swapped_rows_and_a_changed_key(out: Path) -> None:
    rewrite(shard(out, 0), rows=lambda rows: rows.reverse())
    rewrite(shard(out, 2), rows=lambda rows: rows[0].update(key="x.png"))
    assert [each.kind for each in findings(out)] == ["rows", "rows"]


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("fingerprint", "sam_amg.plan", "f" * 64),
        ("shard_number", "sam_amg.shard", "7"),
        ("weights", "sam_amg.model_sha256", "e" * 64),
        ("schema_version", "sam_amg.schema_version", "99"),
        ("settings", "sam_amg.config", "{"),
        ("settings", "sam_amg.config", json.dumps({"generate.points_per_side": 4, "output.bbox_style": "exact"})),
        ("huggingface", "huggingface", "{}"),
        ("stats", "sam_amg.stats", '{"rows": {"ok": 2}, "masks": 1}'),
        ("stats", "sam_amg.stats", "nothing"),
    ],
)
def test_a_footer_that_says_something_else(out: Path, kind: str, key: str, value: str) -> None:
    rewrite(shard(out, 1), footer=lambda footer: footer.update({key: value}))
    assert only(out, kind).where == "data/part-000001.parquet"
    rewrite(shard(out, 1), footer=lambda footer: footer.pop(key))
    assert kind in [each.kind for each in findings(out)]


def test_a_shard_of_another_job_under_the_right_name(out: Path, tmp_path: Path) -> None:
    make_output(tmp_path / "other", KEYS, generate__points_per_side=4)
    shutil.copy(shard(tmp_path / "other", 1), shard(out, 1))
    assert {each.kind for each in findings(out)} == {"fingerprint", "settings"}


def test_columns_that_are_missing_or_of_another_type(out: Path) -> None:
    table = pq.read_table(shard(out, 1))
    sink = io.BytesIO()
    pq.write_table(table.drop_columns(["uri", "error"]), sink)
    shard(out, 1).write_bytes(sink.getvalue())
    found = findings(out)
    assert [each.came for each in found if each.kind == "columns"] == ["no column uri", "no column error"]


def test_a_failure_with_masks_and_a_status_nobody_knows(out: Path) -> None:
    rewrite(shard(out, 1), rows=lambda rows: rows[1].update(error=None))
    assert "error None" in only(out, "failure").came
    rewrite(shard(out, 1), rows=lambda rows: rows[1].update(error="x", status="lost"))
    assert "status 'lost'" in next(each for each in findings(out) if each.kind == "status").came


def test_files_that_nobody_planned(out: Path) -> None:
    shutil.copy(shard(out, 0), shard(out, 9))
    shutil.copy(shard(out, 0), out / "data" / "part-0000001.parquet")
    (out / "data" / "notes.txt").write_text("mine")
    (out / "_tmp" / "abc.inprogress").write_bytes(b"half")
    found = findings(out)
    assert [(each.kind, each.where) for each in found] == [
        ("stray", "data/notes.txt"),
        ("stray", "data/part-0000001.parquet"),
        ("stray", "data/part-000009.parquet"),
        ("leftover", "_tmp/abc.inprogress"),
    ]


def test_many_faults_of_a_kind_are_counted(out: Path) -> None:
    def short(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            for each in row["annotations"] or []:
                each["area"] += 1

    rewrite(shard(out, 2), rows=short)
    found = findings(out)
    assert len(found) == 4
    assert "6 more faults of this kind (area)" in str(found[-1])


def test_no_plan_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"wanted _plan/plan\.json"):
        findings(tmp_path)


def test_the_command_prints_findings_and_exits_with_1(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["sam-amg", "verify", str(out), *options])
        return main(), capsys.readouterr().out

    status, text = call()
    assert (status, text) == (0, f"{out}: 4 shards, 7 images, 12 masks: no fault\n")
    shard(out, 1).unlink()
    status, text = call()
    assert status == 1
    assert "data/part-000001.parquet: no file, wanted a shard, as planned" in text
    assert call("--quiet") == (1, "")
    status, text = call("--json")
    assert status == 1
    assert [each["kind"] for each in json.loads(text)["findings"]] == ["missing"]
