"""The JSON lines of a job."""

from __future__ import annotations

import io
import json

from amg.run.logs import JsonLines
from amg.run.progress import Observer
from amg.values import Failure, ImageRef, Receipt, Status
from tests.outputs import mask_set

REF = ImageRef(4, "deep/ü\n.png", "/photos/ü.png")


def test_every_event_is_one_line_of_json() -> None:
    stream, now = io.StringIO(), [1_700_000_000.0]
    log: Observer = JsonLines(stream, clock=lambda: now[0])
    log.start(10, 3)
    now[0] += 1.5
    log.image(mask_set(REF, 4))
    log.image(Failure(REF, Status.MISSING, "it is gone"))
    log.shard(Receipt(2, {"ok": 1, "missing": 1}, 4, True, {"encode": 0.12345}))
    now[0] += 1
    log.finish()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    at = "2023-11-14T22:13:2"
    done, lost = {"key": "deep/ü\n.png", "status": "ok"}, {"key": "deep/ü\n.png", "status": "missing"}
    shard = {"shard": 2, "rows": {"ok": 1, "missing": 1}, "masks": 4, "seconds": {"encode": 0.123}, "won": True}
    assert lines == [
        {"time": f"{at}0.000+00:00", "event": "start", "total": 10, "done": 3},
        {"time": f"{at}1.500+00:00", "event": "image", **done, "masks": 4, "seconds": 0.1},
        {"time": f"{at}1.500+00:00", "event": "image", **lost, "reason": "it is gone"},
        {"time": f"{at}1.500+00:00", "event": "shard", **shard},
        {"time": f"{at}2.500+00:00", "event": "finish", "images": 2, "failed": 1, "masks": 4, "seconds": 2.5},
    ]
    assert stream.getvalue().isascii()


def test_the_end_comes_once_and_only_after_a_start() -> None:
    stream = io.StringIO()
    log = JsonLines(stream)
    log.finish()
    assert stream.getvalue() == ""
    log.start(1, 0)
    log.finish()
    log.finish()
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["start", "finish"]
