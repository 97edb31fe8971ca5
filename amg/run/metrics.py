"""What a job tells a monitoring system: every metric in one table, and who records which.

A `Recorder` takes the numbers; this module knows neither Ray nor Prometheus. Names, units and suffixes follow
Prometheus; `on_ray_metrics` has the recorder for jobs on Ray, where names get the prefix `ray_`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from amg.values import GPU_BUSY, GPU_IDLE, Failure, Image, MaskSet, Receipt, Status, stages

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["", "seconds", "bytes"]
DeathCause = Literal["crash", "timeout", "out_of_memory", "node_died", "preempted", "interrupted", "error"]
"""Why a worker ended before its work was done. `interrupted`: somebody stopped it; `error`: it could not go on."""
Waiting = Literal["model", "image"]
"""Who waits between decoding and the model: the model for its next image, or a decoded image for the model."""

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
"""Upper ends of the buckets of a histogram of seconds."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One name, what is recorded under it, and by which labels it is told apart; `buckets` only of a histogram."""

    name: str
    kind: Kind
    unit: Unit
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        assert self.name.startswith("sam_amg_") and self.name.endswith("_total") == (self.kind == "counter"), self
        assert self.name.removesuffix("_total").endswith(self.unit), f"{self.name} does not end with {self.unit}"
        assert bool(self.buckets) == (self.kind == "histogram"), f"{self.name}: buckets {self.buckets}"


IMAGES = Metric("sam_amg_images_total", "counter", "", "Images that workers were done with.", ("status",))
MASKS = Metric("sam_amg_masks_total", "counter", "", "Masks that workers made.")
STAGE = Metric(
    "sam_amg_stage_seconds", "histogram", "seconds", "Time of one labeled image in a stage.", ("stage",), SECONDS
)
STAGE_BUSY = Metric(
    "sam_amg_stage_busy_seconds_total", "counter", "seconds", "Time of all labeled images in a stage.", ("stage",)
)
QUEUE_WAIT = Metric(
    "sam_amg_queue_wait_seconds",
    "histogram",
    "seconds",
    "Between decoding and the model: how long the model waited for an image, or a decoded image for the model.",
    ("waiting",),
    SECONDS,
)
GPU_SECONDS = Metric(
    "sam_amg_gpu_seconds_total",
    "counter",
    "seconds",
    "While images were labeled: seconds in which a worker's GPU had work, and in which not.",
    ("state",),
)
COMMITS = Metric(
    "sam_amg_commits_total",
    "counter",
    "",
    "Shards that workers finished: won, or lost to another worker that had made the same shard first.",
    ("outcome",),
)
WRITTEN = Metric("sam_amg_written_bytes_total", "counter", "bytes", "Bytes of the shards that were won.")
DEVICE_MEMORY = Metric(
    "sam_amg_device_memory_bytes",
    "gauge",
    "bytes",
    "Most memory that tensors of a worker took on its GPU, or what its process holds where it has none.",
    ("memory",),
)
WORKERS = Metric("sam_amg_workers", "gauge", "", "Workers that label, and workers that are being started.", ("state",))
WORKER_DEATHS = Metric(
    "sam_amg_worker_deaths_total", "counter", "", "Workers that ended before their work was done.", ("cause",)
)
LEASE_WAIT = Metric(
    "sam_amg_lease_wait_seconds",
    "histogram",
    "seconds",
    "Time from the end of a worker's shard to the start of its next one.",
    (),
    SECONDS,
)
PLANNED_SHARDS = Metric("sam_amg_planned_shards", "gauge", "", "Shards of the plan, done and left.", ("state",))
PLANNED_IMAGES = Metric("sam_amg_planned_images", "gauge", "", "Images of the plan, done and left.", ("state",))
GIVEN_UP = Metric("sam_amg_shards_given_up_total", "counter", "", "Shards whose workers died again and again.")

METRICS = (
    *(IMAGES, MASKS, STAGE, STAGE_BUSY, QUEUE_WAIT, GPU_SECONDS, COMMITS, WRITTEN, DEVICE_MEMORY),
    *(WORKERS, WORKER_DEATHS, LEASE_WAIT, PLANNED_SHARDS, PLANNED_IMAGES, GIVEN_UP),
)
COMMON_LABELS = ("output",)
"""Labels of every metric, beside its own: where the job writes to."""


class Recorder(Protocol):
    """Takes one number: adds it to a counter, sets a gauge to it, or counts it in a histogram's buckets."""

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        """`labels` are exactly those of `metric`."""
        ...


class NotRecorded:
    """Where nobody collects metrics."""

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        pass


class WorkerMetrics:
    """What one worker has to tell. Counts tries: an image that is tried twice counts twice."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def image(self, result: MaskSet | Failure) -> None:
        """An image is done."""
        if isinstance(result, Failure):
            self._recorder.record(IMAGES, 1, status=str(result.status))
            return
        self._recorder.record(IMAGES, 1, status=str(Status.OK))
        self._recorder.record(MASKS, len(result))
        for stage, seconds in stages(result.seconds).items():
            self._recorder.record(STAGE, seconds, stage=stage)
            self._recorder.record(STAGE_BUSY, seconds, stage=stage)

    def shard(self, receipt: Receipt) -> None:
        """A shard is finished, whoever's file it became."""
        self._recorder.record(COMMITS, 1, outcome="won" if receipt.won else "lost")
        for name in (GPU_BUSY, GPU_IDLE):
            if name in receipt.seconds:
                self._recorder.record(GPU_SECONDS, receipt.seconds[name], state=name.removeprefix("gpu_"))
        if receipt.won:
            self._recorder.record(WRITTEN, receipt.size_bytes)

    def watched(
        self, images: Iterable[Image | Failure], *, clock: Callable[[], float] = time.perf_counter
    ) -> Iterator[Image | Failure]:
        """The images on their way to the model; records how long it waited for each, and each that is whole for it."""
        asked = clock()
        for image in images:
            self.queue_wait(clock() - asked, waiting="model")
            if isinstance(image, Image) and image.decoded_at:
                self.queue_wait(max(0.0, asked - image.decoded_at), waiting="image")
            yield image
            asked = clock()

    def queue_wait(self, seconds: float, *, waiting: Waiting = "model") -> None:
        self._recorder.record(QUEUE_WAIT, seconds, waiting=waiting)

    def device_memory(self, size_bytes: int, *, memory: Literal["gpu", "process"]) -> None:
        self._recorder.record(DEVICE_MEMORY, size_bytes, memory=memory)


class DriverMetrics:
    """What the driver has to tell of the whole job."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def workers(self, *, ready: int, starting: int) -> None:
        self._recorder.record(WORKERS, ready, state="ready")
        self._recorder.record(WORKERS, starting, state="starting")

    def worker_died(self, cause: DeathCause) -> None:
        assert cause in get_args(DeathCause), f"{cause!r} is no cause of a death; wanted {get_args(DeathCause)}"
        self._recorder.record(WORKER_DEATHS, 1, cause=cause)

    def lease_wait(self, seconds: float) -> None:
        """A ready worker had nothing to do for so long."""
        self._recorder.record(LEASE_WAIT, seconds)

    def shards(self, *, done: int, left: int) -> None:
        self._recorder.record(PLANNED_SHARDS, done, state="done")
        self._recorder.record(PLANNED_SHARDS, left, state="left")

    def images(self, *, done: int, left: int) -> None:
        self._recorder.record(PLANNED_IMAGES, done, state="done")
        self._recorder.record(PLANNED_IMAGES, left, state="left")

    def gave_up(self) -> None:
        """A shard was given up."""
        self._recorder.record(GIVEN_UP, 1)
