"""Workers that are Ray actors: as many as the cluster has room for, and those it is asked to make room for.

Ray restarts no actor and tries no task again: what a death means is for `leases` to say.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError, RayTaskError

from amg.config import Config
from amg.errors import ConfigError
from amg.run.leases import Lease
from amg.run.pool import Ended, Worker
from amg.run.ray_worker import RayWorker
from amg.run.shard import Job, OpenLabel
from amg.run.worker import Broken, Message, sendable

SECONDS_BETWEEN_LOOKS = 10.0
"""How old the driver's view of the cluster's nodes may be."""


@dataclass(frozen=True, slots=True)
class Reserved:
    """What Ray reserves for one worker."""

    gpus: float
    cpus: float

    def __str__(self) -> str:
        return f"a worker with {self.gpus:g} GPUs and {self.cpus:g} cores"

    def fit(self, there: Mapping[str, float]) -> int:
        """How many workers find room in so much."""
        rooms = [there.get(name, 0.0) // need for name, need in (("GPU", self.gpus), ("CPU", self.cpus)) if need]
        return int(min(rooms, default=1))


def reserve(config: Config, device: str) -> Reserved:
    """What a worker on this kind of device gets; ConfigError where the settings do not fit each other."""
    gpus, cpus = config.run.gpus_per_worker, config.run.cpus_per_worker
    on_gpu = device.startswith("cuda")
    gpus = float(on_gpu) if gpus is None else gpus
    if on_gpu != (gpus > 0):
        raise ConfigError(
            f"run.gpus_per_worker is {gpus:g} and run.device is {device}: a worker on {device} needs "
            f"{'a GPU or a part of one' if on_gpu else 'none'}"
        )
    default = 1.0 if on_gpu else float(config.run.threads or 1)
    return Reserved(gpus, default if cpus is None else cpus)


@dataclass(eq=False, slots=True)
class _Actor:
    """`calls` are its leases' streams, the one in hand first; `opening` is there until the model is loaded.

    `probe`: a call that will tell what became of it, when the connection to it was lost.
    """

    handle: Any
    opening: Any
    probe: Any | None = None
    is_killed: bool = False
    node: str | None = None
    calls: deque[Any] = field(default_factory=deque)

    @property
    def awaited(self) -> Any | None:
        if self.probe is not None or self.opening is not None:
            return self.probe or self.opening
        return self.calls[0] if self.calls else None


class RayCrew:
    """Actors with `reserved` each: as many as the nodes have room for, or `most` of them.

    Actors without room wait for it, and are what an autoscaler sees of the job.
    """

    leases_ahead = 1
    forgives = True

    def __init__(self, device: str, reserved: Reserved, most: int | None, job: Job, open_label: OpenLabel) -> None:
        self._device, self._reserved, self._most = device, reserved, most
        self._job, self._open_label = ray.put(job), ray.put(open_label)
        self._actors: dict[Worker, _Actor] = {}
        self._looked = -SECONDS_BETWEEN_LOOKS
        self._alive: set[str] = set()
        self._leaving: set[str] = set()
        self._room = 1

    def room(self) -> int:
        self._look()
        return self._most or max(1, self._room)

    def hire(self, wanted: int) -> list[Worker]:
        return [self._start() for _ in range(wanted)]

    def waits_for(self) -> str:
        there = ray.cluster_resources()
        return (
            f"room for {self._reserved}; the cluster has {there.get('GPU', 0):g} GPUs and {there.get('CPU', 0):g} "
            "cores. It may grow; else see run.gpus_per_worker and run.cpus_per_worker"
        )

    def _start(self) -> Worker:
        never_again: dict[str, Any] = {"max_restarts": 0, "max_task_retries": 0}
        reserved: dict[str, Any] = {"num_gpus": self._reserved.gpus, "num_cpus": self._reserved.cpus}
        actor_class: Any = ray.remote(**reserved, **never_again)(RayWorker)
        handle = actor_class.options(scheduling_strategy="SPREAD").remote(self._job, self._open_label, self._device)
        worker = Worker(self._device)
        self._actors[worker] = _Actor(handle, handle.open.remote())
        return worker

    def give(self, worker: Worker, lease: Lease) -> None:
        ahead = {"_generator_backpressure_num_objects": 1} if lease.isolated else {}
        actor = self._actors[worker]
        actor.calls.append(actor.handle.label.options(num_returns="streaming", **ahead).remote(lease))

    def may_work(self, worker: Worker) -> bool:
        self._look()
        return self._actors[worker].node not in self._leaving

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        if any(self._actors[worker].is_killed for worker in workers):
            return
        if calls := list(self._awaited(workers)):
            ray.wait(calls, num_returns=1, timeout=seconds)
        else:
            time.sleep(min(seconds, 0.1))

    def heard(self, workers: Sequence[Worker]) -> list[tuple[Worker, Message | Ended]]:
        if killed := [worker for worker in workers if self._actors[worker].is_killed]:
            for worker in killed:
                del self._actors[worker]
            return [(worker, Ended("by Ray")) for worker in killed]
        by_call = self._awaited(workers)
        ready, _ = ray.wait(list(by_call), num_returns=len(by_call), timeout=0) if by_call else ([], [])
        return [(worker, said) for call in ready for worker in [by_call[call]] for said in self._hear(worker, call)]

    def _awaited(self, workers: Sequence[Worker]) -> dict[Any, Worker]:
        """Who will answer which call."""
        return {call: worker for worker in workers if (call := self._actors[worker].awaited) is not None}

    def _hear(self, worker: Worker, call: Any) -> Sequence[Message | Ended]:
        """What has come of a call: a message, nothing when its stream is at its end, or that its actor is gone."""
        actor = self._actors[worker]
        try:
            if call is actor.probe:
                ray.get(call)
                self.kill(worker)
                del self._actors[worker]
                return [Ended("because the connection to it was lost", "node_died", charged=False)]
            if call is actor.opening:
                actor.node = ray.get(_node_of(actor.handle))
                actor.opening = None
                said: Any = ray.get(call)
            else:
                said = ray.get(next(call))
            return [said]
        except StopIteration:
            actor.calls.popleft()
            return []
        except RayTaskError as error:  # the actor lives and has said what is wrong with it
            return [Broken(sendable(error))]
        except ActorUnavailableError:
            actor.probe = actor.handle.__ray_ready__.remote()
            return []
        except RayError as error:
            del self._actors[worker]
            return [self._ended(worker, actor, error)]

    def _ended(self, worker: Worker, actor: _Actor, error: RayError) -> Ended:
        self._look(now=True)
        if getattr(error, "preempted", False) or actor.node in self._leaving:
            return Ended("because its machine was taken away", "preempted", charged=False)
        if (actor.node is not None and actor.node not in self._alive) or "its node has died" in str(error):
            return Ended("because its machine was lost", "node_died", charged=False)
        if isinstance(error, OutOfMemoryError):
            return Ended(f"because memory ran out on {worker.where}", "out_of_memory")
        return Ended(f"{_how(error)} ({worker.where})")

    def kill(self, worker: Worker) -> None:
        """Whether it can hear that or not (it may be stopped), it counts as gone: another one may have its shard."""
        actor = self._actors[worker]
        actor.is_killed = True
        with suppress(RayError):
            ray.kill(actor.handle)

    def dismiss(self, workers: Sequence[Worker], seconds: float) -> None:
        for worker in workers:
            if worker in self._actors:
                self.kill(worker)
                del self._actors[worker]

    def _look(self, *, now: bool = False) -> None:
        """See which nodes there are and how many workers they have room for, once in a while."""
        if not now and time.monotonic() - self._looked < SECONDS_BETWEEN_LOOKS:
            return
        self._looked = time.monotonic()
        nodes = [node for node in ray.nodes() if node["Alive"]]
        self._alive = {node["NodeID"] for node in nodes}
        self._leaving = _draining()
        self._room = sum(self._reserved.fit(n["Resources"]) for n in nodes if n["NodeID"] not in self._leaving)


def _how(error: RayError) -> str:
    """What Ray knows of a process that ended; of one that a signal ended it knows nothing."""
    before, said, detail = str(error).partition("Worker exit detail: ")
    if not said:
        return f"because of an error: {before.strip().splitlines()[-1]}"
    if "connection error code 2" in detail:
        return "without a word, as by a crash in native code or when the system runs out of memory"
    return f"with: {' '.join(detail.split())[:160]}"


def _node_of(handle: Any) -> Any:
    return handle.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id())


def _draining() -> set[str]:
    """The nodes that are about to go. Ray tells so in private only; without it they are noticed when they are gone."""
    with suppress(Exception):
        from ray._private.state import state

        return set(state.get_draining_nodes())
    return set()
