"""Retries: what is labeled again, and that it happens once whatever is killed. The network is a stand-in."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import PIL.Image
import pytest

from amg.cli.main import main
from amg.config import load_config
from amg.errors import ConfigError, OutputRefused, StorageError
from amg.run import retry
from amg.run.compact import compact
from amg.run.progress import Silent
from amg.run.retry import preview_retry, retry_with
from amg.run.shard import Result
from amg.run.status import job_status
from amg.run.verify import verify_output
from amg.shards.reader import read_shards
from amg.shards.verify import Finding
from amg.storage.local import LocalStore
from amg.values import Failure, Image, Status
from tests.chaos import standin
from tests.chaos.killer import rows
from tests.chaos.standin import StandIn, make_photos, run_local
from tests.object_store import ObjectStore


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("amg.run.local.Local", StandIn)
    monkeypatch.setenv("AMG_CHAOS_SECONDS", "0")


def run(photos: Path, out: str, **settings: object) -> None:
    named = {"run.workers": 1, "shards.images_per_shard": 4}
    given = named | {name.replace("__", "."): value for name, value in settings.items()}
    run_local([str(photos)], out, load_config(overrides=given), observer=Silent())


def again(out: Path | str, *statuses: str, **settings: object) -> retry.Retried:
    given = {name.replace("__", "."): value for name, value in settings.items()}
    return retry_with(StandIn(), str(out), statuses, given, observer=Silent())


def by_status(out: Path | str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in read_shards(out, columns=("key", "status")):
        found.setdefault(row["status"], []).append(row["key"].removesuffix(".png"))
    return found


def kinds(out: Path | str) -> set[str]:
    found: list[Finding] = []
    verify_output(str(out), found=found.append)
    return {finding.kind for finding in found}


def heal(photo: Path) -> None:
    """A picture in the place of what was none, its colour from its name."""
    PIL.Image.new("RGB", (32, 24), (int(photo.stem[:4]) % 255, 7, 7)).save(photo)
    photo.with_suffix(".healed").touch()


def frozen(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((out / "data").iterdir())}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """30 photos, of which 5, 15 and 25 are no images."""
    return make_photos(tmp_path / "photos", 30)


@pytest.fixture
def out(photos: Path, tmp_path: Path) -> Path:
    """0007 was missing when they were labeled, and is there now."""
    kept = (photos / "0007.png").read_bytes()
    target = photos / "0007.png"
    target.unlink()
    target.symlink_to("nowhere.png")  # a link to nothing is planned
    run(photos, str(tmp_path / "out"))
    target.unlink()
    target.write_bytes(kept)
    assert {status: len(keys) for status, keys in by_status(tmp_path / "out").items()} == {
        "ok": 26, "decode_error": 3, "missing": 1
    }  # fmt: skip
    return tmp_path / "out"


def test_only_images_of_these_statuses_are_labeled_again_and_no_file_changes(photos: Path, out: Path) -> None:
    before, shards = rows(out), frozen(out)
    heal(photos / "0015.png")
    assert again(out, "missing").summary.rows == {"ok": 1}  # type: ignore[union-attr]
    assert by_status(out)["decode_error"] == ["0005", "0015", "0025"]
    retried = again(out, "decode_error")
    assert (retried.generation, retried.statuses) == (2, ("decode_error",))
    assert retried.summary is not None
    assert (retried.summary.planned, retried.summary.rows) == (3, {"ok": 1, "decode_error": 2})
    assert retried.summary.out.endswith("/retries/g2")
    assert frozen(out) == shards
    after = rows(out)
    assert [row["image_id"] for row in after] == list(range(30))
    changed = [row["key"] for row, old in zip(after, before, strict=True) if row != old]
    assert changed == ["0007.png", "0015.png"]  # those that failed again say the same
    assert kinds(out) == set()


def test_a_retry_makes_the_rows_that_a_run_would_have_made(photos: Path, out: Path, tmp_path: Path) -> None:
    for name in ("0005", "0015", "0025"):
        heal(photos / f"{name}.png")
    again(out, "missing", "decode_error")
    run(photos, str(tmp_path / "calm"))
    assert rows(out) == rows(tmp_path / "calm")


def test_what_failed_again_is_tried_again_by_the_next_retry_alone(photos: Path, out: Path) -> None:
    assert again(out, "decode_error").generation == 1
    heal(photos / "0025.png")
    assert again(out, "decode_error").generation == 2
    assert generations_of(out) == {1: 3, 2: 3}
    assert again(out, "decode_error").summary.planned == 2  # type: ignore[union-attr]
    assert generations_of(out) == {1: 3, 2: 3, 3: 2}


def generations_of(out: Path) -> dict[int, int]:
    return {each.generation: each.images for each in job_status(str(out)).retries}


def test_nothing_to_retry_is_no_error_and_writes_nothing(out: Path) -> None:
    nothing = again(out, "timeout", "crash")
    assert (nothing.generation, nothing.summary) == (0, None)
    assert nothing.render() == "nothing to retry: no image has the status crash, timeout"
    assert json.loads(nothing.to_json()) == {"generation": 0, "statuses": ["crash", "timeout"], "planned": 0}
    assert not (out / "retries").exists()


def test_a_run_that_has_not_begun_has_nothing_to_retry(photos: Path, tmp_path: Path) -> None:
    run(photos, str(tmp_path / "out"))
    shutil.rmtree(tmp_path / "out" / "data")
    assert again(tmp_path / "out", "decode_error").summary is None


def test_what_a_retry_cannot_be_is_refused_before_anything_is_written(
    photos: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="there is no failure 'mising'; did you mean 'missing'"):
        again(out, "mising")
    with pytest.raises(ConfigError, match="there is no failure 'ok'"):
        again(out, "ok")
    with pytest.raises(ConfigError) as wrong:
        again(out, "missing", generate__points_per_side=4, memory__image_gb=1, run__workers=1)
    assert "generate.points_per_side stays as the output has it" in str(wrong.value)
    assert "there is no setting 'memory.image_gb'; did you mean 'memory.image_mb'" in str(wrong.value)
    with pytest.raises(ConfigError, match=r"run\.image_timeout_s is -1"):
        again(out, "missing", run__image_timeout_s=-1)
    with pytest.raises(StorageError, match="no job in"):
        again(tmp_path / "nothing", "missing")
    monkeypatch.setattr("tests.chaos.standin.DIGEST", "1" * 64)
    with pytest.raises(OutputRefused, match=r"weights\.sha256: there '0000.*, now '1111"):
        again(out, "missing")
    assert not (out / "retries").exists()


def test_settings_are_the_outputs_but_for_what_is_given_and_for_where_it_ran(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(photos, str(out), memory__image_mb=77, decode__max_pixels=1000, run__decode_ahead=3, output__bbox_style="sa1b")
    asked = retry.ask(str(out), ["too_large"], {"memory.ahead_mb": 5, "run.decode_ahead": 2})
    assert asked is None  # 24 x 32 pixels are fewer than a thousand
    asked = retry.ask(str(out), ["decode_error"], {"memory.ahead_mb": 5, "run.decode_ahead": 2})
    assert asked is not None
    config = asked.config
    assert (config.memory.image_mb, config.memory.ahead_mb, config.run.decode_ahead) == (77, 5, 2)
    assert (config.decode.max_pixels, config.output.bbox_style, config.run.workers) == (1000, "sa1b", None)


def test_more_memory_is_what_an_image_that_was_too_large_may_need(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 2)
    PIL.Image.new("RGB", (1000, 1000)).save(photos / "large.png")
    out = tmp_path / "out"
    run(photos, str(out), memory__image_mb=1)
    assert by_status(out)["too_large"] == ["large"]
    again(out, "too_large")
    assert by_status(out)["too_large"] == ["large"]
    again(out, "too_large", memory__image_mb=100)
    assert by_status(out) == {"ok": ["0000", "0001", "large"]}


def test_images_that_ended_workers_are_really_tried_again_alone_in_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = make_photos(tmp_path / "photos", 3, names=["0001-segv-in-model", "0001-killed", "0002-hang"])
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(standin, "_label", _as_if_it_had_died)
        run(photos, str(out))
    assert by_status(out)["crash"] == ["0001-killed", "0001-segv-in-model"]
    assert by_status(out)["timeout"] == ["0002-hang"]
    for name in ("0001-killed", "0002-hang"):
        (photos / f"{name}.healed").touch()
    assert preview_retry(StandIn(), str(out), ["crash", "timeout"]).isolated == 3
    retried = again(out, "crash", "timeout")  # by one worker, as this process must not touch them
    assert retried.summary is not None
    assert retried.summary.rows == {"crash": 1, "ok": 2}
    (row,) = (row for row in read_shards(out) if row["status"] == "crash")
    assert "tried alone, the image ended its worker 2 times in a row, the last time by signal 11" in row["error"]
    history = sorted((out / "retries" / "g1" / "_state" / "attempts").iterdir())
    assert len(history) == 2  # isolated from the start: no death is spent on finding out which image it is
    assert kinds(out) == set()


def _as_if_it_had_died(image: Image, seconds: float) -> Result:
    statuses = {"segv-in-model": Status.CRASH, "killed": Status.CRASH, "hang": Status.TIMEOUT}
    found = [status for word, status in statuses.items() if word in image.ref.key]
    return Failure(image.ref, found[0], "its worker died of it") if found else standin.draw(image, seconds)


def test_small_retries_give_every_worker_some(out: Path) -> None:
    seen = preview_retry(StandIn(), str(out), ["decode_error", "missing"], {"run.workers": 2})
    assert (seen.images, seen.shards, seen.goes_on, seen.generation, seen.isolated) == (4, 2, False, 1, 0)
    assert seen.by_status == {"decode_error": 3, "missing": 1}
    assert "begins retry g1; images: 4 (3 decode_error, 1 missing), shards: 2, to read: " in seen.render()
    assert again(out, "decode_error", "missing", run__workers=2).summary.shards_written == 2  # type: ignore[union-attr]


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def killed_at(monkeypatch: pytest.MonkeyPatch, writes: int, *, after: bool = False) -> None:
    """The process dies at its so-manieth write, before it or just after it."""
    create, left = LocalStore.create_if_absent, [writes]

    def dies(self: LocalStore, path: str, data: bytes) -> bool:
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Killed
        won = create(self, path, data)
        if left[0] == 0:
            raise Killed
        return won

    monkeypatch.setattr(LocalStore, "create_if_absent", dies)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_retry_that_was_killed_goes_on_with_its_generation(
    photos: Path, out: Path, writes: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It writes its plan and two shards."""
    heal(photos / "0015.png")
    monkeypatch.setattr(retry, "_images_per_shard", lambda *_: 2)
    with monkeypatch.context() as patch:
        killed_at(patch, writes, after=after)
        with pytest.raises(Killed):
            again(out, "decode_error", "missing")
    done = max(0, writes - 2 + after)
    seen = preview_retry(StandIn(), str(out), ["missing", "decode_error"])
    if done < 2:
        assert (seen.generation, seen.goes_on, seen.images) == (1, writes > 1 or after, 4 - 2 * done)
        retried = again(out, "missing", "decode_error")
        assert retried.generation == 1
        assert retried.summary is not None
        assert (retried.summary.shards_written, retried.summary.already_done) == (2 - done, 2 * done)
    else:
        assert (seen.generation, seen.goes_on) == (2, False)
    assert by_status(out)["decode_error"] == ["0005", "0025"]
    assert generations_of(out) == {1: 4}
    assert kinds(out) == set()


def test_an_unfinished_retry_of_other_statuses_is_left_alone(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        killed_at(patch, 1, after=True)
        with pytest.raises(Killed):
            again(out, "decode_error")
    assert again(out, "missing").generation == 2
    assert [(each.images, each.done) for each in job_status(str(out)).retries] == [(3, 0), (1, 1)]
    assert kinds(out) == {"missing"}
    assert again(out, "decode_error").generation == 1
    assert kinds(out) == set()


def test_two_retries_at_once_label_into_one_generation(photos: Path, out: Path) -> None:
    heal(photos / "0005.png")
    ended: list[retry.Retried] = []
    both = threading.Barrier(2)

    class AtOnce(Silent):
        """Neither has labeled anything when the other begins."""

        def start(self, total: int, done: int) -> None:
            with suppress(threading.BrokenBarrierError):
                both.wait(10)

    def label() -> None:
        ended.append(retry_with(StandIn(), str(out), ["decode_error"], observer=AtOnce()))

    threads = [threading.Thread(target=label) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [each.generation for each in ended] == [1, 1]
    assert generations_of(out) == {1: 3}
    assert {status: len(keys) for status, keys in by_status(out).items()} == {"ok": 27, "decode_error": 2, "missing": 1}
    assert kinds(out) == set()


def test_a_retry_that_another_finished_meanwhile_does_nothing(photos: Path, out: Path) -> None:
    heal(photos / "0005.png")
    asked = retry.ask(str(out), ["missing"], {})
    assert asked is not None
    settled = retry.settled_for(StandIn(), asked)
    assert again(out, "missing").generation == 1
    hands = StandIn().hands(settled, asked.store.url)
    late = retry.label_again(asked, settled, hands, observer=Silent())
    assert (late.generation, late.summary) == (0, None)
    assert generations_of(out) == {1: 1}


def test_a_retry_reads_images_where_they_were_read(photos: Path, out: Path, tmp_path: Path) -> None:
    """A folder that was moved before it was labeled is planned where it was, and read where it is."""
    moved = tmp_path / "moved"
    (out / "data" / "part-000001.parquet").unlink()  # images 4 to 7
    photos.rename(moved)
    run(moved, str(out))
    assert [row["uri"] for row in read_shards(out)][5] == str(moved / "0005.png")
    heal(moved / "0005.png")
    again(out, "decode_error")
    found = by_status(out)
    assert "0005" in found["ok"]
    assert "0015" in found["missing"]  # labeled before the folder was moved


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["sam-amg", *arguments])
    return main()


def test_the_command_says_what_it_would_do_does_it_and_says_it(
    photos: Path, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "retry", str(out), "--status", "missing,decode_error", "--dry-run", "--json") == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["images"], seen["goes_on"], seen["by_status"]) == (4, False, {"decode_error": 3, "missing": 1})
    assert not (out / "retries").exists()
    assert call(monkeypatch, "retry", str(out), "--status", "missing", "--status", "decode_error", "--strict") == 1
    said = capsys.readouterr().out
    assert said.startswith("retry g1 (decode_error, missing): 4 images, 1 labeled, 3 failed\n")
    assert call(monkeypatch, "status", str(out)) == 0
    assert "  retry g1      decode_error, missing: 4 of 4 images\n" in capsys.readouterr().out
    assert call(monkeypatch, "verify", str(out)) == 0
    assert "30 images, 4 retried" in capsys.readouterr().out
    assert call(monkeypatch, "retry", str(out), "--status", "missing", "--json") == 0
    assert json.loads(capsys.readouterr().out)["planned"] == 0
    for wrong in (["--status", "mising"], ["--status", "missing", "--set", "generate.points_per_side=4"], []):
        assert call(monkeypatch, "retry", str(out), *wrong) == 2
        assert capsys.readouterr().out == ""


def test_a_command_that_is_killed_with_its_workers_is_finished_by_the_next(photos: Path, out: Path) -> None:
    for name in ("0005", "0015"):
        heal(photos / f"{name}.png")
    slow = os.environ | {"AMG_CHAOS_SECONDS": "30", "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "tests.chaos.job", "retry", str(out), "--status", "decode_error", "--quiet"]
    killed = subprocess.Popen(command, env=slow, start_new_session=True)
    until = time.monotonic() + 120
    while not (out / "retries" / "g1" / "plan.parquet").exists():
        assert killed.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    retried = again(out, "decode_error")
    assert retried.generation == 1
    assert retried.summary is not None
    assert retried.summary.rows == {"ok": 2, "decode_error": 1}
    assert kinds(out) == set()


@pytest.mark.parametrize("seed", range(4))
def test_every_image_has_one_row_after_any_sequence_of_runs_retries_and_compactions_with_kills(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whenever something ends, all readers agree, and what is there is sound."""
    choose = random.Random(seed)
    photos, out = make_photos(tmp_path / "photos", 30), tmp_path / "out-0"
    run(photos, str(out))
    compactions = 0
    for _ in range(14):
        step = choose.choice(["run", "retry", "retry", "compact"])
        target = choose.choice([1, 20_000, 10**9])
        with monkeypatch.context() as patch, suppress(Killed):
            if choose.random() < 0.6:
                killed_at(patch, choose.randint(1, 12), after=choose.random() < 0.5)
            if step == "run":
                for number in range(choose.randint(0, 3)):
                    shutil.copy(photos / "0001.png", photos / f"{choose.randint(0, 99):04d}-{number}.png")
                run(photos, str(out))
            elif step == "retry":
                if broken := by_status(out).get("decode_error"):
                    heal(photos / f"{choose.choice(broken)}.png")
                again(out, *choose.choice([["decode_error"], ["decode_error", "missing"], ["timeout"]]))
            else:
                compact(str(out), str(tmp_path / f"out-{compactions + 1}"), target_bytes=target, partial=True)
        if step == "compact":  # goes on where it was killed
            compactions += 1
            new, before = tmp_path / f"out-{compactions}", rows(out)
            compact(str(out), str(new), target_bytes=target, partial=True)
            out = new
            assert rows(out) == before
            assert job_status(str(out)).retries == ()
        agree(out)
    run(photos, str(out))
    assert kinds(out) <= {"missing"}  # retries that were left
    finished = rows(out)
    assert len(finished) == job_status(str(out)).planned == len(list(photos.glob("*.png")))


def agree(out: Path) -> None:
    found = rows(out)
    ids = [row["image_id"] for row in found]
    assert ids == sorted(set(ids))
    state = job_status(str(out))
    assert (Counter(row["status"] for row in found), len(found)) == (Counter(state.rows), state.done)
    assert state.masks == sum(row["num_masks"] or 0 for row in found)
    assert [row["image_id"] for row in read_shards(out / "data", columns=["image_id"])] == ids
    assert kinds(out) <= {"missing"}


def test_an_output_in_an_object_store_is_retried_compacted_and_read_like_any_other(
    photos: Path, tmp_path: Path, object_store: ObjectStore
) -> None:
    for where in (f"{object_store.url}/out", str(tmp_path / "local")):
        run(photos, where)
    heal(photos / "0015.png")
    object_store.faults.add("lose_answer", 1, method="PUT", key="plan.parquet")
    object_store.faults.add("throttle", 2, method="PUT", key="retries/")
    object_store.faults.add("error", 2, method="GET", key="data/")
    for where in (f"{object_store.url}/out", str(tmp_path / "local")):
        assert again(where, "decode_error").generation == 1
        compact(where, f"{where}-new", target_bytes=20_000)
        assert kinds(where) == kinds(f"{where}-new") == set()
        assert job_status(f"{where}-new").rows == job_status(where).rows == {"ok": 28, "decode_error": 2}
    assert agreed(f"{object_store.url}/out-new") == agreed(str(tmp_path / "local-new")) == rows(tmp_path / "local")
    assert again(f"{object_store.url}/out-new", "decode_error").generation == 1
    assert kinds(f"{object_store.url}/out-new") == set()
    assert not [key for key, count in object_store.stored.items() if count > 1]


def test_a_retry_that_was_killed_goes_on_in_an_object_store(photos: Path, object_store: ObjectStore) -> None:
    out = f"{object_store.url}/out"
    run(photos, out)
    heal(photos / "0015.png")
    object_store.faults.add("forbid", 1, method="PUT", key="retries/g1/data/part-000001")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry, "_images_per_shard", lambda *_: 1)
        with pytest.raises(StorageError):
            again(out, "decode_error")
    retried = again(out, "decode_error")
    assert retried.generation == 1
    assert retried.summary is not None
    assert (retried.summary.already_done, retried.summary.shards_written) == (1, 2)
    assert kinds(out) == set()


def agreed(out: str) -> list[dict[str, object]]:
    return [{k: v for k, v in row.items() if k != "timings_ms"} for row in read_shards(out)]
