"""Kills jobs at random moments, lets a calm run finish what they left, and compares with an undisturbed job."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from amg.run.plan import finished_shards, read_plan
from amg.shards import reader
from amg.storage.url import open_store

KINDS = ("SIGINT", "SIGTERM", "SIGKILL", "SIGKILL group", "SIGKILL worker")
SECONDS_TO_OBEY = 10.0
ORPHAN_SECONDS = 5.0

Row = dict[str, Any]


@dataclass(slots=True)
class Chaos:
    """What happened. `exits` counts (kind, exit status); of all lists there should be nothing."""

    kills: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    exits: dict[str, int] = field(default_factory=dict)
    outputs: int = 0
    two_at_once: int = 0
    deaf: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    slowest_obedience_s: float = 0.0


def rows(out: Path | str) -> list[dict[str, Any]]:
    """All rows but their timings, in plan order."""
    return [{k: v for k, v in row.items() if k != "timings_ms"} for row in reader.read_shards(out)]


def start(photos: Path, out: Path | str, *arguments: str, module: str = "tests.chaos.job") -> subprocess.Popen[str]:
    """A job in a session of its own, so that its group and its orphans are known."""
    command = [sys.executable, "-m", module, "run", str(photos), "--out", str(out), *arguments]
    return subprocess.Popen(command, start_new_session=True, stdout=-3, stderr=subprocess.PIPE, text=True)


def finish(job: subprocess.Popen[str], *, timeout: float = 120.0) -> tuple[int, str]:
    """Its exit status and what it said."""
    _, said = job.communicate(timeout=timeout)
    return job.returncode, said


def family(session: int) -> list[psutil.Process]:
    """The living processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def orphans(session: int) -> list[str]:
    """What is left of a session whose leader has ended, after a moment to notice."""
    until = time.monotonic() + ORPHAN_SECONDS
    while (left := family(session)) and time.monotonic() < until:
        time.sleep(0.05)
    return [" ".join(process.cmdline()) for process in left]


def strike(job: subprocess.Popen[str], kind: str) -> bool:
    """Do it; False when there was nobody any more."""
    try:
        if kind == "SIGKILL worker":
            workers = [p for p in family(job.pid) if "spawn_main" in " ".join(p.cmdline())]
            if not workers:
                return False
            random.choice(workers).kill()
        elif kind == "SIGKILL group":
            os.killpg(job.pid, signal.SIGKILL)
        else:
            job.send_signal(signal.Signals[kind])
        return job.poll() is None or kind != "SIGKILL worker"
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def faults(
    out: Path | str,
    undisturbed: Sequence[Row],
    comparable: Callable[[Row], Row] = lambda row: row,
) -> list[str]:
    """What is not as an undisturbed run leaves it, after a run that ended well."""
    store = open_store(out)
    plan = read_plan(store)
    assert plan is not None
    found = []
    here, there = ([comparable(row) for row in some] for some in (rows(out), undisturbed))
    if here != there:
        found.append(f"rows differ from the undisturbed run's: {_differences(here, there)}")
    if sorted(finished_shards(store)) != list(range(plan.n_shards)):
        found.append("shards and plan differ")
    found += [f"left over: {entry.path}" for entry in store.list("_tmp")]
    for entry in store.list("data"):
        try:
            pq.read_table(io.BytesIO(store.read(entry.path)))
        except Exception as error:
            found.append(f"{entry.path} is not whole: {error}")
    return found


def _differences(here: Sequence[Row], there: Sequence[Row]) -> str:
    """How many rows there are, and what the first few that differ say of themselves."""
    pairs = [(one, two) for one, two in zip(here, there, strict=False) if one != two]
    said = [{name: (one[name], two[name]) for name in one if one[name] != two.get(name)} for one, two in pairs[:3]]
    return f"{len(here)} rows, wanted {len(there)}; {len(pairs)} differ, such as {said}"


def chaos(
    folder: Path, photos: Path, undisturbed: Sequence[dict[str, Any]], *, kills: int, seed: int, longest: float = 1.0
) -> Chaos:
    """Kill until `kills` have struck; whenever a job comes to its end, hold the output against the undisturbed one."""
    random.seed(seed)
    seen = Chaos()
    while sum(seen.kills.values()) < kills:
        out = folder / f"out-{seen.outputs}"
        seen.outputs += 1
        while not _round(out, photos, seen, longest) and sum(seen.kills.values()) < kills:
            pass
        status, said = finish(start(photos, out))
        if status:
            seen.wrong.append(f"{out.name}: the calm run ended with {status}: {said}")
        seen.wrong += [f"{out.name}: {fault}" for fault in faults(out, undisturbed)]
    return seen


def _round(out: Path, photos: Path, seen: Chaos, longest: float) -> bool:
    """One job, or two on the same output, and one strike at each; whether one of them came to its end."""
    arguments = random.choice([(), ("--workers", "2")])
    jobs = [start(photos, out, *arguments) for _ in range(random.choice([1, 1, 1, 2]))]
    seen.two_at_once += len(jobs) > 1
    ended = False
    for job in jobs:
        kind = random.choice(KINDS if arguments else KINDS[:-1])
        _wait_for_a_moment(job, out, longest)
        struck = job.poll() is None and strike(job, kind)
        seen.kills[kind] += struck
        ended |= _watch(job, kind if struck else "nothing", out, seen)
    return ended


def _wait_for_a_moment(job: subprocess.Popen[str], out: Path, longest: float) -> None:
    """Some time after its start, or more often some time after a shard was made."""
    if random.random() < 0.7:
        before = _shards(out)
        while _shards(out) == before and job.poll() is None:
            time.sleep(0.02)
    time.sleep(random.uniform(0.0, longest))


def _shards(out: Path) -> int:
    return len(list((out / "data").glob("*.parquet")))


def _watch(job: subprocess.Popen[str], kind: str, out: Path, seen: Chaos) -> bool:
    """See how it ends and what it leaves behind; whether it came to its end."""
    began = time.monotonic()
    is_told = kind in KINDS[:-1]
    deadline = SECONDS_TO_OBEY if is_told else 120.0
    try:
        _, said = job.communicate(timeout=deadline)
    except subprocess.TimeoutExpired:
        seen.deaf.append(f"{out.name}: {kind} was not obeyed in {deadline:g} s")
        os.killpg(job.pid, signal.SIGKILL)
        job.communicate()
        return False
    if is_told:
        seen.slowest_obedience_s = max(seen.slowest_obedience_s, round(time.monotonic() - began, 2))
    ending = f"{kind}: {job.returncode}"
    seen.exits[ending] = seen.exits.get(ending, 0) + 1
    if job.returncode == 1:
        seen.wrong.append(f"{out.name}: {kind}: exit 1: {said}")
    seen.orphans += orphans(job.pid)
    return job.returncode == 0
