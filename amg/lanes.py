"""Threads that work on pieces of one image side by side, each on one core with memory of its own.

A library that splits every small step over all cores makes them wait for each other at the end of each; whole pieces
need no waiting, and what a piece gives does not depend on how many threads there are.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from amg.tensors import Workspace

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lanes:
    """`count` threads with a workspace each; with one, the caller's thread does the work.

    In a thread of a lane PyTorch uses one core, in the caller's as many as before. Close them, or use `with`.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._own = threading.local()
        self._executor = ThreadPoolExecutor(count, "lane", _use_one_core) if count > 1 else None
        self._caller_threads = torch.get_num_threads()

    def __enter__(self) -> Lanes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def forget(self) -> None:
        """Let go of all workspaces; a thread that is at work keeps its own until it is done."""
        self._own = threading.local()

    def close(self) -> None:
        """Wait for the work in hand, drop what has not begun."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Item, Workspace], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`work(item, workspace)` of all items, in their order; the first exception is raised, and ends the rest."""
        if self._executor is None:
            for item in items:
                yield work(item, self._workspace())
            return
        results = self._executor.map(lambda item: self._run(work, item), items)
        torch.set_num_threads(self._caller_threads)  # threads that start elsewhere take over what was set last
        yield from results

    def stream(self, work: Callable[[Item, Workspace], Result], items: Iterable[Item]) -> Iterator[Result]:
        """As `map`, for items that come one after the other: none is taken before there is a thread for it.

        With one thread none is taken before the result of the one before it has been.
        """
        if self._executor is None:
            yield from self.map(work, items)
            return
        under_way: deque[Future[Result]] = deque()
        for item in items:
            under_way.append(self._executor.submit(self._run, work, item))
            if len(under_way) == self._count:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()

    def _run(self, work: Callable[[Item, Workspace], Result], item: Item) -> Result:
        with torch.inference_mode():
            return work(item, self._workspace())

    def _workspace(self) -> Workspace:
        if not hasattr(self._own, "workspace"):
            self._own.workspace = Workspace()
        return self._own.workspace


def _use_one_core() -> None:
    torch.get_num_threads()  # a thread's first question sets its number to the process's latest: not after this
    torch.set_num_threads(1)
