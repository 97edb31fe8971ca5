"""Workers over one list of shards, whatever they are: lease, listen, learn from deaths, hire again.

What a worker is, a process of this machine or a Ray actor, is its crew's business; what a death means is decided in
`leases`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from amg.errors import AmgError, StorageError, WorkerError
from amg.run import attempts
from amg.run.leases import Death, History, Lease, Leases
from amg.run.metrics import DeathCause
from amg.run.patience import Patience
from amg.run.plan import Plan
from amg.run.shard import Job, Result
from amg.run.signals import deferred
from amg.run.tally import Tally
from amg.run.worker import Began, Broken, Elsewhere, Message, Ready, Seen
from amg.values import MaskSet, Receipt, Status

ENDS_IN_VAIN = 5
"""Workers that end or break, one after the other and without anything done between them; then no more are hired."""
COMMIT_SECONDS = 5.0
"""What a job that is interrupted grants to a worker whose images are all labeled."""
SECONDS_TO_WRITE = 600.0
"""What a worker has for writing a shard: more than a store takes that is asked again and again, and then gives up."""
SECONDS_TO_LOOK_AGAIN = 5.0
"""After so long without a word the pool looks whether there is room for more workers."""
SECONDS_TO_COMPLAIN = 60.0
"""After so long without a ready worker the job says what it waits for."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A worker is gone. `how` fits after "the worker died"; `cause` is a word for counters.

    `charged`: whether its shard may have had a part in it, of which a lost machine tells nothing. `blames` the image in
    hand: not when somebody stopped the worker. `in_doubt`: as in `Death`.
    """

    how: str
    cause: DeathCause = "crash"
    status: Status = Status.CRASH
    charged: bool = True
    blames: bool = True
    in_doubt: bool = True


@dataclass(eq=False, slots=True)
class Worker:
    """What the pool knows of one. `heard` is when it last said something, or was given something to do.

    `leases`: what it has in hand, and behind it what waits for it. `ending`: why the pool has ended it.
    """

    where: str
    ready: bool = False
    ending: Ended | None = None
    leases: deque[Lease] = field(default_factory=deque)
    left: int = 0
    in_hand: int | None = None
    heard: float = field(default_factory=time.monotonic)

    @property
    def is_labeling(self) -> bool:
        """Whether it has images in hand: not while it loads the model, and not while it commits."""
        return bool(self.leases) and self.left > 0

    @property
    def is_committing(self) -> bool:
        """Whether all images of its shard are done, and the shard is not."""
        return bool(self.leases) and self.left == 0

    def took(self, lease: Lease) -> None:
        self.leases.append(lease)
        if len(self.leases) == 1:
            self._begin()

    def finished(self) -> Lease:
        """Its shard is made; it goes on with the next one, if there is one."""
        lease = self.leases.popleft()
        self._begin()
        return lease

    def _begin(self) -> None:
        self.left = len(self.leases[0].shard.refs) if self.leases else 0
        self.in_hand, self.heard = None, time.monotonic()


class Crew(Protocol):
    """Workers of one kind. `leases_ahead`: how many may wait for a worker that has one in hand."""

    leases_ahead: int
    forgives: bool
    """Whether a worker that breaks may be the only one to: it is on a machine of its own."""

    def hire(self, wanted: int) -> Sequence[Worker]:
        """As many new workers as there is room for, `wanted` at most."""
        ...

    def room(self) -> int:
        """How many workers there should be, those that are included; it may change while a job runs."""
        ...

    def waits_for(self) -> str:
        """What a worker that is long in getting ready may be waiting for."""
        ...

    def give(self, worker: Worker, lease: Lease) -> None:
        """Hand it over; a worker that has died meanwhile says so later, in `heard`."""
        ...

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        """Until one of them has said something or ended, for `seconds` at most."""
        ...

    def heard(self, workers: Sequence[Worker]) -> list[tuple[Worker, Message | Ended]]:
        """What they have said since, in order, or that they ended."""
        ...

    def may_work(self, worker: Worker) -> bool:
        """Whether it should get another shard: not when its machine is about to go."""
        ...

    def kill(self, worker: Worker) -> None:
        """End it now; `heard` tells when it has."""
        ...

    def dismiss(self, workers: Sequence[Worker], seconds: float) -> None:
        """End them all, in order within `seconds`, then by force."""
        ...


def label_with(crew: Crew, plan: Plan, job: Job, tally: Tally, *, expected_seconds: float) -> None:
    """Label the shards of what is left of a plan; one whose worker dies is tried again, see `leases`.

    Raises what a worker raised, such as StorageError, at once or, where the crew forgives, when others do so too;
    WorkerError after all other shards are done, when some had to be given up, or when no worker gets ready.
    """
    leases = Leases(plan.shards(), plan.n_shards, history=attempts.read_attempts(job.store))
    pool = _Pool(crew, leases, job, tally, Patience(job.config, expected_seconds))
    try:
        pool.run()
    finally:
        pool.stop()
    if leases.given_up:
        raise WorkerError(_what_was_given_up(leases))


class _Pool:
    def __init__(self, crew: Crew, leases: Leases, job: Job, tally: Tally, patience: Patience) -> None:
        self._crew, self._leases, self._job, self._tally, self._patience = crew, leases, job, tally, patience
        self._in_vain = 0
        self._broken = 0
        self._lost = 0
        self._workers: list[Worker] = []
        self._looked = self._had_ready = time.monotonic()

    def run(self) -> None:
        """Until no shard is left and none is out."""
        while not self._leases.is_over:
            self._hire()
            self._lease_to_idle()
            if self._leases.is_over:
                break
            self._crew.wait(self._workers, self._seconds_to_wait())
            with deferred():  # what was heard once is not told again: it is all taken in, or nobody knows of a commit
                for worker, said in self._crew.heard(self._workers):
                    self._bury(worker, said) if isinstance(said, Ended) else self._hear(worker, said)
            self._end_overdue()
            self._say_what_it_waits_for()
        workers, self._workers = self._workers, []
        self._crew.dismiss(workers, COMMIT_SECONDS)

    def stop(self) -> None:
        """End the workers; one that is only committing gets the time for it. Sweeps what is left behind."""
        until = time.monotonic() + COMMIT_SECONDS
        while committing := [worker for worker in self._workers if worker.is_committing]:
            seconds = until - time.monotonic()
            if seconds <= 0:
                break
            self._crew.wait(committing, seconds)
            for worker, said in self._crew.heard(committing):
                with suppress(AmgError):
                    self._workers.remove(worker) if isinstance(said, Ended) else self._hear(worker, said)
        self._crew.dismiss(self._workers, 0.0)
        self._workers.clear()
        with suppress(StorageError):  # what stopped the job is the better message
            self._job.store.sweep()

    def _hire(self) -> None:
        """Up to what there is room and work for, those aside whose machine is about to go."""
        staying = [worker for worker in self._workers if self._crew.may_work(worker)]
        if not self._leases.has_more or any(worker.ready and not worker.leases for worker in staying):
            return
        missing = min(self._crew.room(), self._leases.left) - len(staying)
        if missing > 0 and (hired := self._crew.hire(missing)):
            self._workers += hired
            self._tell()

    def _tell(self) -> None:
        ready = sum(worker.ready for worker in self._workers)
        self._tally.workers(ready=ready, starting=len(self._workers) - ready, lost=self._lost)

    def _lease_to_idle(self) -> None:
        """Everybody gets one before anybody gets the next, and that only while there is plenty.

        Whether another run has made it meanwhile is for the worker to see: a store may take its time to answer.
        """
        for already in range(1 + self._crew.leases_ahead):
            if already and self._leases.waiting <= len(self._workers):
                return
            for worker in self._workers:
                if worker.ready and not worker.ending and len(worker.leases) == already and self._crew.may_work(worker):
                    if (lease := self._leases.take(fresh=already > 0)) is None:
                        return
                    self._tally.lease_wait(0.0 if already else time.monotonic() - worker.heard)
                    worker.took(lease)
                    self._crew.give(worker, lease)

    def _seconds_to_wait(self) -> float:
        since = [worker.heard for worker in self._workers if worker.is_labeling]
        if not since:
            return SECONDS_TO_LOOK_AGAIN
        return min(SECONDS_TO_LOOK_AGAIN, max(0.0, min(since) + self._patience.seconds - time.monotonic()) + 0.01)

    def _hear(self, worker: Worker, message: Message) -> None:
        before, worker.heard = worker.heard, time.monotonic()
        match message:
            case Ready(where):
                worker.ready, worker.where, self._in_vain = True, where or worker.where, 0
                self._tell()
            case Broken(error):
                self._broke(worker, error)
            case Began(row):
                worker.in_hand = row
            case Seen(results):
                self._patience.saw(len(results), worker.heard - before)
                self._saw(worker, results)
            case Elsewhere():
                shard = worker.finished().shard
                self._leases.finished(shard)
                self._tally.elsewhere(shard)
            case Receipt():
                self._broken = 0
                self._leases.finished(worker.finished().shard)
                self._tally.shard(message)

    def _saw(self, worker: Worker, results: Sequence[Result]) -> None:
        lease = worker.leases[0]
        worker.left -= len(results)
        worker.in_hand = None
        for result in results:
            if lease.isolated and isinstance(result, MaskSet):
                self._remember(lease, self._leases.got_through(lease.shard, result.ref.row))
            self._tally.image(lease.shard, result)

    def _broke(self, worker: Worker, error: BaseException) -> None:
        """It cannot go on. The job can, as long as others can."""
        self._broken += 1
        if not self._crew.forgives or self._broken >= min(ENDS_IN_VAIN, self._crew.room()):
            raise error
        self._tally.note(f"a worker on {worker.where} gave up: {error}")
        self._end(worker, Ended(f"because of an error: {error}", "error", blames=False))

    def _end_overdue(self) -> None:
        now, looked = time.monotonic(), self._looked
        self._looked = now
        if now - looked > 2 * SECONDS_TO_LOOK_AGAIN:  # this process was stopped, and the workers perhaps with it
            for worker in self._workers:
                worker.heard = now
        for worker in self._workers:
            if not worker.ending and (why := self._overdue(worker, now - worker.heard)):
                self._end(worker, why)

    def _overdue(self, worker: Worker, silent_seconds: float) -> Ended | None:
        """Why a worker that has said nothing for so long is to be ended."""
        if worker.is_labeling and silent_seconds > self._patience.seconds:
            return Ended(self._patience.reason, "timeout", Status.TIMEOUT)
        if worker.is_committing and silent_seconds > SECONDS_TO_WRITE:
            return Ended(f"because its shard was not written in {SECONDS_TO_WRITE:g} s", "timeout", blames=False)
        return None

    def _say_what_it_waits_for(self) -> None:
        now = time.monotonic()
        if any(worker.ready for worker in self._workers):
            self._had_ready = now
        elif now - self._had_ready > SECONDS_TO_COMPLAIN:
            self._had_ready = now
            self._tally.note(f"no worker has got ready yet; waiting for {self._crew.waits_for()}")

    def _end(self, worker: Worker, why: Ended) -> None:
        worker.ending = why
        self._crew.kill(worker)

    def _bury(self, worker: Worker, ended: Ended) -> None:
        """Learn from an end. What the worker had not begun goes back as it was, and all of it when nothing is known."""
        self._workers.remove(worker)
        self._lost += 1
        ended = worker.ending or ended
        self._tally.death(ended.cause)
        self._tell()
        leases = list(worker.leases)
        for lease in reversed(leases[1:] if ended.charged else leases):
            self._leases.returned(lease)
        if leases and ended.charged:
            death = Death(ended.status, ended.how, ended.in_doubt)
            self._remember(leases[0], self._leases.died(leases[0], death, worker.in_hand if ended.blames else None))
            if leases[0].shard.number in self._leases.given_up:
                self._tally.gave_up()
        elif not worker.ready and ended.charged:
            self._ended_in_vain(ended)

    def _remember(self, lease: Lease, history: History | None) -> None:
        if history is not None:
            attempts.record(self._job.store, lease.shard.number, history)

    def _ended_in_vain(self, ended: Ended) -> None:
        self._in_vain += 1
        if self._in_vain >= ENDS_IN_VAIN:
            raise WorkerError(
                f"{self._in_vain} workers in a row ended before they were ready, the last {ended.how}; fewer of "
                "them (run.workers) need less memory, and one alone on one device shows what is wrong"
            )


def _what_was_given_up(leases: Leases) -> str:
    lines = [
        f"  shard {number} ({shard.refs[0].key} to {shard.refs[-1].key}): {reason}"
        for number, (shard, reason) in sorted(leases.given_up.items())
    ]
    count = f"{len(lines)} shard{'s' if len(lines) > 1 else ''}"
    return (
        f"{count} could not be finished, all others are done; run the same command again to try once more, with fewer "
        "workers (run.workers) if memory ran out:\n" + "\n".join(lines)
    )
