"""Threads that work on pieces side by side."""

from __future__ import annotations

import gc
import threading
import time
import weakref

import pytest
import torch

from amg.lanes import Lanes
from amg.tensors import Workspace


@pytest.mark.parametrize("count", [1, 3])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    def work(item: int, _: Workspace) -> int:
        time.sleep(0.002 * (5 - item))
        return item * item

    with Lanes(count) as lanes:
        assert list(lanes.map(work, range(5))) == [0, 1, 4, 9, 16]


def test_lanes_work_at_the_same_time_and_have_their_own_workspace() -> None:
    both_are_here = threading.Barrier(2, timeout=20)

    def work(_: int, workspace: Workspace) -> tuple[int, str]:
        both_are_here.wait()
        return id(workspace), threading.current_thread().name

    with Lanes(2) as lanes:
        found = list(lanes.map(work, range(2)))
        again = list(lanes.map(work, range(2)))
    assert len(set(found)) == 2
    assert set(again) == set(found)


@pytest.mark.parametrize("count", [1, 2])
def test_forgotten_workspaces_are_gone_and_others_take_their_place(count: int) -> None:
    with Lanes(count) as lanes:
        before = list(lanes.map(lambda _, workspace: weakref.ref(workspace), range(4)))
        assert all(workspace() for workspace in before)
        lanes.forget()
        gc.collect()
        assert not any(workspace() for workspace in before)
        assert len(list(lanes.map(lambda _, workspace: workspace.like(torch.ones(1), "x", 3), range(4)))) == 4


def _threads_in_use(*_: object) -> int:
    """After a parallel region: a thread's first one sets its number to the process's latest."""
    torch.ones(1 << 16).sum()
    return torch.get_num_threads()


def test_lanes_use_one_core_and_the_caller_as_many_as_before() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for _ in range(30):  # it was a race
            with Lanes(2) as lanes:
                assert list(lanes.map(_threads_in_use, range(8))) == [1] * 8
                assert torch.get_num_threads() == 3
        elsewhere: list[int] = []
        other = threading.Thread(target=lambda: elsewhere.append(_threads_in_use()))
        other.start()
        other.join()
        assert elsewhere == [3]
    finally:
        torch.set_num_threads(before)


def test_a_single_lane_is_the_callers_thread() -> None:
    with Lanes(1) as lanes:
        assert list(lanes.map(lambda *_: threading.current_thread(), range(2))) == [threading.current_thread()] * 2


@pytest.mark.parametrize("count", [1, 2])
def test_what_goes_wrong_in_a_lane_is_raised_where_the_results_are_read(count: int) -> None:
    def work(item: int, _: Workspace) -> int:
        if item == 2:
            raise MemoryError("no room")
        return item

    with Lanes(count) as lanes:
        results = lanes.map(work, range(100))
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(MemoryError, match="no room"):
            next(results)
        assert list(lanes.map(work, range(2))) == [0, 1]
