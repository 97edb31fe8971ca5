"""Counts what a run comes to, and tells the observer, once for each image however often it is tried."""

from __future__ import annotations

from collections import Counter

from amg.run.metrics import DeathCause, DriverMetrics
from amg.run.peak import peak_memory_mb
from amg.run.plan import Plan, Shard
from amg.run.progress import Observer, Summary
from amg.values import Failure, MaskSet, Receipt

FAILURES_SHOWN = 20


class Tally:
    """`image` hears of every image of every try, `shard` of every shard that came to an end, which is what counts."""

    def __init__(self, observer: Observer, metrics: DriverMetrics) -> None:
        self._observer = observer
        self._metrics = metrics
        self._in_hand: dict[int, dict[int, Failure | None]] = {}
        self._rows: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._failures: list[tuple[str, str, str]] = []
        self._masks = 0
        self._written = 0
        self._elsewhere = 0
        self._peak_mb = 0.0
        self._planned = self._left = (0, 0)  # shards and images

    def start(self, plan: Plan, left: Plan) -> None:
        """The job is about to label what is left of a plan."""
        self._planned, self._left = (plan.n_shards, plan.n_images), (left.n_shards, left.n_images)
        self._observer.start(plan.n_images, plan.n_images - left.n_images)
        self._measure()

    def image(self, shard: Shard, result: MaskSet | Failure) -> None:
        seen = self._in_hand.setdefault(shard.number, {})
        told = result.ref.row in seen
        seen[result.ref.row] = result if isinstance(result, Failure) else None
        if not told:
            self._observer.image(result, shard.number)

    def shard(self, receipt: Receipt) -> None:
        self._rows.update(receipt.rows)
        self._seconds.update(receipt.seconds)
        self._masks += receipt.masks
        self._written += receipt.won
        self._peak_mb = max(self._peak_mb, receipt.peak_memory_mb)
        for failure in self._in_hand.pop(receipt.shard, {}).values():
            if failure is not None and len(self._failures) < FAILURES_SHOWN:
                self._failures.append((failure.ref.key, str(failure.status), failure.reason))
        self._observer.shard(receipt)
        self._finished(sum(receipt.rows.values()))

    def workers(self, *, ready: int, starting: int, lost: int) -> None:
        """So many there are now, and so many have ended early so far."""
        self._observer.workers(up=ready, lost=lost)
        self._metrics.workers(ready=ready, starting=starting)

    def death(self, cause: DeathCause) -> None:
        self._metrics.worker_died(cause)

    def note(self, text: str) -> None:
        self._observer.note(text)

    def elsewhere(self, shard: Shard) -> None:
        """Another run has made the shard meanwhile."""
        self._elsewhere += len(shard.refs)
        self._finished(len(shard.refs))

    def lease_wait(self, seconds: float) -> None:
        """A worker had nothing to do for so long before it got a shard."""
        self._metrics.lease_wait(seconds)

    def gave_up(self) -> None:
        self._metrics.gave_up()

    def _finished(self, images: int) -> None:
        self._left = (self._left[0] - 1, self._left[1] - images)
        self._measure()

    def _measure(self) -> None:
        shards, images = self._left
        self._metrics.shards(done=self._planned[0] - shards, left=shards)
        self._metrics.images(done=self._planned[1] - images, left=images)

    def summary(self, out: str, planned: int, done: int, wall_seconds: float) -> Summary:
        return Summary(
            out=out,
            planned=planned,
            already_done=done + self._elsewhere,
            rows=dict(self._rows),
            failures=tuple(self._failures),
            masks=self._masks,
            seconds=dict(self._seconds),
            wall_seconds=wall_seconds,
            peak_memory_mb=max(self._peak_mb, peak_memory_mb()),
            shards_written=self._written,
        )
