"""The worker's side of a job in several processes: load the model, label what is leased, tell the parent.

What a worker has sent lies in the pipe and outlives it, so a `Began` that was sent is known to the parent whatever the
image does next.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from multiprocessing import connection, parent_process
from multiprocessing.connection import Connection

import numpy as np

from amg.run import gpu_memory
from amg.run.leases import Lease
from amg.run.shard import Job, Label, Result, label_shard
from amg.run.signals import STOPPING
from amg.values import Failure, ImageRef, Receipt


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded; `where` says on which machine, if that is news."""

    where: str = ""


@dataclass(frozen=True, slots=True)
class Began:
    """An isolated try is about to touch the image."""

    row: int


@dataclass(frozen=True, slots=True)
class Seen:
    """Images are done; a `MaskSet` comes without its runs, which nobody needs on the way."""

    results: tuple[Result, ...]


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The shard that was leased is there already: another run has made it."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The job cannot go on: the error that the parent raises in the worker's place."""

    error: BaseException


Message = Ready | Began | Seen | Receipt | Elsewhere | Broken


def work(pipe: Connection, job: Job, open_label: Callable[[str], Label], device: str) -> None:
    """The life of a worker: ends when the parent closes the pipe, or dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides what it means
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    _end_with_parent()
    warnings.filterwarnings("ignore", module="PIL")
    gpu_memory.keep_whole()
    try:
        label = open_label(device)
        pipe.send(Ready())
        while True:
            _label(pipe.recv(), pipe, job, label)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        pipe.send(Broken(sendable(error)))


def _label(lease: Lease, pipe: Connection, job: Job, label: Label) -> None:
    if job.store.exists(lease.shard.path):
        pipe.send(Elsewhere())
        return

    def begin(ref: ImageRef) -> None:
        pipe.send(Began(ref.row))

    def seen(result: Result) -> None:
        pipe.send(Seen((without_runs(result),)))

    pipe.send(label_shard(lease, job, label, seen=seen, begin=begin))


def without_runs(result: Result) -> Result:
    if isinstance(result, Failure):
        return result
    return replace(result, runs_R=result.runs_R[:0], offsets_K1=np.zeros_like(result.offsets_K1))


def sendable(error: Exception) -> Exception:
    """With its traceback as a note, and as a plain text where its class cannot be pickled."""
    from pickle import PicklingError, dumps, loads

    story = "in a worker:\n" + "".join(traceback.format_exception(error))
    try:
        sent = loads(dumps(error))
    except (PicklingError, TypeError, AttributeError):
        sent = RuntimeError(f"{type(error).__name__}: {error}")
    sent.add_note(story)
    return sent


def _end_with_parent() -> None:
    """No worker outlives its parent, however that ends: Linux kills it, elsewhere a thread notices."""
    parent = parent_process()
    assert parent is not None, "a worker is started by multiprocessing"

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="amg-parent", daemon=True).start()
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.getppid() != parent.pid:
            os._exit(1)
