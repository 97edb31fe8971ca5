from collections.abc import Sequence
from pathlib import Path

import pytest

from amg.run.attempts import read_attempts, record
from amg.run.leases import DEATHS_TO_GIVE_UP, Death, History, Lease, Leases
from amg.run.plan import Shard
from amg.storage.url import open_store
from amg.values import ImageRef, Status

SEGV = Death(Status.CRASH, "by signal 11 (SIGSEGV)", in_doubt=False)
KILLED = Death(Status.CRASH, "by signal 9 (SIGKILL)")
SLOW = Death(Status.TIMEOUT, "because it took more than 1 s")


def shard(number: int, rows: Sequence[int] = (0, 1, 2)) -> Shard:
    return Shard(number, tuple(ImageRef(row, f"{row}.png", "") for row in rows))


def take(leases: Leases) -> Lease:
    lease = leases.take()
    assert lease is not None
    return lease


def test_shards_go_out_in_order_and_those_of_the_dead_after_them() -> None:
    leases = Leases([shard(0), shard(1)], 2)
    first = take(leases)
    assert (first.shard.number, first.isolated) == (0, False)
    leases.died(first, SEGV, None)
    second = take(leases)
    assert (second.shard.number, second.isolated) == (1, False)
    assert (take(leases).shard.number, leases.has_more, leases.is_over) == (0, False, False)
    assert leases.take() is None
    leases.finished(shard(0))
    leases.finished(shard(1))
    assert leases.is_over


def test_the_first_death_blames_nobody() -> None:
    leases = Leases([shard(0)], 1)
    leases.died(take(leases), SEGV, 1)
    again = take(leases)
    assert (again.isolated, again.first, again.settled) == (True, frozenset(), ())
    assert [ref.row for ref in again.to_label] == [0, 1, 2]


def test_two_isolated_deaths_in_a_row_settle_an_image_and_a_suspect_comes_first() -> None:
    leases = Leases([shard(0)], 1)
    leases.died(take(leases), SEGV, None)
    leases.died(take(leases), SEGV, 1)
    suspecting = take(leases)
    assert [ref.row for ref in suspecting.to_label] == [1, 0, 2]
    leases.died(suspecting, SEGV, 1)
    last = take(leases)
    (failure,) = last.settled
    assert (failure.ref.row, failure.status) == (1, Status.CRASH)
    assert "2 times in a row, the last time by signal 11" in failure.reason
    assert [ref.row for ref in last.to_label] == [0, 2]


@pytest.mark.parametrize("deaths", [(KILLED, KILLED, SLOW), (SEGV, KILLED, SLOW), (KILLED, SEGV, SLOW)])
def test_where_somebody_may_have_struck_a_third_death_settles_an_image(deaths: Sequence[Death]) -> None:
    leases = Leases([shard(0)], 1)
    for death in (SEGV, *deaths):
        lease = take(leases)
        assert lease.settled == ()
        leases.died(lease, death, 1)
    (failure,) = take(leases).settled
    assert (failure.ref.row, failure.status) == (1, Status.TIMEOUT)
    assert "3 times in a row, the last time because it took more than 1 s" in failure.reason


def test_an_image_that_gets_through_is_no_suspect_any_more() -> None:
    leases = Leases([shard(0)], 1)
    leases.died(take(leases), SEGV, None)
    leases.died(take(leases), SEGV, 1)
    lease = take(leases)
    told = leases.got_through(lease.shard, 1)
    assert told == History(2)
    assert leases.got_through(lease.shard, 0) is None, "it never was a suspect"
    leases.died(lease, SEGV, 2)
    assert take(leases).first == {2}


def test_random_kills_in_isolation_settle_no_innocent() -> None:
    """Every try dies somewhere else; images before that place get through."""
    leases = Leases([shard(0, range(10))], 1, deaths_to_give_up=100)
    leases.died(take(leases), SEGV, None)
    for place in (3, 5, 2, 7, 4, 9, 1):
        lease = take(leases)
        for ref in lease.to_label[:place]:
            leases.got_through(lease.shard, ref.row)
        leases.died(lease, SEGV, lease.to_label[place].row)
    assert take(leases).settled == ()


def test_deaths_in_vain_end_with_giving_up_and_settling_an_image_is_not_in_vain() -> None:
    leases = Leases([shard(0, range(20)), shard(1)], 2)
    leases.died(take(leases), SEGV, None)
    leases.finished(take(leases).shard)
    for row in range(10):
        for _ in range(2):
            leases.died(take(leases), SEGV, row)
    assert len(take(leases).settled) == 10
    leases.died(Lease(shard(0, range(20)), isolated=True), SEGV, None)
    for _ in range(DEATHS_TO_GIVE_UP - 1):
        leases.died(take(leases), SEGV, None)
    assert leases.is_over
    assert "died 10 times in vain, the last by signal 11" in leases.given_up[0][1]


def test_history_survives_a_restart(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", create=True)
    history = History()
    for row in (None, 1, 1, 2):
        history = history.after(SEGV, row)
        record(store, 7, history)
    history = history.after(KILLED, 0)
    record(store, 7, history)
    history = history.without_suspect(0)
    record(store, 7, history)
    record(store, 8, History().after(SLOW, None))
    there = read_attempts(store)
    assert there == {7: history, 8: History(1)}
    again = take(Leases([shard(7)], 1, history=there))
    assert (again.isolated, again.first) == (True, {2})
    assert [failure.ref.row for failure in again.settled] == [1]


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"deaths": 1, "suspects": {"a": 1}, "settled": {}}'])
def test_a_damaged_history_counts_as_none(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path / "out", create=True)
    store.create_if_absent("_state/attempts/000001-00001.json", content)
    assert read_attempts(store) == {}


def test_two_runs_that_remember_the_same_death_do_not_meet(tmp_path: Path) -> None:
    store = open_store(tmp_path / "out", create=True)
    record(store, 1, History(1))
    record(store, 1, History(1))
    assert len(list(store.list("_state/attempts"))) == 2


def test_a_shard_that_comes_back_untouched_is_the_next_one_and_is_no_suspect() -> None:
    leases = Leases([shard(0), shard(1)], 2)
    lost = take(leases)
    leases.returned(lost)
    assert (leases.left, leases.waiting) == (2, 2)
    again = take(leases)
    assert (again.shard.number, again.isolated) == (0, False)
    assert take(leases).shard.number == 1
    assert leases.waiting == 0


def test_only_a_fresh_shard_waits_behind_another() -> None:
    leases = Leases([shard(0)], 1)
    leases.died(take(leases), SEGV, None)
    assert leases.take(fresh=True) is None
    assert take(leases).isolated
