"""A whole job on Ray: on a cluster that comes and goes, or on a Ray that is started here for the time of the job.

The driver holds no state: what is done lies in the output, so whatever dies, the same command goes on. Every machine
must see the images, the output and the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Unpack

import ray

from amg.config import Config, RunSettings
from amg.errors import ConfigError
from amg.run.job import Hands
from amg.run.local import open_label, settle
from amg.run.metrics import DriverMetrics
from amg.run.on_ray_metrics import RayRecorder
from amg.run.plan import Plan
from amg.run.progress import Observer, Summary
from amg.run.ray_crew import RayCrew, reserve
from amg.run.ray_session import connected
from amg.run.runner import Asked, Settled, run_with
from amg.run.shard import Label, OpenLabel
from amg.sam import weights
from amg.sources.inputs import open_source


def run_on_ray(
    inputs: Sequence[str], out: str, config: Config, *, observer: Observer, **asked: Unpack[Asked]
) -> Summary:
    """`run_with` with actors on Ray as workers; `asked`: its `limit` and `overwrite`."""
    with on_ray(config.run) as runner:
        return run_with(runner, open_source(*inputs), out, config, observer=observer, **asked)


@contextmanager
def on_ray(run: RunSettings) -> Iterator[OnRay]:
    """The runner, and a connection to Ray from when it settles a job: one that is refused before needs none."""
    with ExitStack() as stack:
        yield OnRay(lambda: stack.enter_context(connected(run)))


class OnRay:
    """The runner of the Ray that `connect` connects to. Pins are those of as many workers on this machine."""

    def __init__(self, connect: Callable[[], object]) -> None:
        self._connect = connect

    def settle(self, config: Config, plan: Plan | None) -> Settled:
        self._connect()
        return settle(config, plan, devices=[pick_device(config.run)] * (config.run.workers or 1))

    def hands(self, settled: Settled, output: str, *, may_end: bool = False) -> Hands:
        return actors(partial(open_on_worker, settled.depends_on["weights.sha256"], settled.config), settled, output)


def actors(label: OpenLabel, settled: Settled, output: str) -> Hands:
    """As many as `run.workers` says, or as there is room for."""
    config, device = settled.config, settled.devices[0]
    crew = partial(RayCrew, device, reserve(config, device), config.run.workers)
    return Hands(label, device, crew, settled.expected_seconds, DriverMetrics(RayRecorder(output)))


def open_on_worker(sha256: str, config: Config, device: str) -> Label:
    """`open_label` on whatever machine this is, with the weights of the plan or none."""
    checkpoint, _ = weights.checked_file(config.model.weights, sha256=sha256)
    return open_label(checkpoint, config, device)


def pick_device(run: RunSettings) -> str:
    """`cuda` or `cpu`: what is said, or with `auto` what the cluster has now."""
    if run.device == "auto":
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        return "cuda" if run.gpus_per_worker or (has_gpus and run.gpus_per_worker is None) else "cpu"
    if run.device not in ("cpu", "cuda"):
        raise ConfigError(f"run.device is {run.device!r}: on Ray it is auto, cpu or cuda, and Ray chooses which one")
    return run.device
