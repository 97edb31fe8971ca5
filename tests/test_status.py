"""What status and failures read out of an output that another process may be writing."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from amg.cli.main import main
from amg.errors import ConfigError, StorageError
from amg.run.status import failed_images, images_per_second, job_status
from amg.sam.weights import KNOWN
from tests import outputs
from tests.outputs import make_output

KEYS = [f"{n}.png" for n in range(10)]


def finish(folder: Path, number: int, at: float) -> None:
    os.utime(folder / "data" / f"part-{number:06d}.parquet", (at, at))


def test_a_finished_output(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS)
    state = job_status(str(tmp_path))
    assert (state.planned, state.done, state.left) == (10, 10, 0)
    assert state.rows == {"ok": 8, "decode_error": 1, "missing": 1}
    assert state.masks == sum(n % 6 for n in range(10) if n % 5 != 3)
    assert (state.shards_done, state.shards_planned, state.damaged) == (5, 5, ())


def test_an_output_without_a_shard_and_one_half_done(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS, shards=range(0))
    state = job_status(str(tmp_path))
    assert (state.planned, state.done, state.rows, state.images_per_second, state.seconds_left) == (
        10,
        0,
        {},
        None,
        None,
    )
    assert state.seconds_since_last_shard is None
    assert list(failed_images(str(tmp_path))) == []
    make_output(tmp_path, KEYS, shards=range(3))
    assert job_status(str(tmp_path)).left == 4


def test_rate_and_time_left_come_from_the_times_of_the_shards(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS, shards=range(3))
    for number, at in enumerate((1000.0, 1010.0, 1020.0)):
        finish(tmp_path, number, at)
    state = job_status(str(tmp_path), now=1025.0)
    assert state.images_per_second == pytest.approx(0.2)
    assert state.seconds_left == pytest.approx(20)
    assert state.seconds_since_last_shard == pytest.approx(5)


def test_pauses_between_runs_do_not_count() -> None:
    assert images_per_second([]) is None
    assert images_per_second([(5.0, 10)]) is None
    assert images_per_second([(5.0, 10), (5.0, 10)]) is None
    steady = [(10.0 * n, 4) for n in range(10)]
    night = [(when + 40_000, count) for when, count in steady]
    assert images_per_second(steady) == pytest.approx(0.4)
    assert images_per_second(steady + night) == pytest.approx(0.4)


def test_the_rate_is_that_of_the_last_shards() -> None:
    slow, fast = [(100.0 * n, 1) for n in range(100)], [(10_000 + n, 1) for n in range(100)]
    assert images_per_second(slow + fast) == pytest.approx(1.0)


def test_damaged_shards_and_strays_do_not_count_and_are_said(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS)
    shard = tmp_path / "data" / "part-000001.parquet"
    shard.write_bytes(shard.read_bytes()[:100])
    (tmp_path / "data" / "notes.txt").write_text("x")
    (tmp_path / "data" / "part-000099.parquet").write_bytes(b"x")
    state = job_status(str(tmp_path))
    assert (state.done, state.shards_done) == (8, 4)
    (said,) = state.damaged
    assert "data/part-000001.parquet: not a whole Parquet file" in said
    outputs.rewrite(tmp_path / "data" / "part-000002.parquet", footer=lambda f: f.update({"sam_amg.stats": "[]"}))
    outputs.rewrite(
        tmp_path / "data" / "part-000003.parquet", footer=lambda f: f.update({"sam_amg.schema_version": "9"})
    )
    damaged = job_status(str(tmp_path)).damaged
    assert [text.split(":")[0][-6 - 8 : -8] for text in damaged] == ["000001", "000002", "000003"]
    assert "schema version 9, this program reads 1" in damaged[2]


def test_settings_and_weights_of_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "DIGEST", KNOWN["mobile-sam"].sha256)
    make_output(tmp_path, KEYS, generate__points_per_side=4, output__bbox_style="sa1b", run__threads=3)
    state = job_status(str(tmp_path))
    assert state.weights == "mobile-sam"
    assert state.settings == {"generate.points_per_side": 4, "output.bbox_style": "sa1b"}


def test_a_folder_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"no job in .*wanted _plan/plan\.json; give the folder"):
        job_status(str(tmp_path))


@pytest.fixture
def two_thousand_shards(tmp_path: Path) -> Path:
    make_output(tmp_path, [f"{n}.png" for n in range(6000)], images_per_shard=3, shards=range(1))
    content = (tmp_path / "data" / "part-000000.parquet").read_bytes()
    for number in range(1, 2000):
        (tmp_path / "data" / f"part-{number:06d}.parquet").write_bytes(content)
    return tmp_path


COMMAND = """
import json, sys, time
from amg.cli.main import main

status = main()
heavy = [name for name in ("torch", "numba", "pandas", "pyarrow.dataset", "requests", "PIL") if name in sys.modules]
print(json.dumps({"status": status, "heavy": heavy, "busy": time.process_time()}))
"""


def whole_command(folder: Path) -> tuple[dict[str, Any], float]:
    """What the command says and did, in a process of its own, and the seconds from its start to its end."""
    command = [sys.executable, "-c", COMMAND, "status", str(folder), "--json"]
    began = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    said, did = (json.loads(line) for line in done.stdout.splitlines())
    assert said["done"] == 6000
    return did, time.perf_counter() - began


def test_two_thousand_shards_in_seconds_and_without_heavy_imports(two_thousand_shards: Path) -> None:
    did, _ = whole_command(two_thousand_shards)
    assert did["heavy"] == []
    assert did["busy"] < 8  # on a quiet machine less than two, compiling included


@pytest.mark.slow
def test_two_thousand_shards_in_two_seconds(two_thousand_shards: Path) -> None:
    whole_command(two_thousand_shards)
    seconds = [whole_command(two_thousand_shards)[1] for _ in range(3)]
    print(f"sam-amg status on 2,000 shards: {', '.join(f'{each:.2f} s' for each in seconds)}")
    assert min(seconds) < 2.0


def test_failures_in_plan_order_and_by_status(tmp_path: Path) -> None:
    make_output(tmp_path, KEYS)
    lost = list(failed_images(str(tmp_path)))
    assert [(each.key, each.uri, each.status) for each in lost] == [
        ("3.png", "/photos/3.png", "decode_error"),
        ("8.png", "/photos/8.png", "missing"),
    ]
    assert lost[0].reason == "it is broken: 3.png"
    assert [each.key for each in failed_images(str(tmp_path), ["missing", "crash"])] == ["8.png"]
    for name in ("mising", "ok"):
        with pytest.raises(ConfigError, match=f"no failure '{name}'.*statuses: decode_error"):
            list(failed_images(str(tmp_path), [name]))


class TestCommands:
    @pytest.fixture(autouse=True)
    def _out(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.chdir(tmp_path)
        make_output(tmp_path / "labels", KEYS, shards=range(4), generate__points_per_side=4)
        for number in range(4):
            finish(tmp_path / "labels", number, time.time() - 5 + number)
        self.patch, self.capture = monkeypatch, capsys

    def call(self, *arguments: str) -> tuple[int, str, str]:
        self.patch.setattr(sys, "argv", ["sam-amg", *arguments])
        return main(), *self.capture.readouterr()

    def test_status_for_people(self) -> None:
        status, out, err = self.call("status", "labels")
        assert (status, err) == (0, "")
        assert out.startswith("labels: 10 images planned, 8 done, 2 left\n  ok            7\n  decode_error  1\n")
        assert "rate          2 images/s, 1 s left at that rate\n" in out
        assert "settings      generate.points_per_side=4\n" in out

    def test_status_for_programs(self) -> None:
        status, out, _ = self.call("status", "labels", "--json")
        said = json.loads(out)
        assert (status, said["planned"], said["done"], said["left"], said["rows"]["ok"]) == (0, 10, 8, 2, 7)

    def test_status_of_nothing(self) -> None:
        status, out, err = self.call("status", "nowhere")
        assert (status, out) == (1, "")
        assert "give the folder that `sam-amg run --out` writes to" in err

    def test_failures_as_text_json_and_csv(self) -> None:
        assert self.call("failures", "labels") == (0, "decode_error  3.png: it is broken: 3.png\n", "")
        _, out, _ = self.call("failures", "labels", "--json")
        row = {"key": "3.png", "uri": "/photos/3.png", "status": "decode_error", "reason": "it is broken: 3.png"}
        assert json.loads(out) == [row]
        _, out, _ = self.call("failures", "labels", "--csv")
        assert list(csv.DictReader(io.StringIO(out))) == [row]
        assert json.loads(self.call("failures", "labels", "--json", "--status", "missing,crash")[1]) == []

    def test_failures_refuses_what_it_does_not_know(self) -> None:
        status, _, err = self.call("failures", "labels", "--status", "mising")
        assert status == 2
        assert "did you mean 'missing'" in err
        assert self.call("failures", "labels", "--csv", "--json")[0] == 2
