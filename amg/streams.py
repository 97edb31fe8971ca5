"""Several threads with one GPU: a stream for each, and how long the GPU had work from any of them.

On a CPU the same calls do nothing, or read the clock, so what uses them runs and is tested there too.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Span = tuple[float, float]


class Streams:
    """Each thread that asks gets a stream of its own, on which it then works; made when it asks first."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    @contextmanager
    def own(self) -> Iterator[None]:
        """Work on the calling thread's stream, behind what its default stream has been given before."""
        if self._device.type != "cuda":
            yield
            return
        with torch.cuda.device(self._device):
            if not hasattr(self._own, "stream"):
                self._own.stream = torch.cuda.Stream()
                self._own.stream.wait_stream(torch.cuda.default_stream())
            with torch.cuda.stream(self._own.stream):
                yield


class Busy:
    """For how many seconds a device had work, however many threads gave it some at the same time."""

    def __init__(self, device: torch.device) -> None:
        self._is_cuda = device.type == "cuda"
        self._began = self._mark()
        if isinstance(self._began, torch.cuda.Event):
            self._began.synchronize()
        self._spans: list[Span] = []
        self._lock = threading.Lock()
        self._own = threading.local()

    @contextmanager
    def work(self) -> Iterator[None]:
        """What is given to the calling thread's stream meanwhile is work."""
        start = self._mark()
        yield
        self._pending().append((start, self._mark()))

    def settle(self) -> float:
        """Wait for this thread's work; the seconds it has added to those in which the device had any."""
        spans = [(self._seconds(start), self._seconds(end)) for start, end in self._pending()]
        self._pending().clear()
        with self._lock:
            before = _total(self._spans)
            self._spans = _union([*self._spans, *spans])
            return _total(self._spans) - before

    def _pending(self) -> list[tuple[torch.cuda.Event | float, torch.cuda.Event | float]]:
        if not hasattr(self._own, "pending"):
            self._own.pending = []
        return self._own.pending

    def _mark(self) -> torch.cuda.Event | float:
        if not self._is_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, mark: torch.cuda.Event | float) -> float:
        """Since this object was made."""
        if isinstance(mark, torch.cuda.Event) and isinstance(self._began, torch.cuda.Event):
            mark.synchronize()
            return self._began.elapsed_time(mark) / 1000
        assert not isinstance(mark, torch.cuda.Event) and not isinstance(self._began, torch.cuda.Event)
        return mark - self._began


def _union(spans: list[Span]) -> list[Span]:
    """The same seconds, in order and none twice."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _total(spans: list[Span]) -> float:
    return sum(end - start for start, end in spans)
