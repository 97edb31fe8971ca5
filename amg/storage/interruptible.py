"""Waiting for a library that does not hear of Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def interruptibly(call: Callable[[], T]) -> T:
    """What `call` returns or raises. In the main thread, where signals arrive, another thread waits in its place.

    After an interrupt nobody takes the call's result; what it does may still happen.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="amg-storage", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]
