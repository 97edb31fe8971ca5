"""Planning, resuming and leasing at the scale of SA-1B, without an image: python -m tests.bench.scale

plan    `sam-amg run LIST --out OUT` as a whole command, from a list of so many addresses in an empty output to the
        first shard that is leased: seconds, and the most memory of the process
resume  the same command again when half of the shards are done; then with a list to which images were added
lease   every shard of the plan through `Leases`, read from disk and finished at once: shards a second, memory
lists   requests to an S3 server on this machine with half of the shards in a bucket, until the first lease

What labels takes no time: it reports and ends. The last line is one JSON document; exit status 1 when a bar is missed.
Timings are the best of `--repeats` runs, memory the worst. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amg.run.plan import Plan, read_plan, shard_path
from amg.storage.local import LocalStore
from tests.bench import results
from tests.bench.children import ROOT
from tests.bench.until_lease import WEIGHTS

IMAGES = 11_000_000
IMAGES_PER_SHARD = 256
IMAGES_PER_FOLDER = 11_186  # SA-1B has about so many in each of its thousand archives
BARS = {
    "plan_seconds": 90.0,
    "plan_gb": 1.0,
    "resume_seconds": 10.0,
    "shards_per_second": 200.0,
    "flat_mb": 50.0,
}
"""Most seconds and memory (in units of 10^9 bytes), least shards a second; most growth while all shards are leased."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scale:
    """What is measured, and where its files lie meanwhile."""

    images: int
    kind: str
    repeats: int
    folder: Path

    @property
    def listed(self) -> Path:
        return self.folder / f"list.{self.kind}"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def shards(self) -> int:
        return -(-self.images // IMAGES_PER_SHARD)

    @property
    def half(self) -> list[int]:
        """Half of the shards, as workers finish them: in no order."""
        return np.random.default_rng(0).permutation(self.shards)[: self.shards * 22 // 43].tolist()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--kind", choices=["parquet", "csv", "txt"], default="parquet", help="of the list")
    parser.add_argument("--rows", default=",".join(ROWS), help="some of them, with commas; plan comes first")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--save", type=Path, help="put the results into this file, beside others that are there")
    told = parser.parse_args(arguments)
    document: dict[str, Row] = {}
    with tempfile.TemporaryDirectory(prefix="amg-scale-") as name:
        scale = Scale(told.images, told.kind, told.repeats, Path(name))
        write_list(scale.listed, addresses(scale.images))
        (scale.folder / "weights.pt").write_bytes(b"stands for weights")
        for row in told.rows.split(","):
            document[row] = results.finished(f"scale-{row}", ROWS[row](scale), 1)
            print(f"{row}: {json.dumps({k: v for k, v in document[row].items() if k != 'machine'})}", flush=True)
    results.save({f"scale-{name}": row for name, row in document.items()}, told.save)
    print(json.dumps(document))
    return 0 if all(row["passed"] for row in document.values()) else 1


def addresses(n: int, first: int = 0) -> Iterator[list[str]]:
    """`s3://bucket/sa_000123/sa_12345678.jpg`, half a million at a time."""
    for start in range(first, first + n, 500_000):
        numbers = range(start, min(start + 500_000, first + n))
        yield [f"s3://bucket/sa_{number // IMAGES_PER_FOLDER:06d}/sa_{number}.jpg" for number in numbers]


def write_list(path: Path, parts: Iterator[list[str]]) -> None:
    """A manifest of paths and nothing else; further parts are appended to a text."""
    if path.suffix == ".parquet":
        with pq.ParquetWriter(path, pa.schema([("path", pa.string())])) as writer:
            for part in parts:
                writer.write_table(pa.table({"path": part}))
        return
    with path.open("a") as file:
        if path.suffix == ".csv" and not file.tell():
            file.write("path\n")
        for part in parts:
            file.write("\n".join(part) + "\n")


def plan_row(scale: Scale) -> Row:
    """Into an empty output, each time."""
    runs = []
    for _ in range(scale.repeats):
        remove(scale.out)
        runs.append(command(scale, scale.listed))
    plan = planned(scale)
    best, peak = min(run["seconds"] for run in runs), max(run["peak_gb"] for run in runs)
    size = sum(file.stat().st_size for file in (scale.out / "_plan").iterdir())
    return {
        "images": plan.n_images,
        "shards": plan.n_shards,
        "manifests": plan.n_manifests,
        "plan_mb": size / 1e6,
        "list_mb": scale.listed.stat().st_size / 1e6,
        "runs": runs,
        "seconds": best,
        "peak_gb": peak,
        "passed": best <= BARS["plan_seconds"] and peak <= BARS["plan_gb"] and plan.n_images == scale.images,
    }


def resume_row(scale: Scale) -> Row:
    """Half of the shards are there, as files without content: that they exist is all that counts."""
    (scale.out / "data").mkdir(exist_ok=True)
    for number in scale.half:
        (scale.out / shard_path(number)).touch()
    runs = [command(scale, scale.listed) for _ in range(scale.repeats)]
    longer = scale.folder / f"longer.{scale.kind}"
    write_list(longer, (part for n in (scale.images, 1000) for part in addresses(n, 0 if n > 1000 else scale.images)))
    relisted = command(scale, longer)
    best = min(run["seconds"] for run in runs)
    return {
        "shards_done": len(scale.half),
        "runs": runs,
        "seconds": best,
        "peak_gb": max(run["peak_gb"] for run in runs),
        "with_new_images": relisted,
        "images_after": planned(scale).n_images,
        "passed": best <= BARS["resume_seconds"] and planned(scale).n_images == scale.images + 1000,
    }


def lease_row(scale: Scale) -> Row:
    runs = [child(scale, "lease", str(scale.out)) for _ in range(scale.repeats)]
    best = max(runs, key=lambda run: run["shards_per_second"])
    grown = max(run["mb_at_the_end"] - run["mb_after_a_tenth"] for run in runs)
    return {
        **best,
        "grown_mb": grown,
        "passed": best["shards_per_second"] >= BARS["shards_per_second"] and grown <= BARS["flat_mb"],
    }


def lists_row(scale: Scale) -> Row:
    """The same resumption with the output in a bucket; listings are counted by a proxy before the server."""
    from tests.object_store import serving

    with serving() as bucket:
        for file in sorted((scale.out / "_plan").iterdir()):
            bucket.put(f"out/_plan/{file.name}", file.read_bytes())
        for number in scale.half:
            bucket.put(f"out/{shard_path(number)}", b"x")
        bucket.requests.clear()
        run = command(scale, scale.listed, out=f"{bucket.url}/out", env=bucket.env)
        listings = [request.query.get("prefix", "") for request in bucket.requests if request.is_listing]
        counts = {name: listings.count(name) for name in dict.fromkeys(listings)}
        pages = -(-len(scale.half) // 1000)
        return {
            "shards_done": len(scale.half),
            "requests": len(bucket.requests),
            "list_calls": len(listings),
            "list_calls_by_prefix": counts,
            **run,
            "passed": len(listings) <= pages + 10,
        }


ROWS: Mapping[str, Callable[[Scale], Row]] = {
    "plan": plan_row,
    "resume": resume_row,
    "lease": lease_row,
    "lists": lists_row,
}


def command(scale: Scale, listed: Path, *, out: str | None = None, env: Mapping[str, str] | None = None) -> Row:
    """`sam-amg run` in a fresh process until it leases a shard; from the start of the process, and its memory there."""
    arguments = ["run", str(listed), "--out", out or str(scale.out), "--device", "cpu", "--quiet"]
    return child(scale, "command", *arguments, "--set", f"shards.images_per_shard={IMAGES_PER_SHARD}", env=env)


def child(scale: Scale, what: str, *arguments: str, env: Mapping[str, str] | None = None) -> Row:
    report = scale.folder / "report.json"
    began = time.time()
    subprocess.run(
        [sys.executable, "-m", "tests.bench.until_lease", what, str(report), *arguments],
        check=True,
        cwd=ROOT,
        env={**os.environ, **(env or {}), WEIGHTS: str(scale.folder / "weights.pt")},
    )
    said = json.loads(report.read_text())
    if "leased_at" in said:
        said["seconds"] = round(said.pop("leased_at") - began, 2)
    return said


def planned(scale: Scale) -> Plan:
    plan = read_plan(LocalStore(scale.out))
    assert plan is not None
    return plan


def remove(folder: Path) -> None:
    subprocess.run(["rm", "-rf", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
