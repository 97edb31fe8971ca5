"""What a run would do, in numbers, and how its input differs from what was planned before."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from amg.run.drift import Drift, count_images
from amg.run.listing import Listed, SkippedLog, as_log, reporter
from amg.run.plan import Plan
from amg.run.survey import survey
from amg.sources.source import Skipped

REASONS_SHOWN = 10


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
            f"{count_images(self.found)} found, {self.new:,} new, {self.planned:,} planned before",
            *self.drift.lines(),
            *([f"{left_out:,} entries skipped:"] if left_out else []),
            *(f"  {count:,} x {reason}" for reason, count in list(self.skipped.items())[:REASONS_SHOWN]),
            *([f"  and {more:,} more reasons"] if more > 0 else []),
            f"to do: {count_images(self.images)} in {self.shards:,} shards, {self.bytes_to_read / 1e6:,.1f} MB to read"
            + (f", roughly {_duration(self.expected_seconds)}" if self.images else ""),
        ]
        return "\n".join(lines)


def preview(
    plan: Plan | None,
    listed: Listed,
    skipped: SkippedLog | list[Skipped],
    *,
    images_per_shard: int,
    seconds_per_image: float,
    finished: Collection[int],
    limit: int | None = None,
) -> Preview:
    """What a run on this listing would do to an output with that plan and those finished shards. Writes nothing.

    `listed` may be a stream, and `skipped` what is filled while it is read. With `limit` as in `survey`.
    """
    there = plan or Plan({})
    seen = survey(there, listed, skipped=reporter(skipped), limit=limit)
    left = there.without(finished)
    images = seen.new + left.n_images
    to_read = sum(int(np.asarray(table["size_bytes"].fill_null(0)).sum()) for table in left.tables(["size_bytes"]))
    return Preview(
        found=seen.found,
        planned=there.n_images,
        new=seen.new,
        drift=seen.drift,
        skipped=dict(as_log(skipped).reasons.most_common()),
        shards=math.ceil(seen.new / images_per_shard) + left.n_shards,
        images=images,
        expected_seconds=images * seconds_per_image,
        bytes_to_read=seen.new_bytes + to_read,
    )


def drift(plan: Plan, listed: Listed, *, is_whole: bool = True) -> Drift:
    """How a listing differs from the plan it meets. `is_whole` is False where only a part was listed."""
    return survey(plan, listed, is_whole=is_whole).drift


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} seconds"
