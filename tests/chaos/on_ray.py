"""Jobs on a Ray cluster whose workers, drivers and machines are killed at random moments.

The cluster is one of raylets on this machine. A job may write to a folder, to a disk that runs full or to a faulty
object store.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from amg.run.verify import verify_output
from tests.chaos.disk import enlarge
from tests.chaos.killer import faults, finish, start
from tests.local_ray import environment

KINDS = (
    "SIGKILL worker",
    "SIGSTOP worker",
    "SIGINT driver",
    "SIGKILL driver",
    "SIGKILL driver group",
    "SIGKILL raylet",
)
WEIGHTS = (8, 2, 1, 2, 1, 2)
NODES = 2
SMALL = {"object_store_memory": 100 * 2**20}
NOTICED_SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""A lost node is known after three seconds, instead of fifteen."""
SETTINGS = ("shards.images_per_shard=10", "run.image_timeout_s=10", "run.threads=1")
SECONDS_TO_END = 600.0
FULL, ENLARGED = "No space left on device; make room on that disk", "1g"


@dataclass(slots=True)
class ChaosOnRay:
    """What happened. `exits` counts exit statuses of drivers that were not struck; `wrong` should be empty."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    exits: dict[str, int] = field(default_factory=dict)
    outputs: int = 0
    two_at_once: int = 0
    full_disks: int = 0
    wrong: list[str] = field(default_factory=list)


@contextmanager
def cluster_of_raylets(folder: Path) -> Iterator[Cluster]:
    """A head without cores and `NODES` nodes with one each; jobs find it by RAY_ADDRESS."""
    with environment(folder) as patch:
        head = {"num_cpus": 0, "include_dashboard": False, "_system_config": NOTICED_SOON, **SMALL}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(NODES):
                cluster.add_node(num_cpus=1, **SMALL)
            cluster.wait_for_nodes()
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield cluster
        finally:
            cluster.shutdown()


def chaos_on_ray(
    places: Sequence[str],
    photos: Path,
    undisturbed: Sequence[dict[str, Any]],
    cluster: Cluster,
    *,
    kills: int,
    seed: int,
    disk: Path | None = None,
) -> ChaosOnRay:
    """Strike until `kills` have hit, at jobs that write to one place after the other; then let calm jobs finish all.

    `disk`: one of the places, which gets larger when a driver says that it is full, or before the calm job.
    """
    seen, rng = ChaosOnRay(), random.Random(seed)
    while sum(seen.kills.values()) < kills:
        out = f"{places[seen.outputs % len(places)]}/out-{seen.outputs}"
        seen.outputs += 1
        _strike_until_done(out, photos, cluster, seen, rng, kills, disk)
        if disk is not None and out.startswith(str(disk)):
            enlarge(disk, ENLARGED)
        status, said = finish(job(photos, out), timeout=SECONDS_TO_END)
        if status:
            seen.wrong.append(f"{out}: the calm run ended with {status}: {said[-2000:]}")
        seen.wrong += [f"{out}: {fault}" for fault in faults(out, undisturbed, comparable)]
        verify_output(out, found=lambda finding, out=out: seen.wrong.append(f"{out}: {finding}"))
    return seen


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    """A row without how exactly its image ended workers: one that hangs may be killed before its time is up."""
    return row | {"status": "ended workers", "error": None} if row["status"] in ("crash", "timeout") else row


def job(photos: Path, out: str) -> subprocess.Popen[str]:
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    return start(photos, out, "--runner", "ray", *settings)


def _strike_until_done(
    out: str,
    photos: Path,
    cluster: Cluster,
    seen: ChaosOnRay,
    rng: random.Random,
    kills: int,
    disk: Path | None,
) -> None:
    """One driver, now and then two, at work on an output; over when one of them is, or enough have been struck."""
    drivers: list[subprocess.Popen[str]] = []
    while sum(seen.kills.values()) < kills:
        if not drivers:
            drivers = [job(photos, out) for _ in range(rng.choice([1, 1, 2]))]
            seen.two_at_once += len(drivers) > 1
            _wait_for_workers(drivers)
        time.sleep(rng.uniform(0.1, 2.0))
        ended = [driver for driver in drivers if driver.poll() is not None]
        drivers = [driver for driver in drivers if driver not in ended]
        notes = [_note_end(driver, out, seen, disk) for driver in ended]
        if any(notes):
            break
        kind = rng.choices(KINDS, WEIGHTS)[0]
        if drivers and _strike(kind, drivers, cluster, rng):
            seen.kills[kind] += 1
    for driver in drivers:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
        driver.communicate()


def _note_end(driver: subprocess.Popen[str], out: str, seen: ChaosOnRay, disk: Path | None) -> bool:
    """Count how a driver ended; whether it was the end of the job. A disk that it found full gets larger."""
    _, said = driver.communicate()
    key = str(driver.returncode)
    seen.exits[key] = seen.exits.get(key, 0) + 1
    if driver.returncode == 1 and FULL in said and disk is not None and out.startswith(str(disk)):
        seen.full_disks += 1
        enlarge(disk, ENLARGED)
    elif driver.returncode not in (0, -signal.SIGKILL, 128 + signal.SIGINT, -signal.SIGINT):  # the last: a second one
        seen.wrong.append(f"{out}: a driver ended with {driver.returncode}: {said[-2000:]}")
    return driver.returncode == 0


def _strike(kind: str, drivers: list[subprocess.Popen[str]], cluster: Cluster, rng: random.Random) -> bool:
    """Do it; False when there was nobody to strike."""
    driver = rng.choice(drivers)
    try:
        if kind.endswith("worker"):
            there = workers()
            if not there:
                return False
            rng.shuffle(there)
            there[0].kill() if kind == "SIGKILL worker" else _stop_for_a_while(there[0])
        elif kind == "SIGINT driver":
            driver.send_signal(signal.SIGINT)
        elif kind == "SIGKILL driver":
            driver.kill()
        elif kind == "SIGKILL driver group":
            os.killpg(driver.pid, signal.SIGKILL)
        else:
            lost = rng.choice([node for node in cluster.list_all_nodes() if node is not cluster.head_node])
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(num_cpus=1, **SMALL)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    return True


def _stop_for_a_while(process: psutil.Process) -> None:
    """Long enough that its shard is given away; then it comes back and may still write it."""
    process.suspend()

    def resume() -> None:
        with suppress(psutil.NoSuchProcess):
            process.resume()

    threading.Timer(14.0, resume).start()


def workers() -> list[psutil.Process]:
    """The actors of all jobs."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if "ray::RayWorker" in " ".join(process.cmdline()):
                found.append(process)
    return found


def _wait_for_workers(drivers: Sequence[subprocess.Popen[str]]) -> None:
    until = time.monotonic() + 30.0
    while not workers() and time.monotonic() < until and all(driver.poll() is None for driver in drivers):
        time.sleep(0.1)
