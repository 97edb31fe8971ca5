"""The row of utilisation: how busy `sam-amg run` keeps the cores over a folder of photos, start-up excluded.

The command tells each image as it is done (`--log json`); at the first and at the last of these lines the processor
time of the process and its children is read. Its share of the cores between them is the utilisation: the first image,
imports, plan and model are before, what follows the last image is after. Ours alone is counted, not what else runs;
but what else runs takes cores away, so this wants a quiet machine.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests import parity
from tests.bench.children import ROOT
from tests.bench.memory import run_arguments
from tests.bench.options import Options

BAR = 0.90

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Moment:
    """`processor_seconds` of the command and its children, user and system."""

    wall_seconds: float
    processor_seconds: float


def row(options: Options) -> Row:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        photos = link(options.photos, folder / "in")
        command = [sys.executable, "-m", "amg", *run_arguments(folder, options), "--log", "json", "--json"]
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None and process.stdout is not None
            moments, statuses = watch(process.stderr, psutil.Process(process.pid))
            summary = json.loads(process.stdout.read().splitlines()[-1])
    assert process.returncode == 0, f"sam-amg ended with {process.returncode}"
    return summarize(moments, statuses, photos, summary, options)


def link(photos: Path, folder: Path) -> int:
    """The photos alone, whatever else lies in their folder; their number."""
    folder.mkdir()
    found = parity.photos_in(photos)
    for photo in found:
        (folder / photo.name).symlink_to(photo.resolve())
    return len(found)


def watch(log: Iterable[str], process: psutil.Process) -> tuple[list[Moment], list[str]]:
    """The moment and the status of each image."""
    moments, statuses = [], []
    for event in events(log):
        if event.get("event") == "image":
            moments.append(Moment(time.perf_counter(), processor_seconds(process)))
            statuses.append(event["status"])
            print(f"  {event['key']}: {event.get('masks')} masks, {event.get('seconds')} s", flush=True)
    return moments, statuses


def events(log: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The lines of the log that are events; libraries may write others."""
    for line in log:
        if line.startswith("{"):
            yield json.loads(line)
        else:
            sys.stderr.write(line)


def processor_seconds(process: psutil.Process) -> float:
    """Of a process and what it has started, dead or alive."""
    own = process.cpu_times()
    living = sum(sum(child.cpu_times()[:2]) for child in process.children(recursive=True))
    return own.user + own.system + own.children_user + own.children_system + living


def summarize(
    moments: list[Moment], statuses: list[str], photos: int, summary: dict[str, Any], options: Options
) -> Row:
    assert len(moments) >= 2, f"{len(moments)} images were labeled: a utilisation wants two or more"
    wall = moments[-1].wall_seconds - moments[0].wall_seconds
    processor = moments[-1].processor_seconds - moments[0].processor_seconds
    utilisation = processor / (wall * options.threads)
    return {
        "settings": options.settings,
        "photos": photos,
        "failed": sum(status != "ok" for status in statuses),
        "wall_seconds": wall,
        "processor_seconds": processor,
        "seconds_an_image": wall / (len(moments) - 1),
        "utilisation": utilisation,
        "whole_command_seconds": summary["wall_seconds"],
        "stages": summary["seconds"],
        "peak_mb": summary["peak_memory_mb"],
        "bar": BAR,
        "passed": utilisation >= BAR and set(statuses) == {"ok"} and len(moments) == photos,
    }


def lines(row: Row) -> list[str]:
    return [
        f"{row['photos']} photos, {row['failed']} failed: {row['utilisation']:.1%} of the cores "
        f"(bar {row['bar']:.0%}) over {row['wall_seconds']:.1f} s, {row['seconds_an_image']:.2f} s an image",
    ]
