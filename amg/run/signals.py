"""Ctrl-C and SIGTERM: the first ends a job in order, a second Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)
SAME_KEYSTROKE_SECONDS = 0.3
"""`timeout` and shells signal a process and then its group: what comes this soon is the same signal again."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the job to end; raised in the main thread, wherever it is."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_status = 128 + number


class _Holding:
    """How deep the main thread is in `deferred`, and the signal that came meanwhile."""

    depth = 0
    came: int | None = None


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises `Interrupted`; a later SIGINT exits with 130, cleaning up nothing.

    What that leaves behind is swept by the next run, and workers end with their parent. Outside the main thread, where
    Python takes no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first_at: float | None = None

    def stop(number: int, _: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if first_at is None:
            first_at = now
            if _Holding.depth:
                _Holding.came = number
                return
            raise Interrupted(number)
        if number == signal.SIGINT and now - first_at > SAME_KEYSTROKE_SECONDS:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deferred() -> Iterator[None]:
    """Inside, the first stopping signal waits: what is done here is done whole. A second Ctrl-C does not wait."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    number = None
    _Holding.depth += 1
    try:
        yield
    finally:
        _Holding.depth -= 1
        if not _Holding.depth:
            number, _Holding.came = _Holding.came, None
    if number is not None:
        raise Interrupted(number)


@contextmanager
def held() -> Iterator[None]:
    """`deferred`, and processes started inside are born with the signals held.

    The mask is the thread's alone, and another thread may take the signal, so the handler waits too.
    """
    with deferred():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
