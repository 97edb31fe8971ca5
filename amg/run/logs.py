"""A job's events as JSON, one object a line, for programs that collect logs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TextIO

from amg.values import Failure, MaskSet, Receipt, Status


class JsonLines:
    """An Observer. Every line has `time` (ISO 8601, UTC) and `event`: `note`, `start`, `image`, `shard` or
    `finish`.

    note    text: something a person should know
    start   total, done: images of the plan, and those that had a row before
    image   key, status; masks and seconds where it is `ok`, reason where it is not
    shard   shard, rows by status, masks, seconds per stage, won: whether this run's file became the shard
    finish  images, failed, masks of this run; seconds since the start
    """

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.time) -> None:
        self._stream = stream
        self._clock = clock
        self._started: float | None = None
        self._images = self._failed = self._masks = 0

    def start(self, total: int, done: int) -> None:
        self._started = self._clock()
        self._write("start", total=total, done=done)

    def note(self, text: str) -> None:
        self._write("note", text=text)

    def image(self, result: MaskSet | Failure) -> None:
        self._images += 1
        key = result.ref.key
        if isinstance(result, Failure):
            self._failed += 1
            self._write("image", key=key, status=str(result.status), reason=result.reason)
        else:
            self._masks += len(result)
            seconds = round(sum(result.seconds.values()), 3)
            self._write("image", key=key, status=str(Status.OK), masks=len(result), seconds=seconds)

    def shard(self, receipt: Receipt) -> None:
        seconds = {stage: round(spent, 3) for stage, spent in receipt.seconds.items()}
        self._write(
            "shard",
            shard=receipt.shard,
            rows=dict(receipt.rows),
            masks=receipt.masks,
            seconds=seconds,
            won=receipt.won,
        )

    def finish(self) -> None:
        """Once, and only of a job that started."""
        if self._started is None:
            return
        seconds = round(self._clock() - self._started, 3)
        self._started = None
        self._write("finish", images=self._images, failed=self._failed, masks=self._masks, seconds=seconds)

    def _write(self, event: str, **values: Any) -> None:
        """A line in one call, so that lines of several threads do not mix."""
        when = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="milliseconds")
        self._stream.write(json.dumps({"time": when, "event": event, **values}) + "\n")
        self._stream.flush()
