"""Pixels, area and box of a whole column of COCO strings at once; `amg.rle` has the same for one mask, with reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_BITS = 5
_MAX_CHARACTERS = 7
CHARACTERS_AT_ONCE = 1 << 17  # a dozen arrays of that many numbers stay in a processor's cache


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """Of K strings: whether each is one that `rle.decode` takes, and what it covers; numbers are 0 where it is not.

    `box_K4` is half-open (x0, y0, x1, y1), zeros for a mask without pixels.
    """

    valid_K: NDArray[np.bool_]
    pixels_K: NDArray[np.int64]
    area_K: NDArray[np.int64]
    box_K4: NDArray[np.int64]


def measure(characters: NDArray[np.uint8], offsets_K1: NDArray[np.int64], height_K: NDArray[np.int64]) -> Measured:
    """`characters[offsets_K1[k]:offsets_K1[k + 1]]` is the string of mask k, in an image `height_K[k]` pixels high."""
    k = len(height_K)
    measured = Measured(np.zeros(k, np.bool_), np.zeros(k, np.int64), np.zeros(k, np.int64), np.zeros((k, 4), np.int64))
    first = 0
    while first < k:
        end = max(first + 1, int(np.searchsorted(offsets_K1, offsets_K1[first] + CHARACTERS_AT_ONCE, "right")) - 1)
        span = slice(first, end)
        part = Measured(*(getattr(measured, name)[span] for name in Measured.__dataclass_fields__))
        offsets = offsets_K1[first : end + 1]
        _measure_into(part, characters[offsets[0] : offsets[-1]], offsets - offsets[0], height_K[span])
        first = end
    return measured


def _measure_into(
    measured: Measured, characters: NDArray[np.uint8], offsets_K1: NDArray[np.int64], height_K: NDArray[np.int64]
) -> None:
    measured.valid_K[:] = _well_formed(characters, offsets_K1)
    kept = np.flatnonzero(measured.valid_K)
    if not len(kept):
        return
    lengths = np.diff(offsets_K1)
    digits = characters[np.repeat(measured.valid_K, lengths)].astype(np.int64) - 48
    runs_R, starts_K = _runs(digits, np.concatenate([[0], np.cumsum(lengths[kept])[:-1]]))
    sound = np.minimum.reduceat(runs_R, starts_K) >= 0
    sound &= np.maximum.reduceat(runs_R, starts_K) < 1 << 32
    measured.valid_K[kept[~sound]] = False
    _fill(measured, kept[sound], *_of_masks(runs_R, starts_K, sound), height_K)


def _well_formed(characters: NDArray[np.uint8], offsets_K1: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each string has only characters of the format, ends with a number's last one, and has none too long."""
    starts, ends = offsets_K1[:-1], offsets_K1[1:]
    valid_K = ends > starts
    if not len(characters):
        return valid_K
    foreign = (characters < 48) | (characters > 111)
    goes_on = (characters.astype(np.int16) - 48 >= 32) & ~foreign
    place = np.arange(len(characters))
    begins = np.zeros(len(characters), np.bool_)  # of numbers
    begins[1:] = ~goes_on[:-1]
    begins[starts[valid_K]] = True
    too_long = place - np.maximum.accumulate(np.where(begins, place, 0)) >= _MAX_CHARACTERS
    wrong_so_far = np.concatenate([[0], np.cumsum(foreign | too_long)])
    valid_K &= wrong_so_far[ends] == wrong_so_far[starts]
    valid_K &= ~goes_on[np.maximum(ends - 1, 0)]
    return valid_K


def _runs(digits: NDArray[np.int64], starts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of all masks end to end, and where each mask's begin; `starts` says where its characters begin."""
    last = np.flatnonzero(digits < 32)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    deltas_R = np.add.reduceat((digits & 31) << (_BITS * place), first)
    deltas_R -= (digits[last] >> 4 & 1) << (_BITS * (last - first + 1))
    starts_K = np.searchsorted(first, starts)
    within_R = np.arange(len(deltas_R)) - np.repeat(starts_K, np.diff(np.append(starts_K, len(deltas_R))))
    runs_R = np.where(within_R == 0, deltas_R, 0)
    for parity in (1, 0):  # from the fourth on a run is a difference to the one two before it
        mine = (within_R % 2 == parity) & (within_R > 0)
        runs_R[mine] = _sums_from(deltas_R[mine], np.flatnonzero(within_R[mine] == (1 if parity else 2)))
    return runs_R, starts_K


def _sums_from(values: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Running sums that begin anew at each of `starts`."""
    sums = np.cumsum(values)
    before = np.concatenate([[0], sums])[starts]
    return sums - np.repeat(before, np.diff(np.append(starts, len(values))))


def _of_masks(
    runs_R: NDArray[np.int64], starts_K: NDArray[np.int64], sound: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The runs of the sound masks alone."""
    counts = np.diff(np.append(starts_K, len(runs_R)))
    kept = counts[sound]
    return runs_R[np.repeat(sound, counts)], np.concatenate([[0], np.cumsum(kept)])[: len(kept)]


def _fill(
    measured: Measured,
    which: NDArray[np.int64],
    runs_R: NDArray[np.int64],
    starts_K: NDArray[np.int64],
    height_K: NDArray[np.int64],
) -> None:
    """Writes pixels, area and box of the masks `which`, whose runs these are."""
    if not len(which):
        return
    counts = np.diff(np.append(starts_K, len(runs_R)))
    ends_R = _sums_from(runs_R, starts_K)
    measured.pixels_K[which] = ends_R[starts_K + counts - 1]
    mask_R = np.repeat(np.arange(len(which)), counts)
    set_R = ((np.arange(len(runs_R)) - starts_K[mask_R]) % 2 == 1) & (runs_R > 0)
    mask, end, run = mask_R[set_R], ends_R[set_R], runs_R[set_R]
    if not len(mask):
        return
    first = np.flatnonzero(np.diff(mask, prepend=-1))  # the first set run of every mask that has one
    rows = which[mask[first]]
    height = np.maximum(height_K[which], 1)[mask]
    start = end - run
    tall = start // height != (end - 1) // height  # a run over two columns touches both edges
    top = np.where(tall, 0, start % height)
    bottom = np.where(tall, height, (end - 1) % height + 1)
    measured.area_K[rows] = np.add.reduceat(run, first)
    measured.box_K4[rows, 0] = np.minimum.reduceat(start // height, first)
    measured.box_K4[rows, 1] = np.minimum.reduceat(top, first)
    measured.box_K4[rows, 2] = np.maximum.reduceat((end - 1) // height, first) + 1
    measured.box_K4[rows, 3] = np.maximum.reduceat(bottom, first)
