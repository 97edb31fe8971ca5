"""Where the seconds of an image go, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start)

    @contextmanager
    def stages_side_by_side(self) -> Iterator[dict[str, float]]:
        """Threads add what each stage took them; the time that passed is then divided in those proportions."""
        start, taken = time.perf_counter(), {}
        yield taken
        passed, total = time.perf_counter() - start, sum(taken.values())
        for name, seconds in taken.items():
            self.add(name, passed * seconds / total if total else 0.0)

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds
