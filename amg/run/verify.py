"""A whole output against its plan: every shard there, nothing else there, every shard sound."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from amg.errors import FormatError
from amg.run.attempts import FOLDER as ATTEMPTS
from amg.run.generations import PLAN_NAME, Generation, generation_numbers, read_generation
from amg.run.generations import folder as generation_folder
from amg.run.hashes import Hashes, hash_strings
from amg.run.plan import Plan, shard_path
from amg.run.status import planned
from amg.shards.overlay import FOLDER as RETRIES
from amg.shards.verify import Checked, Finding, Wanted, check_shard
from amg.storage.store import CLAIM, IN_PROGRESS, TEMPORARY, Store
from amg.storage.url import open_store

AGAIN = "run the same command again: it goes on with what is missing"


@dataclass(frozen=True, slots=True)
class Verified:
    """How much was read, and how many faults were found. `rows` are those of `data/`, `retried` those of `retries/`."""

    shards: int
    rows: int
    masks: int
    findings: int
    retried: int = 0


def verify_output(folder: str, *, found: Callable[[Finding], None]) -> Verified:
    """Reads the whole output and tells `found` of every fault, in the order of the files.

    Raises StorageError where there is no plan, FormatError where the plan itself cannot be read.
    """
    store = open_store(folder)
    plan = planned(store)
    count = Counter[str]()

    def tell(findings: Iterable[Finding]) -> None:
        for finding in findings:
            count["findings"] += 1
            found(finding)

    tell(_plan_faults(plan))
    tell(_files_of(store, plan, "", AGAIN))
    tell(_leftovers(store))
    for checked in _checked(store, plan, ""):
        count.update(shards=1, rows=sum(checked.rows.values()), masks=checked.masks)
        tell(checked.findings)
    for findings, checked in _retries(store, plan):
        count.update(retried=sum(checked.rows.values()), masks=checked.masks)
        tell(findings)
    return Verified(*(count[each.name] for each in fields(Verified)))


def _checked(store: Store, plan: Plan, inside: str) -> Iterator[Checked]:
    """Every shard of a plan that is there; `inside` is the folder, with `/`, in which its `data` lies."""
    present = {entry.path for entry in store.list(f"{inside}data")}
    for shard in plan.shards():
        path = f"{inside}{shard.path}"
        if path in present:
            ids, keys = [ref.row for ref in shard.refs], [ref.key for ref in shard.refs]
            yield check_shard(store, Wanted(path, shard.number, plan.fingerprint, plan.depends_on, ids, keys))


def _retries(store: Store, plan: Plan) -> Iterator[tuple[Iterable[Finding], Checked]]:
    """Findings, and what was looked at, of one thing after the other."""
    numbers = generation_numbers(store)
    yield _strays_among_retries(store, numbers), Checked()
    for number in numbers:
        try:
            generation = read_generation(store, plan, number)
        except FormatError as error:
            advice = f"bring it back from a copy, or remove {generation_folder(number)}: its images are as before then"
            yield (
                [Finding("retry_plan", generation_folder(number), str(error), "the plan of a retry", advice)],
                Checked(),
            )
            continue
        inside = f"{generation_folder(number)}/"
        again = f"run `sam-amg retry` with --status {','.join(generation.statuses)} again: it goes on"
        yield _generation_faults(generation, plan), Checked()
        yield _files_of(store, generation.plan, inside, again), Checked()
        for checked in _checked(store, generation.plan, inside):
            yield checked.findings, checked


def _generation_faults(generation: Generation, plan: Plan) -> Iterator[Finding]:
    """Each image of a retry once, in order, and as planned."""
    where, advice = generation_folder(generation.number), "the plan of the retry was altered; remove the folder"
    rows, keys = np.asarray(generation.table["row"]), generation.table["key"]
    if len(rows) and (np.diff(rows, prepend=-1) <= 0).any():
        row = rows[int((np.diff(rows, prepend=-1) <= 0).argmax())]
        yield Finding("retry_plan", where, f"image {row} out of order or twice", "each once, in order", advice)
    there = (rows >= 0) & (rows < plan.n_images)
    if not there.all():
        yield Finding("retry_plan", where, f"image {rows[~there][0]}", f"images of the plan, {plan.n_images}", advice)
    elif not plan.rows.take(rows, ["key"])["key"].equals(keys):
        yield Finding("retry_plan", where, "other keys than planned", "those of the plan", advice)


def _strays_among_retries(store: Store, numbers: Collection[int]) -> Iterator[Finding]:
    """Files in `retries/` that are no generation's; those below its `data` are looked at with its plan."""
    folders = tuple(generation_folder(number) for number in numbers)
    for entry in store.list(RETRIES):
        folder, _, name = entry.path.removeprefix(f"{RETRIES}/").partition("/")
        is_ours = f"{RETRIES}/{folder}" in folders
        if not is_ours or not (name == PLAN_NAME or name.startswith(("data/", f"{ATTEMPTS}/"))):
            advice = "move it elsewhere: readers lay what is in retries/ over the shards"
            yield Finding("stray", entry.path, "a file that no retry planned", "nothing but retries", advice)


def _files_of(store: Store, plan: Plan, inside: str, again: str) -> Iterator[Finding]:
    """Shards that are missing, and files among them that are none."""
    expected = {f"{inside}{shard_path(number)}": number for number in plan.layout.number_S.tolist()}
    files = [entry.path for entry in store.list(f"{inside}data")]
    missing = sorted(expected[path] for path in expected.keys() - set(files))
    for first, last in _spans(missing):
        where = f"{inside}{shard_path(first)}" + (f" to {inside}{shard_path(last)}" if first != last else "")
        came = "no file" if first == last else f"no file for {last - first + 1} shards"
        yield Finding("missing", where, came, "a shard, as planned", again)
    for path in files:
        if path not in expected:
            looks_like_one = re.fullmatch(r"data/part-\d{6,}\.parquet", path.removeprefix(inside))
            wanted = (
                f"a number of the plan, which has {len(expected)} shards" if looks_like_one else "nothing but shards"
            )
            advice = f"move it elsewhere: readers take all of {inside}data/"
            yield Finding("stray", path, "a file that no job planned", wanted, advice)


def _leftovers(store: Store) -> Iterator[Finding]:
    for entry in store.list(TEMPORARY):
        kind = "a half-written file" if entry.path.endswith((IN_PROGRESS, CLAIM)) else "a file that no job wrote"
        advice = "it is swept by the next run on this output, if no job is writing it now"
        yield Finding("leftover", entry.path, kind, f"an empty {TEMPORARY}/", advice)


def _plan_faults(plan: Plan) -> Iterator[Finding]:
    advice = "the plan was altered; restore _plan/ from a copy, or run into another --out"
    place, hashes = 0, []
    for table in plan.tables(["row", "key"]):
        rows = np.asarray(table["row"])
        wrong = rows != np.arange(place, place + len(rows))
        if wrong.any():
            n = int(wrong.argmax())
            yield Finding("plan", "_plan/manifest", f"row {rows[n]} in place {place + n}", f"row {place + n}", advice)
            return
        place += len(rows)
        hashes += [hash_strings(chunk) for chunk in table["key"].chunks]
    if twice := _twice(plan, np.concatenate([np.empty(0, np.uint64), *hashes])):
        distinct = plan.n_images - sum(twice.values()) + len(twice)
        yield Finding("plan", "_plan/manifest", f"{distinct} keys", f"{plan.n_images}, one for each image", advice)


def _twice(plan: Plan, hashes: Hashes) -> Counter[str]:
    """The keys that several images have, with their number; two keys of one hash are told apart."""
    ordered = np.sort(hashes)
    shared = ordered[1:][ordered[1:] == ordered[:-1]]
    keys = Counter[str]()
    if len(shared):
        found = plan.rows.take(np.flatnonzero(np.isin(hashes, shared)), ["key"])["key"].to_pylist()
        keys.update(found)
    return Counter({key: count for key, count in keys.items() if count > 1})


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
