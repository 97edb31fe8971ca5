"""Workers that are processes of this machine: spawned, not forked; they commit their shards themselves."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import connection, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from amg.run.leases import Lease
from amg.run.pool import Ended, Worker
from amg.run.shard import Job, OpenLabel
from amg.run.signals import STOPPING, held
from amg.run.worker import Message, work

CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT})
"""What a process gets for what it does, and hardly from somebody else."""


class ProcessCrew:
    """One worker on each of `devices`; a name may come several times."""

    leases_ahead = 0
    forgives = False

    def __init__(self, devices: Sequence[str], job: Job, open_label: OpenLabel) -> None:
        self._job, self._open_label = job, open_label
        self._devices = list(devices)
        self._pipes: dict[Worker, Connection] = {}
        self._processes: dict[Worker, BaseProcess] = {}
        resource_tracker.ensure_running()  # now, because its start lets go of the signals that `held` holds

    def room(self) -> int:
        return len(self._devices)

    def hire(self, wanted: int) -> list[Worker]:
        free = list(self._devices)
        for worker in self._processes:
            free.remove(worker.where)
        return [self._start(device) for device in free[:wanted]]

    def waits_for(self) -> str:
        return "the model to be loaded"

    def _start(self, device: str) -> Worker:
        context = multiprocessing.get_context("spawn")
        worker = Worker(device)
        pipe, theirs = context.Pipe()
        arguments = (theirs, self._job, self._open_label, device)
        with held():  # a worker is born and known, or not born; it takes no Ctrl-C before it ignores them
            process = context.Process(target=work, args=arguments, daemon=True)
            process.start()
            self._pipes[worker], self._processes[worker] = pipe, process
        theirs.close()
        return worker

    def give(self, worker: Worker, lease: Lease) -> None:
        with suppress(OSError):  # it is dead, which the end of its pipe will say
            self._pipes[worker].send(lease)

    def may_work(self, worker: Worker) -> bool:
        return True

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        connection.wait(self._ends(workers), seconds)

    def heard(self, workers: Sequence[Worker]) -> list[tuple[Worker, Message | Ended]]:
        talking = set(connection.wait(self._ends(workers), 0.0))
        said: list[tuple[Worker, Message | Ended]] = []
        for worker in workers:
            if talking & {self._pipes[worker], self._processes[worker].sentinel}:
                said += [(worker, message) for message in self._hear(worker)]
        return said

    def _ends(self, workers: Sequence[Worker]) -> list[Connection | int]:
        return [end for worker in workers for end in (self._pipes[worker], self._processes[worker].sentinel)]

    def _hear(self, worker: Worker) -> list[Message | Ended]:
        """All it has said, and at last its end."""
        pipe = self._pipes[worker]
        alive = self._processes[worker].is_alive()  # asked first: what it said before it ended is in the pipe by then
        said: list[Message | Ended] = []
        try:
            while pipe.poll():
                said.append(pipe.recv())
        except (EOFError, OSError):
            alive = False
        return said if alive else [*said, _ended(self._forget(worker, 1.0))]

    def kill(self, worker: Worker) -> None:
        self._processes[worker].kill()

    def dismiss(self, workers: Sequence[Worker], seconds: float) -> None:
        for worker in workers:
            if worker in self._pipes and seconds:
                self._pipes[worker].close()
        until = time.monotonic() + seconds
        for worker in [worker for worker in workers if worker in self._processes]:
            self._forget(worker, max(0.0, until - time.monotonic()))

    def _forget(self, worker: Worker, seconds: float) -> int:
        """Wait for its end, then make it end; the exit code."""
        process = self._processes.pop(worker)
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
        self._pipes.pop(worker).close()
        assert process.exitcode is not None
        return process.exitcode


def _ended(exit_code: int) -> Ended:
    if -exit_code in STOPPING:  # somebody stopped it, no image did
        return Ended(f"by {_how(exit_code)}", "interrupted", blames=False)
    return Ended(f"by {_how(exit_code)}", in_doubt=exit_code < 0 and -exit_code not in CRASHES)


def _how(exit_code: int) -> str:
    if exit_code >= 0:
        return f"exit status {exit_code}"
    with suppress(ValueError):
        name = signal.Signals(-exit_code).name
        memory = ", which the system also sends when memory runs out" if name == "SIGKILL" else ""
        return f"signal {-exit_code} ({name}{memory})"
    return f"signal {-exit_code}"
