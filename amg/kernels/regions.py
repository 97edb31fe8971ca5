"""Connected regions of a mask, found run by run down its columns: no number for each pixel.

Runs of one value in neighbouring columns belong together when they touch, corners included (8-connectivity).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Regions:
    """The regions of one value. `run_R3`: column, first and behind the last row of each run, in this order.

    `region_R`: the region of each run, from 0; `area_C`: the pixels of each region.
    """

    run_R3: NDArray[np.int32]
    region_R: NDArray[np.int64]
    area_C: NDArray[np.int64]


def find(bits_WH: NDArray[np.uint8], value: int) -> Regions:
    """The regions of pixels that are `value`, 0 or 1."""
    run_R3 = np.empty((_count(bits_WH, value), 3), np.int32)
    parent_R = np.arange(len(run_R3))
    _connect(bits_WH, value, run_R3, parent_R)
    _, region_R = np.unique(parent_R, return_inverse=True)
    lengths = run_R3[:, 2] - run_R3[:, 1]
    area_C = np.bincount(region_R, weights=lengths).astype(np.int64)
    return Regions(run_R3, region_R, area_C)


def write(bits_WH: NDArray[np.uint8], runs_R3: NDArray[np.int32], value: int) -> None:
    """Set the pixels of these runs."""
    _write(bits_WH, runs_R3, value)


@numba.njit(nogil=True, cache=True)
def _count(bits, value):  # type: ignore[no-untyped-def]
    n = 0
    for i in range(bits.shape[0]):
        inside = False
        for j in range(bits.shape[1]):
            here = bits[i, j] == value
            n += here and not inside
            inside = here
    return n


@numba.njit(nogil=True, cache=True)
def _root(parent, run):  # type: ignore[no-untyped-def]
    while parent[run] != run:
        parent[run] = parent[parent[run]]
        run = parent[run]
    return run


@numba.njit(nogil=True, cache=True)
def _connect(bits, value, runs, parent):  # type: ignore[no-untyped-def]
    """Fill `runs`; a run's parent ends as the first run of its region."""
    width, height = bits.shape
    n, before, behind = 0, 0, 0  # the column before has the runs [before, behind)
    for i in range(width):
        first, near, j = n, before, 0
        while j < height:
            if bits[i, j] != value:
                j += 1
                continue
            start = j
            while j < height and bits[i, j] == value:
                j += 1
            runs[n, 0], runs[n, 1], runs[n, 2] = i, start, j
            while near < behind and runs[near, 2] < start:
                near += 1
            other = near
            while other < behind and runs[other, 1] <= j:
                a, b = _root(parent, other), _root(parent, n)
                parent[max(a, b)] = min(a, b)
                other += 1
            n += 1
        before, behind = first, n
    for run in range(n):
        parent[run] = _root(parent, run)


@numba.njit(nogil=True, cache=True)
def _write(bits, runs, value):  # type: ignore[no-untyped-def]
    for r in range(len(runs)):
        for j in range(runs[r, 1], runs[r, 2]):
            bits[runs[r, 0], j] = value
