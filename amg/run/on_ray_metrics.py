"""Metrics through Ray: each process of a job, driver or actor, hands its numbers to the Ray node that it runs on."""

from __future__ import annotations

from collections.abc import Mapping

import psutil
from ray.util import metrics as ray_metrics

from amg.run.metrics import COMMON_LABELS, METRICS, Metric, WorkerMetrics

_Instrument = ray_metrics.Counter | ray_metrics.Gauge | ray_metrics.Histogram


class RayRecorder:
    """One for a process, after `ray.init`. `output`, the URL that the job writes to, is a label of every number."""

    def __init__(self, output: str) -> None:
        self._instruments: Mapping[str, _Instrument] = {each.name: _instrument(each) for each in METRICS}
        for instrument in self._instruments.values():
            instrument.set_default_tags({"output": output})

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        assert labels.keys() == set(metric.labels), f"{metric.name} got {sorted(labels)}, wanted {metric.labels}"
        instrument = self._instruments[metric.name]
        if isinstance(instrument, ray_metrics.Gauge):
            instrument.set(value, labels)
        elif isinstance(instrument, ray_metrics.Histogram):
            instrument.observe(value, labels)
        elif value > 0:  # Ray refuses to add nothing to a counter
            instrument.inc(value, labels)


def record_memory(metrics: WorkerMetrics, device: str) -> None:
    """The memory of a worker that has loaded its model on `device`, such as `cuda:0`."""
    if device.startswith("cuda"):
        import torch

        metrics.device_memory(torch.cuda.max_memory_allocated(device), memory="gpu")
    else:
        metrics.device_memory(psutil.Process().memory_info().rss, memory="process")


def _instrument(metric: Metric) -> _Instrument:
    labels = (*COMMON_LABELS, *metric.labels)
    match metric.kind:
        case "counter":
            return ray_metrics.Counter(metric.name, metric.description, labels)
        case "gauge":
            return ray_metrics.Gauge(metric.name, metric.description, labels)
        case "histogram":
            return ray_metrics.Histogram(metric.name, metric.description, list(metric.buckets), labels)
