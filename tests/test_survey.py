"""A listing beside a plan: the same answers as an obvious version gives, however the listing comes in pieces."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pytest

from amg.run import growth, hashes, identity, listing, survey
from amg.run import rows as rows_module
from amg.run.growth import grow
from amg.run.hashes import Index, combine, has_twins, hash_strings
from amg.run.keys import free_keys
from amg.run.listing import SkippedLog
from amg.run.plan import Plan, create_plan, read_plan
from amg.run.rows import Spool
from amg.sources.source import LISTING_SCHEMA, Skipped
from amg.values import ImageRef
from tests.memory_store import MemoryStore

SETTINGS = {"generate.points_per_side": 32}


def columns(refs: Sequence[ImageRef]) -> Iterator[pa.RecordBatch]:
    """As a source gives them, in pieces of any size."""
    for start in range(0, len(refs), 5):
        part = refs[start : start + 5]
        arrays = [pa.array([getattr(ref, each.name) for ref in part], each.type) for each in LISTING_SCHEMA]
        yield pa.RecordBatch.from_arrays(arrays, schema=LISTING_SCHEMA)


def planned(plan: Plan) -> list[ImageRef]:
    return [ref for shard in plan.shards() for ref in shard.refs]


@dataclass
class Slow:
    """The obvious version: whole lists, dictionaries, one image after the other."""

    refs: list[ImageRef] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    moved: dict[int, str] = field(default_factory=dict)
    changed: set[int] = field(default_factory=set)
    gone: set[int] = field(default_factory=set)

    def meet(self, listed: Sequence[ImageRef]) -> None:
        listed = self._distinct(listed)
        by_image = {image(ref): ref for ref in self.refs}
        by_key = {ref.key: ref for ref in self.refs}
        paths = {image(ref) for ref in listed}
        keys = {ref.key for ref in [*self.refs, *listed]}
        fresh, here = [], set()
        for ref in listed:
            there = by_image.get(image(ref))
            namesake = by_key.get(ref.key)
            if there is None and namesake and same_file(ref, namesake) and image(namesake) not in paths:
                there = namesake
                self.moved[there.row] = ref.uri
            if there is None:
                fresh.append(ref)
                continue
            here.add(there.row)
            if ref.tag is None and there.tag is not None:
                self.gone.add(there.row)
            elif (ref.size_bytes, ref.tag) != (there.size_bytes, there.tag):
                self.changed.add(there.row)
        self.gone |= {ref.row for ref in self.refs} - here
        for ref in fresh:
            key = ref.key
            if key in by_key:
                key = longer(ref, keys)
                keys.add(key)
            self.refs.append(replace(ref, row=len(self.refs), key=key))

    def _distinct(self, listed: Sequence[ImageRef]) -> list[ImageRef]:
        met, keys, found = set(), set(), []
        for ref in listed:
            if image(ref) in met:
                self.twice.append(ref.key)
                continue
            met.add(image(ref))
            found.append(replace(ref, key=longer(ref, keys) if ref.key in keys else ref.key))
            keys.add(found[-1].key)
        return found


def image(ref: ImageRef) -> tuple[str, str | None]:
    return ref.uri, ref.member


def same_file(here: ImageRef, there: ImageRef) -> bool:
    known = None not in (here.size_bytes, here.tag)
    return known and (here.size_bytes, here.tag) == (there.size_bytes, there.tag)


def longer(ref: ImageRef, taken: set[str]) -> str:
    path = ref.uri if ref.member is None else f"{ref.uri}/{ref.member}"
    parts, n = path.split("/"), ref.key.count("/") + 2
    while (key := "/".join(parts[-n:])) in taken and n <= len(parts):
        n += 1
    return key


def any_listing(rng: random.Random) -> list[ImageRef]:
    """Few names in few folders, some of them in archives, so that paths and keys come again and again."""
    refs = []
    for _ in range(rng.randrange(1, 40)):
        if rng.random() < 0.2:
            archive, member = f"/tars/{rng.choice('xy')}.tar", rng.choice("abc")
            ref = ImageRef(0, f"{archive[6:]}/{member}", archive, member, rng.choice([1, 2]), "t")
        else:
            folder, name = rng.choice(["/p", "/p/q", "/r/q", "/s"]), rng.choice(["", "q/"]) + rng.choice("abcdef")
            size, tag = rng.choice([(1, "1"), (1, "1"), (2, "1"), (1, "2"), (None, None)])
            key = name if rng.random() < 0.7 else f"{folder}/{name}"
            ref = ImageRef(0, key, f"{folder}/{name}", None, size, tag)
        refs.append(ref)
    return refs


@pytest.mark.parametrize("rows_at_once", [1, 3, 1000])
def test_any_listings_one_after_the_other_give_what_the_obvious_version_gives(monkeypatch, rows_at_once):
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(growth, "IMAGES_PER_MANIFEST", 4)
    moves = clashes = 0
    for seed in range(25):
        rng = random.Random(seed)
        store, slow = MemoryStore(), Slow()
        plan = create_plan(store, SETTINGS)
        for _ in range(rng.choice([1, 2, 3])):
            refs = any_listing(rng)
            if (
                slow.refs and rng.random() < 0.5
            ):  # some of what was planned lies elsewhere now, some of it still there too
                refs = [replace(ref, uri=f"/moved{ref.uri}") for ref in slow.refs if rng.random() < 0.8] + refs[:5]
            slow = Slow(slow.refs)
            slow.meet(refs)
            skipped: list[Skipped] = []
            seen = survey.survey(plan, columns(refs), skipped=skipped.append)
            grown = grow(store, plan, seen, SkippedLog(), images_per_shard=3)
            plan = read_plan(store) or plan
            assert planned(plan) == slow.refs
            assert [each.path for each in skipped] == slow.twice
            assert (seen.drift.changed, seen.drift.gone) == (len(slow.changed), len(slow.gone))
            assert {n: ref.uri for n, ref in enumerate(planned(grown)) if ref.uri != slow.refs[n].uri} == slow.moved
            assert seen.drift.moved == len(slow.moved)
            assert (seen.found, seen.new) == (len(refs) - len(slow.twice), len(slow.refs) - len(seen.plan.rows))
            moves += len(slow.moved)
            clashes += sum(ref.key not in {each.key for each in refs} for ref in slow.refs)
    assert moves > 50
    assert clashes > 50


def test_strings_with_one_hash_are_still_told_apart(monkeypatch):
    def weak(strings: pa.StringArray) -> hashes.Hashes:
        return hash_strings(strings) & ~np.uint64(0) << np.uint64(62)

    monkeypatch.setattr(survey, "hash_strings", weak)
    monkeypatch.setattr(identity, "hash_strings", weak)
    monkeypatch.setattr(listing, "ROWS_AT_ONCE", 7)
    store = MemoryStore()
    refs = [ImageRef(n, f"{n}.jpg", f"/p/{n}.jpg", None, n, "1") for n in range(100)]
    plan = create_plan(store, SETTINGS)
    plan = grow(store, plan, columns([*refs[:50], *refs[:10]]), SkippedLog(), images_per_shard=8)
    assert [ref.uri for ref in planned(plan)] == [ref.uri for ref in refs[:50]]
    skipped: list[Skipped] = []
    seen = survey.survey(plan, columns([*refs, *refs[90:]]), skipped=skipped.append)
    assert (seen.found, seen.new, len(skipped)) == (100, 50, 10)
    plan = grow(store, plan, seen, SkippedLog(), images_per_shard=8)
    assert [ref.uri for ref in planned(plan)] == [ref.uri for ref in refs]
    assert len({ref.key for ref in planned(plan)}) == 100
    assert seen.drift.lines() == []


def test_a_limit_ends_the_listing_and_calls_nothing_gone():
    refs = [ImageRef(n, f"{n}.jpg", f"/p/{n}.jpg") for n in range(20)]
    skipped: list[Skipped] = []
    seen = survey.survey(Plan(SETTINGS), columns([refs[0], *refs]), skipped=skipped.append, limit=7)
    assert (seen.found, seen.new) == (7, 7)
    assert [each.path for each in skipped] == ["0.jpg"]
    assert [key for table in seen.tables() for key in table["key"].to_pylist()] == [ref.key for ref in refs[:7]]


def test_addresses_of_which_nothing_else_is_known_are_told_from_files():
    address, file = ImageRef(0, "s3://b/a.jpg", "s3://b/a.jpg"), ImageRef(0, "a.jpg", "/p/a.jpg")
    assert survey.survey(Plan(SETTINGS), columns([address])).only_addresses
    assert not survey.survey(Plan(SETTINGS), columns([address, file])).only_addresses
    assert not survey.survey(Plan(SETTINGS), columns([replace(address, size_bytes=5)])).only_addresses


def test_hashes_depend_on_every_byte_and_on_nothing_else():
    strings = ["", "a", "b", "ab", "ba", "a" * 7, "a" * 8, "a" * 9, "a" * 16, "a" * 17, "ä", "\0", "\0\0", "x" * 1000]
    found = hash_strings(pa.array(strings))
    assert len(set(found.tolist())) == len(strings)
    assert found.tolist()[:2] == [0, 12552540956665772122]  # the same on every machine
    longer = pa.array(["other", *strings, "another"])
    assert hash_strings(longer.slice(1, len(strings))).tolist() == found.tolist()
    assert hash_strings(longer).tolist()[1:-1] == found.tolist()
    flipped = [f"s3://bucket/sa_{n:06d}.jpg" for n in range(200_000)]
    assert not has_twins(hash_strings(pa.array(flipped)))
    assert hash_strings(pa.array([], pa.string())).tolist() == []
    assert combine(found[:2], found[1:3]).tolist() != combine(found[1:3], found[:2]).tolist()


def test_an_index_finds_what_was_put_in_and_nothing_else():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 2**63, 300_000).astype(np.uint64)
    values[1000:1100] = values[:100]  # other strings with the same hashes
    index, expected = Index(), Index(len(values))
    for start in range(0, len(values), 70_000):
        index.add(values[start : start + 70_000], start)
    expected.add(values, 0)
    for each in (index, expected):
        wanted = rng.permutation(len(values))
        found = each.find(values[wanted], lambda asked, places, wanted=wanted: places == wanted[asked])
        assert (found == wanted).all()
        others = rng.integers(0, 2**63, 1000).astype(np.uint64)
        assert (each.find(others, lambda asked, _: np.ones(len(asked), bool)) == -1).all()
        assert each.may_have(values).all()
        assert not each.may_have(others).any()
    nothing = index.find(values[:10], lambda asked, _: np.zeros(len(asked), bool))
    assert nothing.tolist() == [-1] * 10


def test_a_key_that_is_the_whole_path_stays_even_if_it_is_called_taken():
    given = free_keys(["a", "a"], ["/p/a", "/q/a"], np.ones(2, bool), lambda some: np.ones(len(some), bool), set())
    assert given == ["/p/a", "/q/a"]


@pytest.mark.parametrize("where", ["memory", "temporary file", "memory, for want of a temporary file"])
def test_rows_put_aside_are_found_again_in_any_order(where, monkeypatch):
    def full(**_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(rows_module, "SPOOLED_BYTES", 1 << 20 if where == "memory" else 1000)
    if "want" in where:
        monkeypatch.setattr(rows_module.tempfile, "TemporaryFile", full)
    spool = Spool(pa.schema([pa.field("key", pa.string()), pa.field("n", pa.int64())]))
    for start in (0, 10, 20):
        spool.append(pa.table({"key": [f"k{n}" for n in range(start, start + 10)], "n": range(start, start + 10)}))
    assert len(spool) == 30
    assert (spool._overflow is not None) == (where == "temporary file")
    for rows in ([], [3], [25, 3, 3, 14], list(range(8, 23)), list(range(29, -1, -1))):
        assert spool.take(np.array(rows, np.int64), ["n"])["n"].to_pylist() == rows
    assert [n for table in spool.tables(["n"], 5, 25) for n in table["n"].to_pylist()] == list(range(5, 25))
