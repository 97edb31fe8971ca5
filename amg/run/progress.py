"""What a person sees of a job while it runs and when it is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TextIO

from tqdm import tqdm

from amg.run.pace import Pace
from amg.values import GPU_BUSY, GPU_IDLE, Failure, MaskSet, Receipt, Status, stages

STAGES_SHOWN = 8
SECONDS_BETWEEN_LINES = 30.0
BAR_FORMAT = "{percentage:3.0f}% |{bar}| {pace}"
COLUMNS_OF_BAR = 8
"""What the percentage and the shortest bar take of a line."""


class Observer(Protocol):
    """Is told what happens in a job, in this order; `finish` may come twice and comes after an error too."""

    def start(self, total: int, done: int) -> None:
        """The plan has `total` images, of which `done` had a row before this run."""

    def note(self, text: str) -> None:
        """Something a person should know; may come before `start`."""
        ...

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        """An image of this shard is done."""
        ...

    def shard(self, receipt: Receipt) -> None: ...

    def workers(self, up: int, lost: int) -> None:
        """In a job with workers: how many can label now, and how many have ended too early since the start."""

    def finish(self) -> None: ...


class Silent:
    """Says nothing."""

    def start(self, total: int, done: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        pass

    def shard(self, receipt: Receipt) -> None:
        pass

    def workers(self, up: int, lost: int) -> None:
        pass

    def finish(self) -> None:
        pass


class ProgressBar:
    """One line of a terminal that redraws itself; `Pace` says what is in it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bar: _Bar | None = None
        self._pace = Pace()

    def start(self, total: int, done: int) -> None:
        self._bar = _Bar(self._pace, self._stream, total, done)

    def note(self, text: str) -> None:
        tqdm.write(text, file=self._stream)

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        assert self._bar is not None, "image() before start()"
        self._pace.image(result)
        self._bar.update(1)

    def shard(self, receipt: Receipt) -> None:
        self._pace.shard(receipt)

    def workers(self, up: int, lost: int) -> None:
        self._pace.workers(up, lost)
        if self._bar is not None:
            self._bar.refresh()

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.close()


class _Bar(tqdm):
    """Puts its words together when it is drawn, not for every image."""

    def __init__(self, pace: Pace, stream: TextIO, total: int, done: int) -> None:
        self._pace = pace
        super().__init__(total=total, initial=done, file=stream, dynamic_ncols=True, bar_format=BAR_FORMAT)

    @property
    def format_dict(self) -> dict[str, Any]:
        """What `BAR_FORMAT` may name."""
        shown = super().format_dict
        labeled = shown["n"] - shown["initial"]
        rate = shown["rate"] or (labeled / shown["elapsed"] if shown["elapsed"] else None)
        columns = shown["ncols"] and shown["ncols"] - COLUMNS_OF_BAR
        return {**shown, "pace": self._pace.describe(shown["n"], shown["total"], rate, columns=columns)}


class ProgressLines:
    """For log files and pipes: a line at the start, every half minute and at the end; failures and lost workers."""

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Callable[[], float] = time.monotonic,
        every_seconds: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._every_seconds = every_seconds
        self._pace = Pace()
        self._total = self._before = self._reported = 0
        self._started = self._last = 0.0
        self._running = False

    def start(self, total: int, done: int) -> None:
        self._total, self._before = total, done
        self._started = self._last = self._clock()
        self._running = True
        self._print(f"{total} images, {done} of them done before" if done else f"{total} images")

    def note(self, text: str) -> None:
        self._print(text)

    def image(self, result: MaskSet | Failure, shard: int) -> None:
        self._pace.image(result)
        if isinstance(result, Failure):
            self._print(f"failed: {result.ref.key}: {result.status}: {result.reason}")
        if self._clock() - self._last >= self._every_seconds:
            self._report()

    def shard(self, receipt: Receipt) -> None:
        self._pace.shard(receipt)

    def workers(self, up: int, lost: int) -> None:
        if lost > self._pace.lost:
            self._print(f"lost {_plural(lost - self._pace.lost, 'worker')}, {lost} in all; {up} up")
        self._pace.workers(up, lost)

    def finish(self) -> None:
        if self._running and self._pace.images != self._reported:
            self._report()
        self._running = False

    def _report(self) -> None:
        self._last, self._reported = self._clock(), self._pace.images
        seconds = self._last - self._started
        rate = self._pace.images / seconds if seconds > 0 else None
        self._print(self._pace.describe(self._before + self._pace.images, self._total, rate))

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)


def observer_for(stream: TextIO) -> Observer:
    """A bar on a terminal, lines elsewhere."""
    return ProgressBar(stream) if stream.isatty() else ProgressLines(stream)


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run came to.

    `rows` counts this run's rows by status; `failures` are its first (key, status, reason); `arithmetic` says in words
    which one the model did, and why.
    """

    out: str
    planned: int
    already_done: int
    rows: Mapping[str, int]
    failures: tuple[tuple[str, str, str], ...]
    masks: int
    seconds: Mapping[str, float]
    wall_seconds: float
    peak_memory_mb: float
    shards_written: int
    arithmetic: str = ""

    @property
    def labeled(self) -> int:
        return self.rows.get(Status.OK, 0)

    @property
    def failed(self) -> int:
        return sum(self.rows.values()) - self.labeled

    @property
    def gpu_idle(self) -> float | None:
        """The share of the time in which a GPU had no work, over all workers; None where none was used."""
        busy, idle = self.seconds.get(GPU_BUSY, 0.0), self.seconds.get(GPU_IDLE, 0.0)
        return idle / (busy + idle) if busy else None

    @property
    def query(self) -> str:
        """SQL that DuckDB runs on the output as it lies."""
        files = f"{self.out.rstrip('/')}/data/*.parquet".replace("'", "''")
        return f"select key, status, num_masks, error from '{files}' order by image_id"

    def to_json(self) -> str:
        """One line of JSON: the fields, the counts drawn from them and the query."""
        derived = {"labeled": self.labeled, "failed": self.failed, "gpu_idle": self.gpu_idle, "query": self.query}
        return json.dumps(asdict(self) | derived, ensure_ascii=False)

    def render(self) -> str:
        """The same for a person, over several lines."""
        lines = [self._headline(), *self._failure_lines()]
        if self.labeled:
            lines.append(f"  masks        {self.masks}, {self.masks / self.labeled:.1f} an image")
        lines.append(f"  time         {_duration(self.wall_seconds)}{self._stages()}")
        lines.append(f"  peak memory  {self.peak_memory_mb:.0f} MB")
        if self.gpu_idle is not None:
            lines.append(f"  GPU idle     {self.gpu_idle:.0%} of the time in which images were labeled")
        if self.arithmetic:
            lines.append(f"  arithmetic   {self.arithmetic}")
        lines.append(
            f"  output       {self.out.rstrip('/')}/data, {_plural(self.shards_written, 'shard')} written in this run"
        )
        lines.append(f"  DuckDB       {self.query}")
        return "\n".join(lines)

    def _headline(self) -> str:
        counted = [_plural(self.planned, "image")]
        if self.already_done:
            counted.append(f"{self.already_done} done before")
        counted += [f"{self.labeled} labeled", f"{self.failed} failed"]
        left = self.planned - self.already_done - sum(self.rows.values())
        return ", ".join([*counted, f"{left} left"] if left > 0 else counted)

    def _failure_lines(self) -> list[str]:
        lines = [f"  {status}  {key}: {reason}" for key, status, reason in self.failures]
        more = self.failed - len(self.failures)
        return [*lines, f"  and {more} more"] if more > 0 and lines else lines

    def _stages(self) -> str:
        longest = sorted(stages(self.seconds).items(), key=lambda stage: -stage[1])[:STAGES_SHOWN]
        told = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in longest if seconds >= 0.05)
        return f" ({told})" if told else ""


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
