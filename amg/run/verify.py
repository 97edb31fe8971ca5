"""A whole output against its plan: every shard there, nothing else there, every shard sound."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from amg.run.plan import Plan, shard_path
from amg.run.status import planned
from amg.shards.verify import Finding, Wanted, check_shard
from amg.storage.store import CLAIM, IN_PROGRESS, TEMPORARY, Store
from amg.storage.url import open_store

AGAIN = "run the same command again: it goes on with what is missing"


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was read, and how many faults were found."""

    shards: int
    rows: int
    masks: int
    findings: int


def verify_output(folder: str, *, found: Callable[[Finding], None]) -> Verified:
    """Reads the whole output and tells `found` of every fault, in the order of the files.

    Raises StorageError where there is no plan, FormatError where the plan itself cannot be read.
    """
    store = open_store(folder)
    plan = planned(store)
    findings = shards = rows = masks = 0
    for finding in _outside_shards(store, plan):
        findings += 1
        found(finding)
    present = {entry.path for entry in store.list("data")}
    for wanted in _wanted(plan):
        if wanted.path in present:
            checked = check_shard(store, wanted)
            shards, rows, masks = shards + 1, rows + sum(checked.rows.values()), masks + checked.masks
            for finding in checked.findings:
                findings += 1
                found(finding)
    return Verified(shards, rows, masks, findings)


def _wanted(plan: Plan) -> Iterator[Wanted]:
    for shard in plan.shards():
        ids, keys = [ref.row for ref in shard.refs], [ref.key for ref in shard.refs]
        yield Wanted(shard.path, shard.number, plan.fingerprint, plan.depends_on, ids, keys)


def _outside_shards(store: Store, plan: Plan) -> Iterator[Finding]:
    """Faults of the plan, shards that are missing, and files that should not be there."""
    yield from _plan_faults(plan)
    numbers = plan.manifest.column("shard").unique().to_pylist()
    files = [entry.path for entry in store.list("data")]
    missing = sorted(set(numbers) - {number for number in numbers if shard_path(number) in set(files)})
    for first, last in _spans(missing):
        where = shard_path(first) if first == last else f"{shard_path(first)} to {shard_path(last)}"
        came = "no file" if first == last else f"no file for {last - first + 1} shards"
        yield Finding("missing", where, came, "a shard, as planned", AGAIN)
    expected = {shard_path(number) for number in numbers}
    for path in files:
        if path not in expected:
            looks_like_one = re.fullmatch(r"data/part-\d{6,}\.parquet", path)
            wanted = (
                f"a number of the plan, which has {len(numbers)} shards" if looks_like_one else "nothing but shards"
            )
            yield Finding(
                "stray", path, "a file that no job planned", wanted, "move it elsewhere: readers take all of data/"
            )
    for entry in store.list(TEMPORARY):
        kind = "a half-written file" if entry.path.endswith((IN_PROGRESS, CLAIM)) else "a file that no job wrote"
        advice = "it is swept by the next run on this output, if no job is writing it now"
        yield Finding("leftover", entry.path, kind, f"an empty {TEMPORARY}/", advice)


def _plan_faults(plan: Plan) -> Iterator[Finding]:
    rows, keys = plan.manifest.column("row").to_numpy(), plan.manifest.column("key")
    advice = "the plan was altered; restore _plan/ from a copy, or run into another --out"
    if len(rows) and not (rows == range(len(rows))).all():
        row = int((rows != range(len(rows))).argmax())
        yield Finding("plan", "_plan/manifest", f"row {rows[row]} in place {row}", f"row {row}", advice)
    distinct = len(keys.unique())
    if distinct != len(keys):
        yield Finding("plan", "_plan/manifest", f"{distinct} keys", f"{len(keys)}, one for each image", advice)


def _spans(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of every stretch of successive numbers, which are in order."""
    if not numbers:
        return
    first = numbers[0]
    for number, after in pairwise(numbers):
        if after != number + 1:
            yield first, number
            first = after
    yield first, numbers[-1]
