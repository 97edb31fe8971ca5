"""What a process comes to until it leases a shard, without torch: python -m tests.bench.until_lease WHAT REPORT ...

`command REPORT ARGUMENT...` is `sam-amg` with these arguments, `lease REPORT OUT` the leasing alone.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import NoReturn

from amg.run.leases import Leases
from amg.run.plan import read_plan
from amg.storage.local import LocalStore
from tests.bench.children import status_mb
from tests.outputs import stands_for_published

WEIGHTS = "SAM_AMG_TEST_WEIGHTS"
"""The variable with the file that stands for published weights."""


def command(report: Path, *arguments: str) -> None:
    """`sam-amg` with a stand-in for the model that ends it at the first lease."""
    from amg.run import local
    from amg.sam import weights

    def label(_images: object) -> NoReturn:
        peak = status_mb("VmHWM") * 2**20 / 1e9
        report.write_text(json.dumps({"leased_at": time.time(), "peak_gb": round(peak, 3)}))
        os._exit(0)

    local.open_label = lambda *_: label
    stands_for_published(weights, os.environ[WEIGHTS])
    from amg.cli.main import main as sam_amg

    sys.argv = ["sam-amg", *arguments]
    sys.exit(sam_amg())


def lease(report: Path, out: str) -> None:
    """Every shard of an output leased and finished at once."""
    plan = read_plan(LocalStore(Path(out)))
    assert plan is not None
    count, early_mb = 0, 0.0
    began = time.perf_counter()
    leases = Leases(plan.shards(), plan.n_shards)
    while lease := leases.take():
        leases.finished(lease.shard)
        count += 1
        if count == plan.n_shards // 10:
            early_mb = status_mb("VmRSS")
    seconds = time.perf_counter() - began
    report.write_text(
        json.dumps(
            {
                "shards": count,
                "shards_per_second": round(count / seconds, 1),
                "mb_after_a_tenth": round(early_mb, 1),
                "mb_at_the_end": round(status_mb("VmRSS"), 1),
            }
        )
    )


if __name__ == "__main__":
    {"command": command, "lease": lease}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
