"""A retry on Ray."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from amg.run.metrics import DriverMetrics
from amg.run.on_ray import open_on_worker, pick_device
from amg.run.on_ray_metrics import RayRecorder
from amg.run.progress import Observer
from amg.run.ray_crew import RayCrew, reserve
from amg.run.ray_session import connected
from amg.run.retry import Retried, ask, described, label_again, nothing_to_retry, settled_for


def retry_on_ray(
    folder: str, statuses: Collection[str], given: Mapping[str, Any] | None = None, *, observer: Observer
) -> Retried:
    """As `retry_local`, with actors on Ray as workers; every machine must see `folder`, its images and the weights."""
    began = time.perf_counter()
    retry = ask(folder, statuses, given or {})
    if retry is None:
        return nothing_to_retry(statuses)
    retry.store.sweep()
    run = retry.config.run
    with connected(run):
        device = pick_device(run)
        settled = settled_for(retry, devices=[device])
        retried = label_again(
            retry,
            settled,
            partial(open_on_worker, settled.depends_on["weights.sha256"], settled.config),
            device=device,
            crew=partial(RayCrew, device, reserve(settled.config, device), run.workers),
            workers=run.workers or 1,
            observer=observer,
            metrics=DriverMetrics(RayRecorder(retry.store.url)),
        )
    return described(retried, folder, settled, time.perf_counter() - began)
