"""The metrics of a job: the table, what is recorded when, what Ray exports, and the dashboard that shows it."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from amg.geometry import Size
from amg.run import metrics
from amg.run.metrics import METRICS, DeathCause, DriverMetrics, Metric, NotRecorded, WorkerMetrics
from amg.values import Failure, Image, ImageRef, Receipt, Status
from tests.local_ray import local_ray
from tests.outputs import mask_set

ROOT = Path(__file__).parents[1]
REF = ImageRef(4, "4.png", "/photos/4.png")
EXPORTER_LABELS = {"SessionName", "NodeAddress", "WorkerId"}
"""Labels that Ray's exporter adds and that the dashboard may use."""


class Noted:
    """A Recorder that keeps what it is told, and takes only labels that the table names."""

    def __init__(self) -> None:
        self.sums: Counter[tuple[str, ...]] = Counter()

    def record(self, metric: Metric, value: float, **labels: str) -> None:
        assert labels.keys() == set(metric.labels), metric
        self.sums[metric.name.removeprefix("sam_amg_"), *labels.values()] += value  # type: ignore[assignment]


def tell_everything(worker: WorkerMetrics, driver: DriverMetrics) -> None:
    """Every call once, so that every metric gets a number."""
    worker.image(mask_set(REF, 3))
    worker.image(Failure(REF, Status.MISSING, "it is gone"))
    worker.shard(Receipt(1, {"ok": 1}, 3, True, {"encode": 2.0, "gpu_busy": 5.0, "gpu_idle": 0.5}, 1000))
    worker.shard(Receipt(2, {"ok": 1}, 3, False, {}, 300))
    worker.queue_wait(0.25)
    worker.queue_wait(3.0, waiting="image")
    worker.device_memory(5_000_000, memory="process")
    driver.workers(ready=2, starting=1)
    driver.worker_died("preempted")
    driver.lease_wait(0.01)
    driver.shards(done=3, left=4)
    driver.images(done=30, left=41)
    driver.gave_up()


def test_every_metric_is_in_the_table_once() -> None:
    assert [each for each in vars(metrics).values() if isinstance(each, Metric)] == list(METRICS)
    assert len({each.name for each in METRICS}) == len(METRICS)


def test_a_metric_has_the_name_that_prometheus_wants() -> None:
    for name, kind, unit in [
        ("sam_amg_images", "counter", ""),
        ("sam_amg_images_total", "gauge", ""),
        ("images_total", "counter", ""),
        ("sam_amg_written_total", "counter", "bytes"),
        ("sam_amg_wait", "gauge", "seconds"),
        ("sam_amg_wait_seconds", "histogram", "seconds"),
    ]:
        with pytest.raises(AssertionError):
            Metric(name, kind, unit, "without buckets")  # type: ignore[arg-type]


def test_what_is_recorded_when() -> None:
    noted = Noted()
    tell_everything(WorkerMetrics(noted), DriverMetrics(noted))
    assert noted.sums == {
        ("images_total", "ok"): 1,
        ("images_total", "missing"): 1,
        ("masks_total",): 3,
        ("stage_seconds", "encode"): 0.1,
        ("stage_busy_seconds_total", "encode"): 0.1,
        ("queue_wait_seconds", "model"): 0.25,
        ("queue_wait_seconds", "image"): 3.0,
        ("gpu_seconds_total", "busy"): 5.0,
        ("gpu_seconds_total", "idle"): 0.5,
        ("commits_total", "won"): 1,
        ("commits_total", "lost"): 1,
        ("written_bytes_total",): 1000,
        ("device_memory_bytes", "process"): 5_000_000,
        ("workers", "ready"): 2,
        ("workers", "starting"): 1,
        ("worker_deaths_total", "preempted"): 1,
        ("lease_wait_seconds",): 0.01,
        ("planned_shards", "done"): 3,
        ("planned_shards", "left"): 4,
        ("planned_images", "done"): 30,
        ("planned_images", "left"): 41,
        ("shards_given_up_total",): 1,
    }
    tell_everything(WorkerMetrics(NotRecorded()), DriverMetrics(NotRecorded()))


def test_either_the_model_waits_or_the_image() -> None:
    noted, now = Noted(), [100.0]
    pixels = np.zeros((2, 2, 3), np.uint8)

    def images() -> Iterator[Image | Failure]:
        yield Image(REF, pixels, Size(2, 2), decoded_at=95.0)
        now[0] += 2
        yield Image(REF, pixels, Size(2, 2), decoded_at=now[0])
        yield Failure(REF, Status.MISSING, "it is gone")

    seen = []
    for image in WorkerMetrics(noted).watched(images(), clock=lambda: now[0]):
        seen.append(type(image))
        now[0] += 10
    assert seen == [Image, Image, Failure]
    assert noted.sums == {("queue_wait_seconds", "image"): 5.0, ("queue_wait_seconds", "model"): 2.0}


def test_a_death_has_a_known_cause() -> None:
    noted = Noted()
    for cause in get_args(DeathCause):
        DriverMetrics(noted).worker_died(cause)
    assert set(noted.sums) == {("worker_deaths_total", cause) for cause in get_args(DeathCause)}
    with pytest.raises(AssertionError, match="'boredom' is no cause"):
        DriverMetrics(noted).worker_died("boredom")  # type: ignore[arg-type]


def test_the_memory_of_a_gpu_is_the_most_that_tensors_took(monkeypatch: pytest.MonkeyPatch) -> None:
    from amg.run.on_ray_metrics import record_memory

    monkeypatch.setattr("torch.cuda.max_memory_allocated", {"cuda": 7_000_000}.__getitem__)
    noted = Noted()
    record_memory(WorkerMetrics(noted), "cuda")
    assert noted.sums == {("device_memory_bytes", "gpu"): 7_000_000}


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What Prometheus gets from a Ray node on which an actor and a driver have told everything."""
    with local_ray(tmp_path_factory.mktemp("ray"), metrics_report_interval_ms=200):
        import ray

        from amg.run.on_ray_metrics import RayRecorder, record_memory

        @ray.remote(num_cpus=1)
        class Worker:
            def tell(self) -> None:
                told = WorkerMetrics(RayRecorder("s3://bucket/labels"))
                tell_everything(told, DriverMetrics(NotRecorded()))
                record_memory(told, "cpu")

        worker = Worker.remote()
        ray.get(worker.tell.remote())  # type: ignore[attr-defined]
        tell_everything(WorkerMetrics(NotRecorded()), DriverMetrics(RayRecorder("s3://bucket/labels")))
        (node,) = ray.nodes()
        yield _scrape(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics")


def _scrape(url: str) -> str:
    """The page, once it has every metric, or after 30 s."""
    wanted = {name for each in METRICS for name in exported(each)}
    until = time.monotonic() + 30
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                page = answer.read().decode()
        except OSError:
            page = ""
        if wanted <= names_in(page) or time.monotonic() > until:
            return page
        time.sleep(0.2)


def names_in(text: str) -> set[str]:
    return set(re.findall(r"ray_sam_amg_\w+", text))


def exported(metric: Metric) -> set[str]:
    """Its names at Ray's endpoint."""
    endings = ("_bucket", "_count", "_sum") if metric.kind == "histogram" else ("",)
    return {f"ray_{metric.name}{ending}" for ending in endings}


def samples(page: str, name: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of one name."""
    found = re.findall(rf"^{name}\{{(.*)\}} (\S+)$", page, re.MULTILINE)
    return [(dict(re.findall(r'(\w+)="([^"]*)"', labels)), float(value)) for labels, value in found]


def test_ray_exports_every_metric_under_its_name(scraped: str) -> None:
    kinds = dict(re.findall(r"^# TYPE (ray_sam_amg_\w+) (\w+)$", scraped, re.MULTILINE))
    assert kinds == {f"ray_{each.name}": each.kind for each in METRICS}
    for each in METRICS:
        assert f"# HELP ray_{each.name} {each.description}\n" in scraped
        for name in exported(each):
            assert samples(scraped, name), name
            for labels, _ in samples(scraped, name):
                assert {*each.labels, "output", *EXPORTER_LABELS} <= labels.keys()
                assert labels["output"] == "s3://bucket/labels"


def test_ray_exports_the_numbers_that_were_recorded(scraped: str) -> None:
    def value(name: str, **labels: str) -> float:
        (found,) = [v for each, v in samples(scraped, f"ray_sam_amg_{name}") if labels.items() <= each.items()]
        return found

    assert value("images_total", status="missing") == 1
    assert value("masks_total") == 3
    assert value("written_bytes_total") == 1000
    assert value("planned_images", state="left") == 41
    assert value("worker_deaths_total", cause="preempted") == 1
    assert value("stage_busy_seconds_total", stage="encode") == pytest.approx(0.1)
    assert value("queue_wait_seconds_bucket", waiting="model", le="0.2") == 0
    assert value("queue_wait_seconds_bucket", waiting="model", le="0.5") == 1
    assert value("device_memory_bytes", memory="process") > 50e6


def dashboard() -> dict[str, Any]:
    return json.loads((ROOT / "jobs" / "grafana.json").read_text())


def queries() -> list[tuple[str, str]]:
    """(expression, legend) of every panel."""
    return [(target["expr"], target["legendFormat"]) for each in dashboard()["panels"] for target in each["targets"]]


def test_the_dashboard_shows_every_metric_and_no_other() -> None:
    used = set().union(*(names_in(expression) for expression, _ in queries()))
    known = {name: each for each in METRICS for name in exported(each)}
    assert used <= known.keys()
    assert {known[name].name for name in used} == {each.name for each in METRICS}


def test_the_dashboard_groups_and_filters_by_labels_that_are_there() -> None:
    known = {name: each for each in METRICS for name in exported(each)}
    for expression, legend in queries():
        for name, matchers in re.findall(r"(ray_sam_amg_\w+)\{([^}]*)\}", expression):
            labels = {*known[name].labels, "output", *EXPORTER_LABELS, "le"}
            filtered = dict(re.findall(r'(\w+)=~?"([^"]*)"', matchers))
            assert filtered.pop("SessionName") == "$session" and filtered.pop("output") == "$output"
            assert filtered.keys() <= labels
        shown = set(re.findall(r"\{\{(\w+)\}\}", legend))
        grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\bby \(([^)]*)\)", expression))))
        assert grouped - {"le"} == shown, expression
        assert grouped <= {label for name in names_in(expression) for label in (*known[name].labels, "le")}
        is_rate = re.findall(r"(rate|increase)\((ray_sam_amg_\w+)", expression)
        assert all(known[name].kind != "gauge" for _, name in is_rate)
        assert ("_bucket" in expression) == ("histogram_quantile" in expression)


def test_the_dashboard_has_the_shape_that_grafana_reads() -> None:
    content = dashboard()
    assert content["schemaVersion"] >= 39 and content["uid"] == "sam-amg" and "id" not in content
    variables = {each["name"]: each for each in content["templating"]["list"]}
    assert list(variables) == ["datasource", "session", "output"]
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert all(variables[name]["type"] == "query" for name in ("session", "output"))
    for name in ("session", "output"):
        assert names_in(variables[name]["query"]["query"]) <= {f"ray_{each.name}" for each in METRICS}
    ids = [each["id"] for each in content["panels"]]
    assert len(set(ids)) == len(ids)
    cells: Counter[tuple[int, int]] = Counter()
    for panel in content["panels"]:
        assert panel["type"] in ("stat", "timeseries") and panel["title"] and panel["description"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
        place = panel["gridPos"]
        cells.update((place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"]))
    assert max(cells.values()) == 1, "panels lie on each other"
    assert max(x for x, _ in cells) < 24


def test_the_page_about_metrics_has_the_table() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(ray_sam_amg_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", page, re.MULTILINE)
    labels = [", ".join(f"`{label}`" for label in each.labels) for each in METRICS]
    expected = [(f"ray_{m.name}", m.kind, names, m.description) for m, names in zip(METRICS, labels, strict=True)]
    assert rows == expected
    for cause in get_args(DeathCause):
        assert f"`{cause}`" in page
