"""A job's events as JSON, one object a line, for programs that collect logs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from amg.run.pace import Pace
from amg.values import Failure, MaskSet, Receipt, Status, stages


class JsonLines:
    """An Observer. Every line has `time` (ISO 8601, UTC) and `event`: `note`, `start`, `image`, `shard`, `workers` or
    `finish`.

    note     text: something a person should know
    start    total, done: images of the plan, and those that had a row before
    image    key, image_id, shard, status; masks and seconds where it is `ok`, reason where it is not
    shard    shard, rows by status, masks, seconds per stage, bytes of its file, won: whether this run's file became it
    workers  up: how many can label now; lost: how many have ended too early since the start
    finish   images, failed, masks, bytes of this run; seconds since the start
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._started: float | None = None
        self._pace = Pace()

    def start(self, total: int, done: int) -> None:
        self._started = self._clock()
        self._write("start", total=total, done=done)

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        self._pace.image(result)
        of = {"key": result.ref.key, "image_id": result.ref.row, "shard": shard}
        if isinstance(result, Failure):
            self._write("image", **of, status=str(result.status), reason=result.reason)
        else:
            seconds = round(sum(stages(result.seconds).values()), 3)
            self._write("image", **of, status=str(Status.OK), masks=len(result), seconds=seconds)

    def shard(self, receipt: Receipt) -> None:
        self._pace.shard(receipt)
        self._write(
            "shard",
            shard=receipt.shard,
            rows=dict(receipt.rows),
            masks=receipt.masks,
            seconds={stage: round(spent, 3) for stage, spent in receipt.seconds.items()},
            bytes=receipt.size_bytes,
            won=receipt.won,
        )

    def workers(self, up: int, lost: int) -> None:
        if (up, lost) != (self._pace.up, self._pace.lost):
            self._pace.workers(up, lost)
            self._write("workers", up=up, lost=lost)

    def finish(self) -> None:
        """Once, and only of a job that started."""
        if self._started is None:
            return
        seconds = round(self._clock() - self._started, 3)
        self._started = None
        counts = {"images": self._pace.images, "failed": self._pace.failed, "masks": self._pace.masks}
        self._write("finish", **counts, bytes=self._pace.written_bytes, seconds=seconds)

    def _write(self, event: str, **values: Any) -> None:
        """A line in one call, so that lines of several threads do not mix."""
        when = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        self._stream.write(json.dumps({"time": when, "event": event, **values}) + "\n")
        self._stream.flush()
