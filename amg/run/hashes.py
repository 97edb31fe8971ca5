"""Which of millions of strings one is, in some twenty bytes a string: a table of their hashes and places.

A hash is a hint. Whoever looks a string up says whether the string at a place is the same one, so that two strings
with one hash cost time and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]
IsSame = Callable[[Places, Places], NDArray[np.bool_]]
"""Whether the strings that are looked up, by their number, are those at the places; both arrays are as long."""

FULLEST = 0.7
_FIRST, _EACH, _LAST = (np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93, 0xA0761D6478BD642F))


def hash_strings(strings: pa.StringArray) -> Hashes:
    """64 bits for each string, the same on every machine; a null counts as an empty string.

    Eight bytes of all strings at a time go through a multiplication and a shift, so a row costs a dozen nanoseconds
    and no Python object.
    """
    if not len(strings):
        return np.empty(0, np.uint64)
    ends = np.frombuffer(strings.buffers()[1], np.int32)[strings.offset : strings.offset + len(strings) + 1]
    ends = ends.astype(np.int64)
    padded = np.zeros(ends[-1] - ends[0] + 8, np.uint8)
    if len(padded) > 8:
        padded[:-8] = np.frombuffer(strings.buffers()[2], np.uint8)[ends[0] : ends[-1]]
    words = np.ndarray((len(padded) - 7,), "<u8", padded, strides=(1,))  # the eight bytes that begin at each byte
    starts, lengths = ends[:-1] - ends[0], np.diff(ends)
    mixed = lengths.astype(np.uint64) * _FIRST
    for done in range(0, int(lengths.max()), 8):
        left = lengths - done
        some = np.flatnonzero(left > 0)
        word = words[starts[some] + done] & _mask(left[some])
        mixed[some] = _stir((mixed[some] ^ word) * _EACH)
    return _stir(_stir(mixed) * _LAST)


def combine(first: Hashes, second: Hashes) -> Hashes:
    """One hash for two strings."""
    return _stir((first * _EACH) ^ second) * _LAST


class Index:
    """A table of hashes and their places, each in the first free slot from where its hash points; grows by doubling."""

    def __init__(self, expected: int = 0) -> None:
        """`expected` is how many will be added, if that is known."""
        self._count = 0
        self._bits = max(16, int(expected / FULLEST).bit_length())
        self._make_slots()

    def add(self, hashes: Hashes, first_place: int) -> None:
        """Put them at successive places."""
        assert first_place + len(hashes) < (1 << 32) - 1, "a place has 32 bits"
        self._count += len(hashes)
        if self._count > FULLEST * len(self._hashes):
            self._grow()
        self._put(hashes, np.arange(first_place + 1, first_place + 1 + len(hashes), dtype=np.uint32))

    def find(self, hashes: Hashes, is_same: IsSame) -> Places:
        """For each string a place where it is, -1 where there is none."""
        places = np.full(len(hashes), -1, np.int64)
        asked, slots = self._next_match(hashes, np.arange(len(hashes)), self._home(hashes))
        while len(asked):
            candidates = self._places[slots].astype(np.int64) - 1
            same = is_same(asked, candidates)
            places[asked[same]] = candidates[same]
            others = self._after(slots[~same])  # other strings with the same hash
            asked, slots = self._next_match(hashes, asked[~same], others)
        return places

    def may_have(self, hashes: Hashes) -> NDArray[np.bool_]:
        """Whether the hash is there: False is certain, True is almost."""
        there = np.zeros(len(hashes), bool)
        there[self._next_match(hashes, np.arange(len(hashes)), self._home(hashes))[0]] = True
        return there

    def _next_match(self, hashes: Hashes, asked: Places, slots: Places) -> tuple[Places, Places]:
        """Of those asked the ones whose hash comes before a free slot, from these slots on, and in which slot."""
        matched, where = [asked[:0]], [slots[:0]]
        while len(asked):
            taken = self._places[slots] != 0
            asked, slots = asked[taken], slots[taken]
            equal = self._hashes[slots] == hashes[asked]
            matched.append(asked[equal])
            where.append(slots[equal])
            asked, slots = asked[~equal], self._after(slots[~equal])
        found, slots = np.concatenate(matched), np.concatenate(where)
        order = np.argsort(found)  # neighbours lie together, where strings are compared
        return found[order], slots[order]

    def _put(self, hashes: Hashes, places: NDArray[np.uint32]) -> None:
        slots = self._home(hashes)
        while len(slots):
            free = np.flatnonzero(self._places[slots] == 0)
            self._places[slots[free]] = places[free]
            won = self._places[slots] == places  # of several that want a slot the last one has it
            self._hashes[slots[won]] = hashes[won]
            hashes, places, slots = hashes[~won], places[~won], self._after(slots[~won])

    def _grow(self) -> None:
        hashes, places = self._hashes, self._places
        while self._count > FULLEST * (1 << self._bits):
            self._bits += 1
        self._make_slots()
        for start in range(0, len(hashes), 1 << 18):
            part = slice(start, start + (1 << 18))
            taken = np.flatnonzero(places[part])
            self._put(hashes[part][taken], places[part][taken])

    def _make_slots(self) -> None:
        self._hashes = np.zeros(1 << self._bits, np.uint64)
        self._places = np.zeros(1 << self._bits, np.uint32)  # from 1 on; 0 is a free slot

    def _home(self, hashes: Hashes) -> Places:
        return ((hashes * _FIRST) >> np.uint64(64 - self._bits)).astype(np.int64)

    def _after(self, slots: Places) -> Places:
        return (slots + 1) & (len(self._hashes) - 1)


def has_twins(hashes: Hashes) -> bool:
    """Whether a hash comes twice."""
    ordered = np.sort(hashes)
    return bool((ordered[1:] == ordered[:-1]).any())


def _mask(n_bytes: NDArray[np.int64]) -> Hashes:
    """The lowest `n_bytes` bytes, at most all eight."""
    return ~np.uint64(0) >> ((8 - np.minimum(n_bytes, 8)) * 8).astype(np.uint64)


def _stir(mixed: Hashes) -> Hashes:
    return mixed ^ (mixed >> np.uint64(31))
