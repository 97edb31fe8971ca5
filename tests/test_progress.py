import io
import json
import re

import numpy as np
import pytest

from amg.geometry import Size
from amg.run.pace import Pace
from amg.run.progress import Observer, ProgressBar, ProgressLines, Silent, Summary, observer_for
from amg.values import Failure, Funnel, ImageRef, MaskSet, Receipt, Status


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ref(row: int) -> ImageRef:
    return ImageRef(row, f"{row}.jpg", f"/photos/{row}.jpg")


def masks(row: int, count: int) -> MaskSet:
    """`count` masks of one pixel in a 1x2 image."""
    return MaskSet(
        ref=ref(row),
        size=Size(1, 2),
        original=Size(1, 2),
        orientation=1,
        crops=(),
        runs_R=np.ones(2 * count, np.uint32),
        offsets_K1=np.arange(0, 2 * count + 1, 2, dtype=np.int64),
        box_K4=np.tile(np.array([1, 0, 2, 1], np.int32), (count, 1)),
        area_K=np.ones(count, np.int64),
        predicted_iou_K=np.ones(count, np.float32),
        stability_K=np.ones(count, np.float32),
        point_K2=np.zeros((count, 2)),
        crop_K=np.zeros(count, np.int32),
        point_index_K=np.zeros(count, np.int32),
        mask_index_K=np.zeros(count, np.int8),
        changed_K=np.zeros(count, np.bool_),
        funnel=Funnel(),
    )


def run_a_job(observer: Observer, clock: Clock) -> None:
    """Ten images, four of them done before; one takes 10 s, one of them fails and one of two workers is lost."""
    observer.start(10, 4)
    observer.workers(2, 0)
    for row in range(4, 10):
        clock.seconds += 10
        observer.image(
            Failure(ref(row), Status.DECODE_ERROR, "it ends early") if row == 6 else masks(row, 5), shard=row // 3
        )
        if row == 6:
            observer.shard(Receipt(shard=1, rows={"ok": 2}, masks=10, won=True, size_bytes=1_200_000))
            observer.shard(Receipt(shard=2, rows={"ok": 2}, masks=10, won=False, size_bytes=1_000_000))
            observer.workers(1, 1)
    observer.finish()
    observer.finish()


def test_lines_tell_rates_failures_workers_bytes_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    run_a_job(ProgressLines(stream, clock=clock, every_seconds=40), clock)
    assert stream.getvalue().splitlines() == [
        "10 images, 4 of them done before",
        "failed: 6.jpg: decode_error: it ends early",
        "lost 1 worker, 1 in all; 1 up",
        "8/10 images, 10.0 s each, 0.375 masks/s, 1 failed, 1 worker, 1 lost, 1.2 MB, 00:20 left",
        "10/10 images, 10.0 s each, 0.417 masks/s, 1 failed, 1 worker, 1 lost, 1.2 MB",
    ]


def test_the_bar_tells_rates_failures_workers_and_bytes() -> None:
    stream = Terminal()
    run_a_job(ProgressBar(stream), Clock())
    last = stream.getvalue().rstrip().rpartition("\r")[2]
    assert re.fullmatch(
        r"100% \|.+\| 10/10 images, [\d.]+[kM]?/s, [\d.]+[kM]? masks/s, 1 failed, 1 worker, 1 lost, 1.2 MB", last
    )


def test_the_bar_is_drawn_anew_when_workers_come_and_go() -> None:
    stream = Terminal()
    bar = ProgressBar(stream)
    bar.workers(1, 0)
    bar.start(10, 0)
    bar.workers(3, 2)
    assert stream.getvalue().rpartition("\r")[2].rstrip().endswith("| 0/10 images, 3 workers, 2 lost")
    bar.finish()


def test_a_bar_fits_its_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (80, 24))
    stream = Terminal()
    run_a_job(ProgressBar(stream), Clock())
    drawn = [line.rstrip() for line in stream.getvalue().split("\r")]
    assert max(map(len, drawn)) <= 80
    assert all("failed, 1 worker, 1 lost" in line for line in drawn[-2:] if line)


def pace(**changes: int) -> Pace:
    """Of a large job."""
    values = {"images": 2_000_000, "failed": 1234, "masks": 200_000_000, "written_bytes": 10**12, "up": 120, "lost": 3}
    return Pace(**(values | changes))


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (None, "4.51M/10M images, 123/s, 12.3k masks/s, 1234 failed, 120 workers, 3 lost, 1 TB, 12:23:54 left"),
        (88, "4.51M/10M images, 123/s, 12.3k masks/s, 1234 failed, 120 workers, 3 lost, 12:23:54 left"),
        (72, "4.51M/10M images, 123/s, 1234 failed, 120 workers, 3 lost, 12:23:54 left"),
    ],
)
def test_what_matters_least_goes_first_where_there_is_no_room(columns: int | None, text: str) -> None:
    assert pace().describe(4_510_000, 10_000_000, 123.0, columns=columns) == text


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert Pace().describe(0, 10, None) == "0/10 images"
    assert Pace().describe(3, 10, 0.0) == "3/10 images"
    assert Pace(images=1, up=0).describe(4, 10, 2.5) == "4/10 images, 2.5/s, 0 masks/s, 0 workers, 00:02 left"
    assert pace(written_bytes=0, failed=99_999, lost=0).describe(2, 2, 999.4).startswith("2/2 images, 999/s, 99.9k")
    assert (
        pace(images=1, masks=1, failed=100_000).describe(1, 2, 999.6).startswith("1/2 images, 1k/s, 1k masks/s, 100k")
    )


def test_a_bar_that_never_started_finishes_too() -> None:
    stream = Terminal()
    ProgressBar(stream).finish()
    ProgressLines(stream).finish()
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_and_a_pipe_gets_lines() -> None:
    assert isinstance(observer_for(Terminal()), ProgressBar)
    assert isinstance(observer_for(io.StringIO()), ProgressLines)


def test_silent_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    run_a_job(Silent(), Clock())
    assert capsys.readouterr() == ("", "")


def summary(**changes: object) -> Summary:
    values: dict[str, object] = {
        "out": "labels/",
        "planned": 10,
        "already_done": 4,
        "rows": {"ok": 4, "decode_error": 2},
        "failures": (("6.jpg", "decode_error", "it ends early"),),
        "masks": 402,
        "seconds": {"decode": 0.5, "encode": 20.0, "nms": 0.01},
        "wall_seconds": 75.2,
        "peak_memory_mb": 1234.5,
        "shards_written": 1,
    }
    return Summary(**(values | changes))  # type: ignore[arg-type]


def test_a_summary_tells_everything_a_person_asks_for() -> None:
    assert summary().render().splitlines() == [
        "10 images, 4 done before, 4 labeled, 2 failed",
        "  decode_error  6.jpg: it ends early",
        "  and 1 more",
        "  masks        402, 100.5 an image",
        "  time         1 min 15 s (encode 20.0 s, decode 0.5 s)",
        "  peak memory  1234 MB",
        "  output       labels/data, 1 shard written in this run",
        "  DuckDB       select key, status, num_masks, error from 'labels/data/*.parquet' order by image_id",
    ]


def test_a_summary_tells_how_long_gpus_waited() -> None:
    seen = summary(seconds={"prompt": 9.0, "gpu_busy": 30.0, "gpu_idle": 10.0})
    assert seen.gpu_idle == 0.25
    assert "GPU idle     25% of the time" in seen.render()
    assert "gpu_busy" not in seen.render()
    assert json.loads(seen.to_json())["gpu_idle"] == 0.25
    assert "GPU" not in summary(seconds={"prompt": 9.0}).render()


def test_a_summary_of_nothing_to_do_divides_by_nothing() -> None:
    text = summary(
        already_done=10, rows={}, failures=(), masks=0, seconds={}, wall_seconds=0.4, shards_written=0
    ).render()
    assert text.startswith("10 images, 10 done before, 0 labeled, 0 failed\n  time         0.4 s\n")


def test_a_summary_says_what_is_left() -> None:
    assert (
        summary(rows={"ok": 1}, failures=())
        .render()
        .startswith("10 images, 4 done before, 1 labeled, 0 failed, 5 left\n")
    )


def test_the_json_summary_is_one_line_with_every_field() -> None:
    text = summary(out="it's/here").to_json()
    content = json.loads(text)
    assert "\n" not in text
    assert set(Summary.__dataclass_fields__) | {"labeled", "failed", "gpu_idle", "query"} == set(content)
    assert content["labeled"] == 4
    assert content["failed"] == 2
    assert content["failures"] == [["6.jpg", "decode_error", "it ends early"]]
    assert "'it''s/here/data/*.parquet'" in content["query"]
