"""Which worker gets which shard, and what follows from a worker's death. Knows no process, no clock and no file.

A shard is tried a first time at full speed. If its worker dies, nobody knows of which image: the shard is tried again
in isolation, one image in hand at a time, each announced before it is touched. An image with which an isolated try died
comes first in the next one. If it gets through it is free of suspicion; if that try dies with it too, it is settled as
a failure, after a third such death where somebody else may have struck. So a worker that is killed at random costs time
and no row.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from amg.run.plan import Shard
from amg.values import Failure, ImageRef, Status

DEATHS_TO_SETTLE = 2
DEATHS_TO_SETTLE_WHEN_IN_DOUBT = 3
DEATHS_TO_GIVE_UP = 10
"""Deaths over one shard, since its last image was settled, after which this run leaves it."""


@dataclass(frozen=True, slots=True)
class Death:
    """How a worker ended: `status` is `crash` or `timeout`; `reason` fits after "the worker died".

    `in_doubt`: whether it may have been struck from outside, as by a SIGKILL, and not by what it did.
    """

    status: Status
    reason: str
    in_doubt: bool = True


@dataclass(frozen=True, slots=True)
class Suspicion:
    """The isolated tries in a row that ended with one image in hand; `in_doubt`: one of them, at least, was."""

    deaths: int
    in_doubt: bool
    last: Death

    @property
    def is_enough(self) -> bool:
        return self.deaths >= (DEATHS_TO_SETTLE_WHEN_IN_DOUBT if self.in_doubt else DEATHS_TO_SETTLE)


@dataclass(frozen=True, slots=True)
class History:
    """What the tries of one shard have shown. Rows are `ImageRef.row`."""

    deaths: int = 0
    suspects: Mapping[int, Suspicion] = field(default_factory=dict)
    settled: Mapping[int, Suspicion] = field(default_factory=dict)

    def after(self, death: Death, in_hand: int | None) -> History:
        """One death later; `in_hand` is the row of the image that was in hand, None where the try was not isolated."""
        suspects, settled = dict(self.suspects), dict(self.settled)
        if in_hand is not None:
            before = suspects.pop(in_hand, None) or Suspicion(0, False, death)
            suspicion = Suspicion(before.deaths + 1, before.in_doubt or death.in_doubt, death)
            (settled if suspicion.is_enough else suspects)[in_hand] = suspicion
        return History(self.deaths + 1, suspects, settled)

    def without_suspect(self, row: int) -> History:
        """The same after the image got through."""
        return replace(self, suspects={r: s for r, s in self.suspects.items() if r != row})


@dataclass(frozen=True, slots=True)
class Lease:
    """One try of one shard. The images in `settled` get their rows untouched, those of `first` come first."""

    shard: Shard
    isolated: bool = False
    first: frozenset[int] = frozenset()
    settled: tuple[Failure, ...] = ()

    @property
    def to_label(self) -> list[ImageRef]:
        """The images to try, in the order to try them."""
        failed = {failure.ref.row for failure in self.settled}
        refs = [ref for ref in self.shard.refs if ref.row not in failed]
        return sorted(refs, key=lambda ref: ref.row not in self.first)


class Leases:
    """Hands out `count` shards, and takes back those whose worker died: after the fresh ones, in isolation.

    `left` counts those that are not finished, `waiting` those of them that nobody has in hand.
    """

    def __init__(
        self,
        todo: Iterable[Shard],
        count: int,
        *,
        history: Mapping[int, History] | None = None,
        deaths_to_give_up: int = DEATHS_TO_GIVE_UP,
    ) -> None:
        self.left = count
        self.given_up: dict[int, tuple[Shard, str]] = {}
        self._fresh: Iterator[Shard] = iter(todo)
        self._next = next(self._fresh, None)
        self._untouched: deque[Shard] = deque()
        self._again: deque[Shard] = deque()
        self._out: set[int] = set()
        self._history = dict(history or {})
        self._deaths_in_vain: dict[int, int] = {}
        self._deaths_to_give_up = deaths_to_give_up

    @property
    def has_more(self) -> bool:
        """Whether `take` has a shard now."""
        return self._next is not None or bool(self._untouched) or bool(self._again)

    @property
    def waiting(self) -> int:
        return self.left - len(self._out)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left and nothing is out that may come back."""
        return not self.has_more and not self._out

    def take(self, *, fresh: bool = False) -> Lease | None:
        """The next shard, only of those that no worker has died of with `fresh`; None when there is none now.

        One that is out may still come back.
        """
        if self._untouched:
            shard = self._untouched.popleft()
        elif self._next is not None and not (fresh and self._is_suspect(self._next)):
            shard, self._next = self._next, next(self._fresh, None)
        elif self._again and not fresh:
            shard = self._again.popleft()
        else:
            return None
        self._out.add(shard.number)
        history = self._history.get(shard.number, History())
        return Lease(
            shard,
            isolated=shard.isolated or history.deaths > 0,
            first=frozenset(history.suspects),
            settled=tuple(
                Failure(ref, suspicion.last.status, _verdict(suspicion))
                for ref in shard.refs
                if (suspicion := history.settled.get(ref.row))
            ),
        )

    def _is_suspect(self, shard: Shard) -> bool:
        return shard.isolated or shard.number in self._history

    def got_through(self, shard: Shard, row: int) -> History | None:
        """An isolated try has labeled the image: if it was a suspect it is none any more, which is to be remembered."""
        history = self._history.get(shard.number)
        if history is None or row not in history.suspects:
            return None
        self._history[shard.number] = history.without_suspect(row)
        return self._history[shard.number]

    def returned(self, lease: Lease) -> None:
        """Take a shard back that has shown nothing: the next one to be taken, unless it is to be tried in isolation."""
        self._out.discard(lease.shard.number)
        (self._again if lease.isolated else self._untouched).appendleft(lease.shard)

    def finished(self, shard: Shard) -> None:
        self.left -= 1
        self._out.discard(shard.number)
        self._history.pop(shard.number, None)
        self._deaths_in_vain.pop(shard.number, None)

    def died(self, lease: Lease, death: Death, in_hand: int | None) -> History:
        """Take the shard back; its history, to be remembered. `in_hand` as in `History.after`."""
        shard = lease.shard
        self._out.discard(shard.number)
        before = self._history.get(shard.number, History())
        after = before.after(death, in_hand if lease.isolated else None)
        self._history[shard.number] = after
        settled_one = len(after.settled) > len(before.settled)
        in_vain = 0 if settled_one else self._deaths_in_vain.get(shard.number, 0) + 1
        self._deaths_in_vain[shard.number] = in_vain
        if in_vain >= self._deaths_to_give_up:
            self.left -= 1
            self.given_up[shard.number] = (shard, f"its worker died {in_vain} times in vain, the last {death.reason}")
        else:
            self._again.append(shard)
        return after


def _verdict(seen: Suspicion) -> str:
    return f"tried alone, the image ended its worker {seen.deaths} times in a row, the last time {seen.last.reason}"
