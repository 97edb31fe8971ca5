"""Measured work in fresh processes: what a child is told, what it does, what it reports. Linux only.

A child gets its job as JSON on stdin, does what `tests/bench/sides.py` has under the job's side, and writes a report.
Memory is `VmHWM`, the most that was resident since the process began; where the system allows it, it is set back once
everything is loaded, so that what the work needs beyond that is known too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

OURS = {"OMP_WAIT_POLICY": "PASSIVE"}
"""What `sam-amg` sets before it loads torch, where it is not set already."""

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
"""glibc keeps what was freed, and asks for huge pages: large tensors do not cost a page fault every 4 KiB again."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a child reports. Memory in units of 2^20 bytes."""

    seconds: list[float]  # of each call, in order
    peak_mb: float  # of the whole process
    loaded_mb: float  # resident after imports and model
    warm_up_mb: float  # what the warm-up left resident, mostly compiled code; above `loaded_mb`
    peak_above_mb: float  # above `loaded_mb`, warm-up included
    high_water_reset: bool  # False: `peak_above_mb` may be one of the imports
    result: Any = None  # what the last call gave, as JSON

    @property
    def middle(self) -> float:
        """The middle one of the calls' seconds, the slower of two."""
        return sorted(self.seconds)[len(self.seconds) // 2]

    def brief(self) -> dict[str, Any]:
        """All but the result."""
        return {name: value for name, value in asdict(self).items() if name != "result"}


def run_side(
    side: str,
    job: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    *,
    module: str = "tests.bench.sides",
) -> Measured:
    """Do a job in a fresh process, by the sides of `module`, with these variables on top of the present ones."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        subprocess.run(
            [sys.executable, "-W", "ignore", "-m", module, side, str(report)],
            input=json.dumps(job),
            text=True,
            check=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        return Measured(**json.loads(report.read_text()))


def tell(side: str, measured: Measured) -> Measured:
    """Print a line about a side whose result is a list of masks."""
    count = len(measured.result)
    print(f"  {side:>9}: {count} masks, {measured.middle:.2f} s, peak {measured.peak_mb:.0f} MB", flush=True)
    return measured


def ours() -> dict[str, str]:
    """The environment of our side: as its command sets it, unless the caller has set it otherwise."""
    return {name: value for name, value in OURS.items() if name not in os.environ}


def measure(
    load: Callable[[], Callable[[], Any]],
    *,
    warm_up: Callable[[], object] | None = None,
    repeats: int = 1,
    to_json: Callable[[Any], Any] = lambda result: None,
) -> Measured:
    """In the child: load, note the memory, warm up, and time `repeats` calls of what `load` gave."""
    work = load()
    before_mb = status_mb("VmHWM")
    reset = reset_high_water()
    loaded_mb = status_mb("VmRSS")
    if warm_up is not None:
        warm_up()
    warm_up_mb = status_mb("VmRSS") - loaded_mb
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    peak_mb = status_mb("VmHWM")
    return Measured(
        seconds=seconds,
        peak_mb=max(before_mb, peak_mb),
        loaded_mb=loaded_mb,
        warm_up_mb=warm_up_mb,
        peak_above_mb=peak_mb - loaded_mb,
        high_water_reset=reset,
        result=to_json(result),
    )


def reset_high_water() -> bool:
    """Set `VmHWM` back to the present size; some containers forbid it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def status_mb(field: str) -> float:
    """`VmRSS` or `VmHWM` of this process, in units of 2^20 bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}; this measurement needs Linux")
