"""The pool over a crew that is all in memory: who gets work, who is replaced, what an end costs."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pytest

from amg.config import load_config
from amg.errors import StorageError, WorkerError
from amg.run import pool
from amg.run.leases import Lease
from amg.run.metrics import DriverMetrics, NotRecorded
from amg.run.plan import MANIFEST_SCHEMA, Plan
from amg.run.pool import Ended, Worker, label_with
from amg.run.shard import Job
from amg.run.signals import Interrupted, interruptible
from amg.run.tally import Tally
from amg.run.worker import Broken, Message, Ready, Seen
from amg.values import Failure, MaskSet, Receipt, Status
from tests.memory_store import MemoryStore
from tests.test_workers import Heard

CONFIG = load_config()


@dataclass
class Crew:
    """Does what it is given at once, but for what `fate` says of a lease: how its worker ends, or an error of its."""

    size: int = 2
    forgives: bool = True
    leases_ahead: int = 1
    fate: dict[int, list[Ended | Broken]] = field(default_factory=dict)
    leaving: set[int] = field(default_factory=set)
    hired: list[Worker] = field(default_factory=list)
    given: dict[int, list[Lease]] = field(default_factory=lambda: defaultdict(list))
    said: list[tuple[Worker, Message | Ended]] = field(default_factory=list)

    def room(self) -> int:
        return self.size

    def hire(self, wanted: int) -> list[Worker]:
        new = [Worker(f"machine {len(self.hired) + n}") for n in range(wanted)]
        self.hired += new
        self.said += [(worker, Ready()) for worker in new]
        return new

    def waits_for(self) -> str:
        return "nothing"

    def give(self, worker: Worker, lease: Lease) -> None:
        self.given[self.hired.index(worker)].append(lease)
        if lease is worker.leases[0]:
            self._do(worker, lease)

    def _do(self, worker: Worker, lease: Lease) -> None:
        if fate := self.fate.get(lease.shard.number):
            self.said.append((worker, fate.pop(0)))
            return
        done = tuple(Failure(ref, Status.MISSING, "there are no images here") for ref in lease.shard.refs)
        receipt = Receipt(lease.shard.number, {"missing": len(done)}, 0, True, {}, 0)
        self.said += [(worker, Seen(done)), (worker, receipt)]

    def may_work(self, worker: Worker) -> bool:
        return self.hired.index(worker) not in self.leaving

    def wait(self, workers: Sequence[Worker], seconds: float) -> None:
        pass

    def heard(self, workers: Sequence[Worker]) -> list[tuple[Worker, Message | Ended]]:
        said, self.said = self.said[:1], self.said[1:]
        for worker, message in said:
            if isinstance(message, Receipt) and len(worker.leases) > 1:
                self._do(worker, worker.leases[1])
        return [(worker, message) for worker, message in said if worker in workers]

    def kill(self, worker: Worker) -> None:
        self.said.append((worker, Ended("by the pool")))

    def dismiss(self, workers: Sequence[Worker], seconds: float) -> None:
        pass


def label(crew: Crew, shards: int, heard: Heard | None = None) -> Heard:
    numbers = list(range(shards))
    columns = {"row": numbers, "key": [str(n) for n in numbers], "uri": [str(n) for n in numbers], "shard": numbers}
    rows = [columns.get(name, [None] * shards) for name in MANIFEST_SCHEMA.names]
    plan = Plan.of_table({}, pa.table(rows, schema=MANIFEST_SCHEMA))
    heard = heard or Heard()
    job = Job(None, MemoryStore(), CONFIG, {})  # type: ignore[arg-type]
    label_with(crew, plan, job, Tally(heard, DriverMetrics(NotRecorded())), expected_seconds=1.0)
    return heard


def test_every_shard_is_made_once_and_one_waits_behind_the_one_in_hand() -> None:
    crew = Crew()
    heard = label(crew, 20)
    assert sorted(receipt.shard for receipt in heard.receipts) == list(range(20))
    assert sorted(len(given) for given in crew.given.values()) == [10, 10]


def test_a_worker_on_a_machine_that_is_about_to_go_gets_nothing_and_is_replaced() -> None:
    crew = Crew(leaving={0, 1})
    label(crew, 8)
    assert len(crew.hired) == 4
    assert not crew.given[0] and not crew.given[1]


def test_a_lost_machine_costs_no_shard_a_try_and_what_waited_goes_back() -> None:
    crew = Crew(fate={0: [Ended("with its machine", "node_died", charged=False)]})
    heard = label(crew, 8)
    assert sorted(receipt.shard for receipt in heard.receipts) == list(range(8))
    again = [lease for given in crew.given.values() for lease in given if lease.shard.number == 0]
    assert [lease.isolated for lease in again] == [False, False]


def test_a_death_is_charged_and_the_shard_tried_again_in_isolation() -> None:
    crew = Crew(fate={0: [Ended("by a signal")]})
    label(crew, 8)
    again = [lease for given in crew.given.values() for lease in given if lease.shard.number == 0]
    assert [lease.isolated for lease in again] == [False, True]


def test_one_worker_that_breaks_does_not_end_the_job_of_others_and_all_of_them_do() -> None:
    error = StorageError("no room")
    assert len(label(Crew(fate={3: [Broken(error)]}), 8).receipts) == 8
    with pytest.raises(StorageError, match="no room"):
        label(Crew(forgives=False, fate={3: [Broken(error)]}), 8)
    with pytest.raises(StorageError, match="no room"):
        label(Crew(fate={n: [Broken(error)] * 9 for n in range(8)}), 8)


def test_a_shard_that_kills_again_and_again_is_given_up_when_the_others_are_done() -> None:
    crew = Crew(fate={2: [Ended("by a signal")] * 99})
    with pytest.raises(WorkerError, match=r"1 shard could not be finished, all others are done[\s\S]*died 10 times"):
        label(crew, 8)
    assert sum(lease.shard.number == 2 for given in crew.given.values() for lease in given) == 10


def test_a_worker_that_does_not_come_back_from_writing_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one on a network drive that hangs: all its images are done, so no image is late."""
    monkeypatch.setattr(pool, "SECONDS_TO_WRITE", 0.05)
    hung: list[Worker] = []

    class Hangs(Crew):
        def _do(self, worker: Worker, lease: Lease) -> None:
            super()._do(worker, lease)
            if lease.shard.number == 3 and not hung:
                hung.append(worker)
                self.said.pop()  # the receipt

    crew = Hangs()
    heard = label(crew, 8)
    assert sorted(receipt.shard for receipt in heard.receipts) == list(range(8))
    assert len(crew.hired) == 3


def test_workers_that_end_before_they_are_ready_end_the_job() -> None:
    class Stillborn(Crew):
        def hire(self, wanted: int) -> list[Worker]:
            new = [Worker("a machine") for _ in range(wanted)]
            self.said += [(worker, Ended("with exit status 3")) for worker in new]
            self.hired += new
            return new

    crew = Stillborn()
    with pytest.raises(WorkerError, match="5 workers in a row ended before they were ready, the last with exit status"):
        label(crew, 8)
    assert len(crew.hired) <= pool.ENDS_IN_VAIN + crew.size


def test_ctrl_c_while_messages_are_taken_in_loses_no_receipt_and_waits_for_nobody() -> None:
    class Burst(Crew):
        def heard(self, workers: Sequence[Worker]) -> list[tuple[Worker, Message | Ended]]:
            said, self.said = self.said, []
            return said

    class Impatient(Heard):
        def image(self, result: MaskSet | Failure, shard: int) -> None:
            if not self.receipts:
                signal.raise_signal(signal.SIGINT)

    told, began = Impatient(), time.monotonic()
    with interruptible(), pytest.raises(Interrupted):
        label(Burst(), 8, told)
    assert len(told.receipts) == 2
    assert time.monotonic() - began < pool.COMMIT_SECONDS / 2
