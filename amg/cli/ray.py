"""Ray as the command line has it: perhaps not installed, and talkative."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from amg.errors import ConfigError


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
