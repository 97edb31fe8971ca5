"""How a listing differs from the plan it meets; what is merely new is no difference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

EXAMPLES = 3
COMPARED = ["size_bytes", "tag"]


@dataclass(frozen=True, slots=True)
class Drift:
    """Images that were planned and are not as they were; all of them keep their rows. `*_first` are keys."""

    changed: int = 0
    gone: int = 0
    moved: int = 0
    changed_first: tuple[str, ...] = ()
    gone_first: tuple[str, ...] = ()
    moved_first: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """A sentence for each way in which images differ; none where they do not."""
        told = (
            (self.changed, self.changed_first, "changed since the plan was made", "keeps its row; use another --out"),
            (self.gone, self.gone_first, "no longer there", "keeps its row, or gets one that says it is missing"),
            (self.moved, self.moved_first, "at another place than planned", "is read there"),
        )
        return [
            f"{count_images(count)} {what} ({', '.join(first)}{', ...' if count > len(first) else ''}): each {meaning}"
            for count, first, what, meaning in told
            if count
        ]


def count_images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


class DriftCount:
    """Counts while a listing goes by, and remembers the first rows of each kind."""

    def __init__(self) -> None:
        self._changed, self._gone, self._moved = _Few(), _Few(), _Few()

    def meet(self, rows: NDArray[np.int64], here: pa.Table, there: pa.Table) -> None:
        """Planned images and what is listed of them: tables with the columns COMPARED, a row for each of `rows`."""
        vanished = np.asarray(here["tag"].is_null()) & np.asarray(there["tag"].is_valid())
        is_same = same(here["size_bytes"], there["size_bytes"]) & same(here["tag"], there["tag"])
        self._gone.add(rows[vanished])
        self._changed.add(rows[~is_same & ~vanished])

    def move(self, rows: NDArray[np.int64]) -> None:
        """Planned images that lie elsewhere."""
        self._moved.add(rows)

    def miss(self, rows: NDArray[np.int64]) -> None:
        """Planned images that are not listed."""
        self._gone.add(rows)

    def total(self, keys: Callable[[NDArray[np.int64]], Sequence[str]]) -> Drift:
        """The result; `keys` of rows are looked up for the examples."""
        first = [tuple(keys(each.first)) for each in (self._changed, self._gone, self._moved)]
        return Drift(self._changed.count, self._gone.count, self._moved.count, *first)


class _Few:
    """How many rows there were, and the lowest of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first = np.empty(0, np.int64)

    def add(self, rows: NDArray[np.int64]) -> None:
        self.count += len(rows)
        self.first = np.sort(np.concatenate([self.first, rows]))[:EXAMPLES]


def equal(here: pa.ChunkedArray, there: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Row by row, whether both are known and equal."""
    return np.asarray(pc.call_function("equal", [here, there]).fill_null(False)).astype(bool)


def same(here: pa.ChunkedArray, there: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Whether both are equal, or both unknown."""
    return equal(here, there) | (np.asarray(here.is_null()) & np.asarray(there.is_null())).astype(bool)
