"""One worker on Ray: an actor that loads the model once and labels what it is leased. Imports Ray nowhere.

The driver takes what a lease yields, message by message. In isolation the actor waits until a `Began` has been taken,
so that the driver knows which image was in hand whatever that image does next.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from amg.run import gpu_memory
from amg.run.leases import Lease
from amg.run.metrics import WorkerMetrics
from amg.run.shard import Job, Label, OpenLabel, Result, label_shard
from amg.run.worker import Began, Broken, Elsewhere, Message, Ready, Seen, sendable, without_runs
from amg.values import Failure, Image, ImageRef, Receipt

SECONDS_BETWEEN_MESSAGES = 0.5
"""Images that are done in less than this are told together."""


class RayWorker:
    """`job` and `open_label` as in `run_job`."""

    def __init__(self, job: Job, open_label: OpenLabel, device: str) -> None:
        self._job, self._open_label, self._device = job, open_label, device
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="amg-label")  # the model keeps its threads with it
        self._label: Label | None = None
        self._metrics: WorkerMetrics | None = None

    def open(self) -> Ready | Broken:
        """Load the model."""
        warnings.filterwarnings("ignore", module="PIL")
        gpu_memory.keep_whole()
        try:
            self._metrics = _metrics(self._job.store.url)
            self._label = self._thread.submit(self._open_label, self._device).result()
        except Exception as error:
            return Broken(sendable(error))
        return Ready(f"{os.uname().nodename}, process {os.getpid()}")

    def label(self, lease: Lease) -> Iterator[Message]:
        """Label a shard; at last its `Receipt`, or what kept it from being made."""
        telling = _Telling(lease)
        work = self._thread.submit(self._work, lease, telling)
        yield from telling
        work.result()

    def _work(self, lease: Lease, telling: _Telling) -> None:
        assert self._label is not None and self._metrics is not None, "a lease before the model is loaded"
        label, metrics = self._label, self._metrics

        def watched(images: Iterable[Image | Failure]) -> Iterator[Result]:
            return label(metrics.watched(images))

        def seen(result: Result) -> None:
            metrics.image(result)
            telling.seen(without_runs(result))

        try:
            if self._job.store.exists(lease.shard.path):
                telling.end(Elsewhere())
                return
            receipt = label_shard(lease, self._job, watched, seen=seen, begin=telling.begin)
            metrics.shard(receipt)
            _record_memory(metrics, self._device)
            telling.end(receipt)
        except Exception as error:
            telling.end(Broken(sendable(error)))


class _Telling:
    """What one lease has to tell: filled by the thread that labels, emptied by the actor's generator."""

    def __init__(self, lease: Lease) -> None:
        self._isolated = lease.isolated
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._taken = threading.Semaphore(0)
        self._waiting: list[Result] = []
        self._told = time.monotonic()

    def __iter__(self) -> Iterator[Message]:
        while (message := self._queue.get()) is not None:
            yield message
            if isinstance(message, Began):  # the generator goes on when the driver has it
                self._taken.release()

    def begin(self, ref: ImageRef) -> None:
        self._queue.put(Began(ref.row))
        self._taken.acquire()

    def seen(self, result: Result) -> None:
        self._waiting.append(result)
        if self._isolated or time.monotonic() - self._told >= SECONDS_BETWEEN_MESSAGES:
            self._tell()

    def end(self, message: Receipt | Elsewhere | Broken) -> None:
        self._tell()
        self._queue.put(message)
        self._queue.put(None)

    def _tell(self) -> None:
        if self._waiting:
            self._queue.put(Seen(tuple(self._waiting)))
            self._waiting = []
        self._told = time.monotonic()


def _metrics(output: str) -> WorkerMetrics:
    from amg.run.on_ray_metrics import RayRecorder

    return WorkerMetrics(RayRecorder(output))


def _record_memory(metrics: WorkerMetrics, device: str) -> Any:
    from amg.run.on_ray_metrics import record_memory

    record_memory(metrics, device)
