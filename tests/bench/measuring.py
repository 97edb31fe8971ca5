"""Rows of a benchmark, one after the other: each is told as it goes, saved when it is done, and has passed or not."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from tests import reference_amg
from tests.bench import results


class Told(Protocol):
    """What a benchmark was asked for."""

    @property
    def threads(self) -> int: ...


Asked = TypeVar("Asked", bound=Told)


@dataclass(frozen=True, slots=True)
class Measurement(Generic[Asked]):
    """How one row is measured, and what a person is told of it."""

    measure: Callable[[Asked], dict[str, Any]]
    lines: Callable[[dict[str, Any]], list[str]]


def measure_rows(
    rows: Mapping[str, Measurement[Asked]], names: Iterable[str], told: Asked, *, save: Path | None, **also: Any
) -> int:
    """Measure some of the rows, with `also` in each; the last line is one JSON document. 1 where a bar was missed."""
    document: dict[str, dict[str, Any]] = {}
    for name in names:
        print(f"{name}:", flush=True)
        started = time.perf_counter()
        document[name] = results.finished(name, rows[name].measure(told) | also, told.threads)
        for line in rows[name].lines(document[name]):
            print(f"  {line}")
        passed = "passed" if document[name]["passed"] else "MISSED"
        print(f"  {passed}, after {time.perf_counter() - started:.0f} s of measuring", flush=True)
        results.save({name: document[name]}, save)
    print(json.dumps(document, default=reference_amg.plain))
    return 0 if all(row["passed"] for row in document.values()) else 1


def some_of(kind: str, known: Iterable[str]) -> Callable[[str], list[str]]:
    """For argparse: names with commas between them, each of them known."""
    names = list(known)

    def chosen(text: str) -> list[str]:
        found = [name.strip() for name in text.split(",")]
        if unknown := [name for name in found if name not in names]:
            raise argparse.ArgumentTypeError(f"there is no {kind} {', '.join(unknown)}; {kind}s: {', '.join(names)}")
        return found

    return chosen
