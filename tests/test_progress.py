import io
import json

import numpy as np
import pytest

from amg.geometry import Size
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
    """Ten images, four of them done before; one takes 10 s and one of them fails."""
    observer.start(10, 4)
    for row in range(4, 10):
        clock.seconds += 10
        observer.image(Failure(ref(row), Status.DECODE_ERROR, "it ends early") if row == 6 else masks(row, 5))
    observer.shard(Receipt(shard=0, rows={"ok": 5, "decode_error": 1}, masks=25, won=True))
    observer.finish()
    observer.finish()


def test_lines_tell_rate_masks_failures_and_time_left() -> None:
    clock, stream = Clock(), io.StringIO()
    run_a_job(ProgressLines(stream, clock=clock, every_seconds=30), clock)
    assert stream.getvalue().splitlines() == [
        "10 images, 4 of them done before",
        "failed: 6.jpg: decode_error: it ends early",
        "7/10 images, 10.0 s an image, 10 masks, 1 failed, 30.0 s left",
        "10/10 images, 10.0 s an image, 25 masks, 1 failed",
    ]


def test_the_bar_tells_rate_masks_failures_and_time_left() -> None:
    stream = Terminal()
    run_a_job(ProgressBar(stream), Clock())
    last = stream.getvalue().rstrip().rpartition("\r")[2]
    assert "100%" in last
    assert "10/10 images" in last
    assert "image/s" in last
    assert "25 masks, 1 failed" in last
    assert last.endswith("left")


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
    assert set(Summary.__dataclass_fields__) | {"labeled", "failed", "query"} == set(content)
    assert content["labeled"] == 4
    assert content["failed"] == 2
    assert content["failures"] == [["6.jpg", "decode_error", "it ends early"]]
    assert "'it''s/here/data/*.parquet'" in content["query"]
