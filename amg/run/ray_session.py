"""A connection to Ray for the time of a job."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray.exceptions import RayError

from amg.config import RunSettings
from amg.errors import AmgError
from amg.run.signals import STOPPING

OBJECT_STORE_BYTES = 256 * 2**20
"""Of a Ray started here: no image ever goes through it."""


@contextmanager
def connected(run: RunSettings) -> Iterator[None]:
    """Ray at `run.address`, at RAY_ADDRESS, or started here and stopped at the end; one that is connected is used."""
    if ray.is_initialized():
        yield
        return
    address = run.address or os.environ.get("RAY_ADDRESS")
    where: dict[str, Any] = {"address": address}
    if not address:
        where = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    elif not is_answered(address):
        raise AmgError(f"nobody answers at run.address {address}; start Ray's head there, or correct the address")
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (RayError, ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise AmgError(
            f"cannot reach Ray at {address or 'this machine'}: {' '.join(str(error).split())[:300]}; see whether "
            "`ray status --address ADDRESS` works there, or leave run.address out to start Ray here"
        ) from error
    try:
        _take_back(handlers)
        yield
    finally:
        ray.shutdown()


def is_answered(address: str, seconds: float = 10.0) -> bool:
    """False for a HOST:PORT that refuses a connection: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return True
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds):
            return True
    except OSError:
        return False


def _take_back(handlers: dict[signal.Signals, Any]) -> None:
    """Ray ends the process at SIGTERM; what a stopping signal means is this program's to say."""
    try:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    except ValueError:
        return  # not the main thread, where Ray takes no signals either
