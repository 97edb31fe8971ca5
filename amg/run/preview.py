"""What a run would do, in numbers, and how its input differs from what was planned before."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amg.run.listing import differs, lies_elsewhere, match, tabulate
from amg.run.plan import Plan
from amg.sources.source import Skipped
from amg.values import ImageRef

EXAMPLES = 3
REASONS_SHOWN = 10


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
            f"{_images(count)} {what} ({', '.join(first)}{', ...' if count > len(first) else ''}): each {meaning}"
            for count, first, what, meaning in told
            if count
        ]


@dataclass(frozen=True, slots=True)
class Preview:
    """A run in numbers. `found` is what the inputs hold now; `planned` what the plan has, `new` what it would get.

    `shards` and `images` are what is left to do, `bytes_to_read` the known sizes of these images.
    """

    found: int
    planned: int
    new: int
    drift: Drift
    skipped: Mapping[str, int] = field(default_factory=dict)
    shards: int = 0
    images: int = 0
    expected_seconds: float = 0.0
    bytes_to_read: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)

    def render(self) -> str:
        """The text for a person, in a few lines."""
        left_out, more = sum(self.skipped.values()), len(self.skipped) - REASONS_SHOWN
        lines = [
            f"{_images(self.found)} found, {self.new:,} new, {self.planned:,} planned before",
            *self.drift.lines(),
            *([f"{left_out:,} entries skipped:"] if left_out else []),
            *(f"  {count:,} x {reason}" for reason, count in list(self.skipped.items())[:REASONS_SHOWN]),
            *([f"  and {more:,} more reasons"] if more > 0 else []),
            f"to do: {_images(self.images)} in {self.shards:,} shards, {self.bytes_to_read / 1e6:,.1f} MB to read"
            + (f", roughly {_duration(self.expected_seconds)}" if self.images else ""),
        ]
        return "\n".join(lines)


def preview(
    plan: Plan | None,
    refs: Iterable[ImageRef] | pa.Table,
    skipped: Sequence[Skipped],
    *,
    images_per_shard: int,
    seconds_per_image: float,
    finished: Collection[int],
    is_whole: bool = True,
) -> Preview:
    """What a run on this listing would do to an output with that plan and those finished shards. Writes nothing.

    `refs` may be a stream, and `skipped` what is filled while it is read. `is_whole` as in `drift`.
    """
    listing = tabulate(refs)
    places = match(listing, plan.manifest) if plan else np.full(listing.num_rows, -1)
    new = listing.filter(pa.array(places < 0))
    left = plan.without(finished) if plan else None
    images = new.num_rows + (left.n_images if left else 0)
    sizes = [new["size_bytes"], *([left.manifest["size_bytes"]] if left else [])]
    return Preview(
        found=listing.num_rows,
        planned=plan.n_images if plan else 0,
        new=new.num_rows,
        drift=_drift(plan, listing, places, is_whole) if plan else Drift(),
        skipped=dict(Counter(each.reason for each in skipped).most_common()),
        shards=math.ceil(new.num_rows / images_per_shard) + (left.n_shards if left else 0),
        images=images,
        expected_seconds=images * seconds_per_image,
        bytes_to_read=sum(int(np.asarray(size.fill_null(0)).sum()) for size in sizes),
    )


def drift(plan: Plan, refs: Iterable[ImageRef] | pa.Table, *, is_whole: bool = True) -> Drift:
    """How a listing differs from the plan it meets; what is merely new is no difference.

    `is_whole` is False where only a part was listed (`--limit`): then what is not listed is not called gone.
    """
    listing = tabulate(refs)
    return _drift(plan, listing, match(listing, plan.manifest), is_whole)


def _drift(plan: Plan, listing: pa.Table, places: NDArray[np.int64], is_whole: bool) -> Drift:
    known = np.flatnonzero(places >= 0)
    compared = ["uri", "size_bytes", "tag"]
    here = listing.select(compared).take(pa.array(known))
    there = plan.manifest.select(compared).take(pa.array(places[known]))
    vanished = np.asarray(here["tag"].is_null()) & np.asarray(there["tag"].is_valid())
    unlisted = np.full(plan.n_images, is_whole)
    unlisted[places[known]] = False
    gone = np.concatenate([places[known[vanished]], np.flatnonzero(unlisted)])
    changed = places[known[differs(here, there) & ~vanished]]
    moved = places[known[lies_elsewhere(here, there)]]
    keys = plan.manifest["key"]
    first = [tuple(keys.take(pa.array(np.sort(rows)[:EXAMPLES])).to_pylist()) for rows in (changed, gone, moved)]
    return Drift(len(changed), len(gone), len(moved), *first)


def _images(count: int) -> str:
    return f"{count:,} image{'' if count == 1 else 's'}"


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
