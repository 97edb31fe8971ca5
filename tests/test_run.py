"""A whole job with a stand-in for the network: what lies in the output, and what a second run does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.parquet as pq
import pytest

import amg
from amg.config import Config, load_config
from amg.errors import FormatError, OutputRefused, SourceError, StorageError
from amg.masks import grid
from amg.run import local, plan
from amg.run.local import run_local
from amg.run.progress import Silent, Summary
from amg.shards import reader
from amg.values import Failure, MaskSet
from tests.fakes import DiscSam, label_with


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (40, 60)), ("b.jpg", (64, 64)), ("deep/a.png", (1, 1)), ("z.webp", (30, 90))):
        PIL.Image.fromarray(rng.integers(0, 255, (*size, 3), np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and no more")
    (folder / "notes.txt").write_text("not an image")
    return folder


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DiscSam:
    sam = DiscSam(radius=200)
    label_with(sam, monkeypatch, tmp_path)
    return sam


def config(**settings: object) -> Config:
    named = {"generate.points_per_side": 2, "run.threads": 1, "run.device": "cpu", "shards.images_per_shard": 2}
    return load_config(overrides=named | {name.replace("__", "."): value for name, value in settings.items()})


def job(photos: Path, out: Path, observer: object = None, **settings: object) -> Summary:
    return run_local([str(photos)], str(out), config(**settings), observer=observer or Silent())  # type: ignore[arg-type]


def rows(out: Path) -> list[dict]:
    timeless = []
    for row in reader.read_shards(out):
        row.pop("timings_ms")
        timeless.append(row)
    return timeless


def test_every_image_has_one_row_in_plan_order(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    summary = job(photos, out)
    found = rows(out)
    assert [r["image_id"] for r in found] == list(range(5))
    assert [r["key"] for r in found] == ["a.png", "b.jpg", "broken.jpg", "deep/a.png", "z.webp"]
    assert [r["status"] for r in found] == ["ok", "ok", "decode_error", "ok", "ok"]
    assert found[2]["annotations"] is None
    assert found[2]["error"]
    assert sorted(p.name for p in (out / "data").iterdir()) == [f"part-{n:06d}.parquet" for n in range(3)]
    assert summary.rows == {"ok": 4, "decode_error": 1}
    assert summary.masks == sum(r["num_masks"] for r in found if r["num_masks"])
    assert summary.failures[0][:2] == ("broken.jpg", "decode_error")
    skipped = pq.read_table(out / "_plan" / "skipped-00000.parquet").to_pylist()
    assert [s["path"] for s in skipped] == ["notes.txt"]


def test_the_masks_are_those_of_the_api(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    job(photos, tmp_path / "out")
    image = PIL.Image.open(photos / "b.jpg")
    masks = amg.generate_masks(image, fake.as_sam(), points_per_side=2)
    (row,) = [r for r in rows(tmp_path / "out") if r["key"] == "b.jpg"]
    assert [a["segmentation"]["counts"] for a in row["annotations"]] == [
        r["segmentation"]["counts"] for r in masks.to_dicts()
    ]
    assert [list(a["bbox"]) for a in row["annotations"]] == [
        list(r["bbox"]) for r in masks.to_dicts(bbox_style="exact")
    ]
    assert row["funnel"]["kept"] == row["num_masks"] == len(masks)


def test_a_second_run_does_nothing_and_a_lost_shard_is_made_again(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out)
    first, before = rows(out), {p.name: p.read_bytes() for p in (out / "data").iterdir()}
    fake.calls.clear()
    summary = job(photos, out)
    assert (summary.already_done, summary.shards_written, fake.calls) == (5, 0, [])
    assert {p.name: p.read_bytes() for p in (out / "data").iterdir()} == before
    (out / "data" / "part-000001.parquet").unlink()
    summary = job(photos, out)
    assert (summary.already_done, summary.shards_written) == (3, 1)
    assert rows(out) == first


def test_new_files_are_appended_and_old_rows_stay(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out)
    before = rows(out)
    PIL.Image.new("RGB", (20, 20)).save(photos / "b-new.png")
    summary = job(photos, out)
    assert (summary.planned, summary.already_done, summary.shards_written) == (6, 5, 1)
    assert rows(out)[:5] == before
    assert rows(out)[5]["key"] == "b-new.png"
    assert rows(out)[5]["image_id"] == 5


def test_files_that_changed_or_went_are_said_and_left_as_they_are(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    class Listener(Silent):
        def __init__(self) -> None:
            self.notes: list[str] = []

        def note(self, text: str) -> None:
            self.notes.append(text)

    out, listener = tmp_path / "out", Listener()
    job(photos, out, observer=listener)
    before = rows(out)
    assert listener.notes == []
    PIL.Image.new("RGB", (33, 44)).save(photos / "a.png")
    (photos / "z.webp").unlink()
    job(photos, out, observer=listener)
    assert rows(out) == before
    said = " ".join(listener.notes)
    assert "a.png" in said
    assert "z.webp" in said


def test_a_limit_plans_the_first_and_a_run_without_it_goes_on(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    summary = run_local([str(photos)], str(out), config(), limit=2, observer=Silent())
    assert (summary.planned, summary.shards_written) == (2, 1)
    assert job(photos, out).planned == 5
    assert [r["key"] for r in rows(out)] == ["a.png", "b.jpg", "broken.jpg", "deep/a.png", "z.webp"]


def test_other_settings_are_refused_by_name_with_both_values(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out)
    with pytest.raises(OutputRefused) as refused:
        job(photos, out, generate__points_per_side=3, output__bbox_style="sa1b")
    text = str(refused.value)
    assert "generate.points_per_side: there 2, now 3" in text
    assert "output.bbox_style: there 'exact', now 'sa1b'" in text
    assert text.count("\n") == 2
    assert refused.value.exit_status == 2
    assert job(photos, out, run__decode_threads=1, shards__images_per_shard=1).shards_written == 0


def test_what_was_left_to_the_machine_is_taken_from_the_plan(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out, run__threads=1, generate__points_per_batch=3)
    (out / "data" / "part-000000.parquet").unlink()
    fake.calls.clear()
    assert job(photos, out, run__threads=None).shards_written == 1
    assert max(fake.calls) == 3


def test_an_interruption_loses_only_the_shard_in_hand(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    class Stop(Silent):
        def image(self, result: MaskSet | Failure, shard: int) -> None:
            if result.ref.key == "deep/a.png":
                raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        job(photos, out, observer=Stop())
    assert [p.name for p in (out / "data").iterdir()] == ["part-000000.parquet"]
    assert not list((out / "_tmp").iterdir())
    assert job(photos, out).already_done == 2
    calm = tmp_path / "calm"
    job(photos, calm)
    assert rows(out) == rows(calm)


def test_a_shard_that_another_run_committed_first_is_kept(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    job(photos, other)
    theirs = (other / "data" / "part-000000.parquet").read_bytes()

    class Rival(Silent):
        def image(self, result: MaskSet | Failure, shard: int) -> None:
            (out / "data").mkdir(exist_ok=True)
            (out / "data" / "part-000000.parquet").write_bytes(theirs)

    receipts = []
    rival = Rival()
    rival.shard = receipts.append  # type: ignore[method-assign]
    summary = job(photos, out, observer=rival)
    assert [r.won for r in receipts] == [False, True, True]
    assert summary.shards_written == 2
    assert (out / "data" / "part-000000.parquet").read_bytes() == theirs


def test_shards_say_what_made_them(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out)
    footer = reader.footer(out / "data" / "part-000001.parquet")
    there = json.loads((out / "_plan" / "plan.json").read_text())
    assert footer["sam_amg.plan"] == there["fingerprint"]
    assert footer["sam_amg.shard"] == "1"
    assert footer["sam_amg.model_sha256"] == there["depends_on"]["weights.sha256"]
    assert json.loads(footer["sam_amg.config"])["generate.points_per_side"] == 2
    assert json.loads(footer["sam_amg.stats"])["rows"] == {"decode_error": 1, "ok": 1}


def test_embedded_images_are_the_files_themselves(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out, output__embed_images=True)
    table = reader.read_table(out, columns=["key", "image"]).to_pylist()
    assert all(row["image"]["bytes"] == (photos / row["key"]).read_bytes() for row in table if row["image"])
    assert sum(row["image"] is not None for row in table) >= 4


def test_an_edited_plan_and_a_foreign_one_are_refused(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    out = tmp_path / "out"
    job(photos, out)
    file = out / "_plan" / "plan.json"
    content = file.read_text()
    file.write_text(content.replace('"generate.points_per_side": 2', '"generate.points_per_side": 4'))
    with pytest.raises(FormatError, match="was edited"):
        job(photos, out)
    file.write_text(content.replace('"version": 1', '"version": 9'))
    with pytest.raises(FormatError, match="has version 9, this program reads 1"):
        job(photos, out)
    file.write_text("{}")
    with pytest.raises(FormatError, match="is not a plan"):
        job(photos, out)
    file.write_text(content)
    manifest = out / "_plan" / "manifest-00000.parquet"
    manifest.write_bytes(manifest.read_bytes()[:100])
    with pytest.raises(FormatError, match="is not a manifest"):
        job(photos, out)


def test_inputs_and_outputs_that_cannot_be_are_refused(photos: Path, tmp_path: Path, fake: DiscSam) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        job(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError):
        job(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError):
        job(photos, tmp_path / "file" / "out")


def test_shards_aim_at_two_minutes_of_work() -> None:
    assert plan.images_per_shard(55.0) == 2
    assert plan.images_per_shard(0.1) == 512
    assert plan.images_per_shard(1000.0) == 1
    slow = local.expected_seconds_per_image(load_config(preset="sa1b"), "cpu")
    assert slow > local.expected_seconds_per_image(config(), "cpu")
    assert slow > local.expected_seconds_per_image(load_config(preset="sa1b"), "cuda")


@pytest.mark.parametrize(
    "settings",
    [
        {"points_per_side": 5},
        {"points_per_side": 32, "crop_n_layers": 6, "crop_n_points_downscale_factor": 2},
        {"points_per_side": None, "crop_n_layers": 1, "point_grids": [[(0.5, 0.5)], [(0.1, 0.2), (0.3, 0.4)]]},
    ],
)
def test_points_are_counted_without_making_their_grids(settings: dict[str, object]) -> None:
    generate = load_config(overrides={f"generate.{name}": value for name, value in settings.items()}).generate
    assert generate.points_by_layer == [len(each) for each in grid.layer_grids(generate)]
