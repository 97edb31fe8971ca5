"""A whole job from a bucket into a bucket: with a stand-in for the network, and everything else as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from amg.cli import predict
from amg.config import Config, parse
from amg.errors import ConfigError, OutputRefused, SourceError
from amg.export.formats import export_shards
from amg.review.prediction import refuse_taken
from amg.review.view import write_review
from amg.run.progress import Silent, Summary
from amg.run.status import failed_images, job_status
from amg.run.verify import verify_output
from amg.shards.reader import read_shards, read_table
from amg.shards.verify import Finding
from tests.chaos import standin

IMAGES = 18


@pytest.fixture
def inputs(object_store, tmp_path, monkeypatch) -> str:
    """A prefix with tiny images, two of which are none."""
    monkeypatch.setenv(standin.SECONDS_PER_IMAGE, "0")
    for file in sorted(standin.make_photos(tmp_path / "photos", IMAGES).iterdir()):
        object_store.put(f"in/{file.name}", file.read_bytes())
    return f"{object_store.url}/in"


def config(**changes: object) -> Config:
    return parse({"shards.images_per_shard": 4, **changes})


def label(inputs: str, out: str, *, overwrite: bool = False, **changes: object) -> Summary:
    return standin.run_local([inputs], out, config(**changes), overwrite=overwrite, observer=Silent())


def faults(out: str) -> list[Finding]:
    findings: list[Finding] = []
    verify_output(out, found=findings.append)
    return findings


def test_every_image_of_a_prefix_has_one_row_and_the_output_is_sound(inputs, object_store):
    out = f"{object_store.url}/some where/out"
    summary = label(inputs, out)
    assert summary.rows == {"ok": IMAGES - 2, "decode_error": 2}
    assert faults(out) == []
    rows = list(read_shards(out))
    assert [row["key"] for row in rows] == [f"{n:04d}.png" for n in range(IMAGES)]
    assert rows[0]["uri"] == f"{inputs}/0000.png"
    assert read_table(out, columns=["key"]).num_rows == IMAGES
    assert next(read_shards(f"{out}/data/part-000001.parquet"))["key"] == "0004.png"
    status = job_status(out)
    assert (status.planned, status.done, status.rows["decode_error"], status.damaged) == (IMAGES, IMAGES, 2, ())
    assert [lost.key for lost in failed_images(out)] == ["0005.png", "0015.png"]


def test_faults_on_the_way_change_nothing(inputs, object_store):
    still = label(inputs, f"{object_store.url}/still")
    object_store.faults.at_random(0.15, seed=3)
    stormy = label(inputs, f"{object_store.url}/stormy")
    object_store.faults.clear()
    assert (stormy.rows, stormy.masks) == (still.rows, still.masks)
    assert sum(1 for each in object_store.requests if each.fault) > 5
    assert faults(f"{object_store.url}/stormy") == []
    columns = ["key", "status", "annotations"]
    first, second = (read_table(f"{object_store.url}/{name}", columns=columns) for name in ("still", "stormy"))
    assert first.equals(second)
    assert set(object_store.stored.values()) == {1}, "nothing was written twice"


def test_a_second_run_lists_and_does_nothing_and_a_third_does_what_is_missing(inputs, object_store):
    out = f"{object_store.url}/out"
    label(inputs, out)
    object_store.requests.clear()
    assert not label(inputs, out).rows
    writes = [each.key for each in object_store.requests if each.method == "PUT"]
    assert writes == ["out/_state/create-if-absent"]
    assert object_store.count(listing=True) <= 8
    object_store.delete("out/data/part-000002.parquet")
    summary = label(inputs, out)
    assert (sum(summary.rows.values()), summary.already_done) == (4, IMAGES - 4)
    assert faults(out) == []


def test_a_resume_lists_the_shards_once_for_each_page(inputs, object_store):
    out = f"{object_store.url}/out"
    label(inputs, out, **{"shards.images_per_shard": 1})
    object_store.page = 3
    object_store.requests.clear()
    label(inputs, out, **{"shards.images_per_shard": 1})
    of_shards = [each for each in object_store.requests if each.is_listing and each.query["prefix"] == "out/data/"]
    assert len(of_shards) == IMAGES // 3


def test_other_settings_are_refused_and_overwritten_on_demand(inputs, object_store):
    out = f"{object_store.url}/out"
    label(inputs, out)
    with pytest.raises(OutputRefused, match=rf"{out} was made with other settings"):
        label(inputs, out, **{"generate.points_per_side": 7})
    object_store.put("out/notes.txt", b"mine")
    label(inputs, out, overwrite=True, **{"generate.points_per_side": 7})
    assert object_store.get("out/notes.txt") == b"mine"
    assert job_status(out).settings["generate.points_per_side"] == 7
    assert faults(out) == []
    object_store.put("foreign/notes.txt", b"mine")
    with pytest.raises(OutputRefused, match="is no output of this program"):
        label(inputs, f"{object_store.url}/foreign", overwrite=True)


def test_what_is_made_of_an_output_lies_on_this_machine(inputs, object_store, tmp_path):
    out = f"{object_store.url}/out"
    label(inputs, out)
    exported = export_shards(out, to="coco", out=tmp_path / "labels.json")
    assert exported.images == IMAGES - 2
    assert len(json.loads((tmp_path / "labels.json").read_bytes())["images"]) == IMAGES - 2
    review = write_review(out, out=tmp_path / "review", limit=3)
    assert len(review.pictures) == 3, "the pictures were read from the bucket"
    with pytest.raises(ConfigError, match=r"pictures cannot be written to s3://.*--out"):
        write_review(out)
    with pytest.raises(ConfigError, match=r"an export cannot be written to s3://"):
        export_shards(out, to="coco", out=f"{out}/labels.json")


def test_a_prediction_takes_an_image_from_a_bucket(inputs, tmp_path):
    picture = predict._read(f"{inputs}/0000.png")
    assert (picture.size.height, picture.size.width, picture.ref.key) == (24, 32, "0000.png")
    with pytest.raises(SourceError, match=r"cannot read s3://.*/gone.png: the object is gone"):
        predict._read(f"{inputs}/gone.png")
    with pytest.raises(ConfigError, match=r"a prediction cannot be written to s3://"):
        refuse_taken(f"{inputs}/out", overwrite=False)


def test_the_commands_take_addresses(inputs, object_store, tmp_path):
    """In processes of their own, two workers labeling, as a user would."""
    out = f"{object_store.url}/out"
    (tmp_path / "list.csv").write_text(f"path,label\n{inputs}/0000.png,x\n{inputs}/gone.png,y\n")

    def sam_amg(*arguments: str, module: str = "amg") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, env=os.environ | object_store.env, capture_output=True, text=True, timeout=120)

    settings = ("--set", "shards.images_per_shard=4", "--workers", "2", "--json")
    ran = sam_amg("run", inputs, str(tmp_path / "list.csv"), "--out", out, *settings, module="tests.chaos.job")
    assert json.loads(ran.stdout)["rows"] == {"ok": 16, "decode_error": 2, "missing": 1}, ran.stderr
    verified = sam_amg("verify", out)
    assert (verified.returncode, verified.stderr) == (0, "")
    lost = sam_amg("status", "s3://no-such-bucket/out")
    assert lost.returncode == 1
    assert lost.stderr.startswith("error: ") and "there is no such bucket" in lost.stderr
    assert "Traceback" not in lost.stderr
