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
    log.workers(2, 0)
    log.workers(2, 0)
    log.image(mask_set(REF, 4), 2)
    log.image(Failure(REF, Status.MISSING, "it is gone"), 3)
    log.workers(1, 1)
    log.shard(Receipt(2, {"ok": 1, "missing": 1}, 4, True, {"encode": 0.12345}, 1234))
    log.shard(Receipt(3, {"ok": 2}, 4, False, {}, 1000))
    now[0] += 1
    log.finish()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line.pop("time") for line in lines] == [
        "2023-11-14T22:13:20.000+00:00",
        *["2023-11-14T22:13:21.500+00:00"] * 6,
        "2023-11-14T22:13:22.500+00:00",
    ]
    image = {"event": "image", "key": "deep/ü\n.png", "image_id": 4}
    won = {"rows": {"ok": 1, "missing": 1}, "masks": 4, "seconds": {"encode": 0.123}, "bytes": 1234, "won": True}
    lost = {"rows": {"ok": 2}, "masks": 4, "seconds": {}, "bytes": 1000, "won": False}
    assert lines == [
        {"event": "start", "total": 10, "done": 3},
        {"event": "workers", "up": 2, "lost": 0},
        {**image, "shard": 2, "status": "ok", "masks": 4, "seconds": 0.1},
        {**image, "shard": 3, "status": "missing", "reason": "it is gone"},
        {"event": "workers", "up": 1, "lost": 1},
        {"event": "shard", "shard": 2, **won},
        {"event": "shard", "shard": 3, **lost},
        {"event": "finish", "images": 2, "failed": 1, "masks": 4, "bytes": 1234, "seconds": 2.5},
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
