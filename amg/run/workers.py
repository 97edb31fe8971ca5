"""The parent's side of a job in several processes: start workers, lease shards to them, replace those that die.

Workers are spawned, not forked, and commit their shards themselves. What a death means is decided in `leases`.
"""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from amg.errors import AmgError, StorageError, WorkerError
from amg.run import attempts
from amg.run.leases import Death, Lease, Leases
from amg.run.plan import Shard
from amg.run.shard import Job, Label
from amg.run.signals import STOPPING, held
from amg.run.tally import Tally
from amg.run.worker import Began, Broken, Message, Ready, Seen, work
from amg.values import MaskSet, Receipt, Status

STARTS_IN_VAIN = 5
"""Workers that end one after the other before they are ready; then no more are started."""
COMMIT_SECONDS = 5.0
"""What a job that is interrupted grants to a worker whose images are all labeled."""
FAREWELL_SECONDS = 5.0


def label_in_workers(
    todo: Iterable[Shard], job: Job, open_label: Callable[[str], Label], devices: Sequence[str], tally: Tally
) -> None:
    """Label the shards with one worker on each of `devices` (a name may come several times).

    A shard whose worker dies is tried again; see `leases`. Raises what a worker raised, such as StorageError, at once;
    WorkerError after all other shards are done, when some had to be given up, or when no worker gets ready.
    """
    leases = Leases(todo, history=attempts.read_attempts(job.store))
    pool = _Pool(leases, job, open_label, tally)
    try:
        pool.run(devices)
    finally:
        pool.stop()
    if leases.given_up:
        raise WorkerError(_what_was_given_up(leases))


class _Worker:
    """One process and what it has in hand. `heard` is when it last said something, or was given something to do."""

    def __init__(self, job: Job, open_label: Callable[[str], Label], device: str) -> None:
        self.device = device
        self.ready = False
        self.overdue = False
        self.lease: Lease | None = None
        self.left = 0
        self.in_hand: int | None = None
        self.heard = time.monotonic()
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=work, args=(theirs, job, open_label, device), daemon=True)
        self.process.start()
        theirs.close()

    @property
    def is_labeling(self) -> bool:
        """Whether it has images in hand: not while it loads the model, and not while it commits."""
        return self.lease is not None and self.left > 0

    def give(self, lease: Lease) -> None:
        self.lease, self.left, self.in_hand = lease, len(lease.shard.refs), None
        self.heard = time.monotonic()
        with suppress(OSError):  # it is dead, which the end of its pipe will say
            self.pipe.send(lease)

    def end(self, seconds: float) -> int:
        """Wait for its end, then make it end; the exit code."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        self.pipe.close()
        assert self.process.exitcode is not None
        return self.process.exitcode


class _Pool:
    def __init__(self, leases: Leases, job: Job, open_label: Callable[[str], Label], tally: Tally) -> None:
        self._leases, self._job, self._open_label, self._tally = leases, job, open_label, tally
        self._image_seconds = job.config.run.image_timeout_s
        self._in_vain = 0
        self._workers: list[_Worker] = []

    def run(self, devices: Sequence[str]) -> None:
        """Until no shard is left and none is out."""
        resource_tracker.ensure_running()  # now, because its start lets go of the signals that `held` holds
        for device in devices:
            self._start(device)
        while not self._leases.is_over:
            self._lease_to_idle()
            for worker in self._heard():
                if not self._listen(worker):
                    self._bury(worker)
            self._kill_overdue()
        for worker in self._workers:
            worker.pipe.close()
        until = time.monotonic() + FAREWELL_SECONDS
        for worker in self._workers:
            worker.end(max(0.0, until - time.monotonic()))

    def stop(self) -> None:
        """End the workers; one that is only committing gets the time for it. Sweeps what is left behind."""
        until = time.monotonic() + COMMIT_SECONDS
        for worker in self._workers:
            if worker.lease and not worker.is_labeling:
                with suppress(EOFError, OSError, AmgError):
                    while worker.lease and worker.pipe.poll(max(0.0, until - time.monotonic())):
                        self._hear(worker, worker.pipe.recv())
        for worker in self._workers:
            worker.end(0.0)
        self._workers.clear()
        with suppress(StorageError):  # what stopped the job is the better message
            self._job.store.sweep()

    def _start(self, device: str) -> None:
        with held():  # a worker is born and known, or not born; it takes no Ctrl-C before it ignores them
            self._workers.append(_Worker(self._job, self._open_label, device))

    def _lease_to_idle(self) -> None:
        for worker in self._workers:
            if worker.ready and worker.lease is None and (lease := self._next()):
                worker.give(lease)

    def _next(self) -> Lease | None:
        """The next shard that no other run has made meanwhile."""
        while lease := self._leases.take():
            if not self._job.store.exists(lease.shard.path):
                return lease
            self._leases.finished(lease.shard)
            self._tally.elsewhere(lease.shard)
        return None

    def _heard(self) -> list[_Worker]:
        """Those that have said something or ended, or none when a deadline comes first."""
        if self._leases.is_over:
            return []
        ends: list[Connection | int] = [end for w in self._workers for end in (w.pipe, w.process.sentinel)]
        since = [worker.heard for worker in self._workers if worker.is_labeling]
        timeout = None
        if self._image_seconds and since:
            timeout = max(0.0, min(since) + self._image_seconds - time.monotonic()) + 0.01
        heard = connection.wait(ends, timeout)
        return [w for w in self._workers if w.pipe in heard or w.process.sentinel in heard]

    def _listen(self, worker: _Worker) -> bool:
        """Hear all it has said; False when it has ended."""
        alive = worker.process.is_alive()  # asked first: what it said before it ended is in the pipe by then
        try:
            while worker.pipe.poll():
                self._hear(worker, worker.pipe.recv())
        except (EOFError, OSError):
            return False
        return alive

    def _hear(self, worker: _Worker, message: Message) -> None:
        worker.heard = time.monotonic()
        lease = worker.lease
        match message:
            case Ready():
                worker.ready, self._in_vain = True, 0
            case Broken(error):
                raise error
            case Began(row):
                worker.in_hand = row
            case Seen(result):
                assert lease is not None
                worker.left -= 1
                worker.in_hand = None
                if lease.isolated and isinstance(result, MaskSet):
                    self._leases.got_through(lease.shard, result.ref.row)
                self._tally.image(lease.shard, result)
            case Receipt():
                assert lease is not None
                worker.lease = None
                self._leases.finished(lease.shard)
                self._tally.shard(message)

    def _kill_overdue(self) -> None:
        for worker in self._workers:
            silent = time.monotonic() - worker.heard
            if self._image_seconds and worker.is_labeling and silent > self._image_seconds:
                worker.overdue = True
                worker.process.kill()

    def _bury(self, worker: _Worker) -> None:
        """Learn from a death, and start another worker in its place where there is work for it."""
        self._workers.remove(worker)
        exit_code = worker.end(1.0)
        death = Death(Status.CRASH, f"by {_how(exit_code)}")
        if worker.overdue:
            death = Death(Status.TIMEOUT, f"because it took more than {self._image_seconds:g} s (run.image_timeout_s)")
        if worker.lease:
            blamed = None if -exit_code in STOPPING else worker.in_hand  # somebody stopped it, no image did
            history = self._leases.died(worker.lease, death, blamed)
            attempts.record(self._job.store, worker.lease.shard.number, history)
        elif not worker.ready:
            self._in_vain += 1
            if self._in_vain >= STARTS_IN_VAIN:
                raise WorkerError(
                    f"{self._in_vain} workers in a row ended before they were ready, the last {death.reason}; fewer of "
                    "them (run.workers) need less memory, and one alone on one device shows what is wrong"
                )
        if self._leases.has_more:
            self._start(worker.device)


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    with suppress(ValueError):
        name = signal.Signals(-exit_code).name
        memory = ", which the system also sends when memory runs out" if name == "SIGKILL" else ""
        return f"signal {-exit_code} ({name}{memory})"
    return f"signal {-exit_code}"


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
