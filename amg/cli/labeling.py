"""What commands that label have in common: who labels, who watches, and how they are interrupted."""

from __future__ import annotations

import io
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, TextIO, TypeVar

import click

from amg.cli.main import INTERRUPTED
from amg.config import RunSettings
from amg.errors import ConfigError
from amg.run.signals import interruptible

if TYPE_CHECKING:
    from amg.run.progress import Observer
    from amg.run.runner import Runner

T = TypeVar("T")


def watched(label: Callable[[Observer], T], *, log: str, quiet: bool) -> T:
    """What `label` gives, while its observer tells on stderr how it goes; a signal ends the command in order."""
    # What Pillow finds odd in a file either keeps it from being read, which becomes its row, or does not matter.
    warnings.filterwarnings("ignore", module="PIL")
    observer = _observer(log, quiet)
    with interruptible():
        try:
            try:
                return label(observer)
            finally:
                observer.finish()  # its line ends before the next one begins
        except KeyboardInterrupt as stop:
            click.echo("interrupted; finished shards are kept, and the same command goes on with the rest", err=True)
            raise click.exceptions.Exit(getattr(stop, "exit_status", INTERRUPTED)) from stop


def _observer(log: str, quiet: bool) -> Observer:
    if log == "json" and not quiet:
        from amg.run.logs import JsonLines

        return JsonLines(sys.stderr)
    from amg.run.progress import Silent, observer_for

    return Silent() if quiet else observer_for(sys.stderr)


@contextmanager
def runner_of(run: RunSettings) -> Iterator[Runner]:
    """Who labels; Ray, while it is used, prints on stderr."""
    if run.runner == "local":
        from amg.run.local import Local

        yield Local()
        return
    with ray_installed(), redirect_stdout(WithoutDeaths(sys.stderr)):
        from amg.run.on_ray import on_ray

        with on_ray(run) as runner:
            yield runner


@contextmanager
def ray_installed() -> Iterator[None]:
    """Inside, a missing Ray is an error that says what to do."""
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "ray":
            raise
        raise ConfigError("run.runner is ray, and Ray is not installed: `pip install 'ray[default]'`") from error


class WithoutDeaths(io.TextIOBase):
    """Lets what Ray prints through to `stream`, but its long word on every worker that dies: the job tells that."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_dropped = False

    def write(self, text: str) -> int:
        """Ray ends a line by a write of its own."""
        is_end = not text.strip()
        if not is_end:
            self._is_dropped = "A worker died or was killed while executing a task" in text
        if not self._is_dropped:
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()
