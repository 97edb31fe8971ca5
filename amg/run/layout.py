"""Which rows of a plan make which shard, in three numbers a shard."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Which rows each shard has: `number_S`, and the places from `start_S` to before `stop_S`, growing."""

    number_S: NDArray[np.int64]
    start_S: NDArray[np.int64]
    stop_S: NDArray[np.int64]

    @classmethod
    def of_numbers(cls, numbers: NDArray[np.int64], first_place: int = 0) -> Layout:
        """From the shard of each row."""
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        stops = np.append(starts[1:], len(numbers)) if len(starts) else starts
        return cls(numbers[starts], starts + first_place, stops + first_place)

    @classmethod
    def even(cls, n_rows: int, *, first_shard: int, images_per_shard: int, first_place: int) -> Layout:
        starts = np.arange(0, n_rows, images_per_shard)
        stops = np.minimum(starts + images_per_shard, n_rows)
        return cls(first_shard + np.arange(len(starts)), first_place + starts, first_place + stops)

    @classmethod
    def joined(cls, layouts: Sequence[Layout]) -> Layout:
        columns = ("number_S", "start_S", "stop_S")
        none = np.empty(0, np.int64)
        return cls(*(np.concatenate([none, *(getattr(each, name) for each in layouts)]) for name in columns))

    def __len__(self) -> int:
        return len(self.number_S)

    def select(self, wanted_S: NDArray[np.bool_]) -> Layout:
        return Layout(self.number_S[wanted_S], self.start_S[wanted_S], self.stop_S[wanted_S])

    def spans(self) -> Iterator[tuple[int, int]]:
        """The places of all shards, in as few stretches as it takes."""
        breaks = np.flatnonzero(self.start_S[1:] != self.stop_S[:-1])
        firsts, lasts = np.insert(breaks + 1, 0, 0), np.append(breaks, len(self) - 1)
        if len(self):
            yield from zip(self.start_S[firsts].tolist(), self.stop_S[lasts].tolist(), strict=True)
