"""What was measured, as one JSON document: a row a measurement, each with its machine and its day."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests import reference_amg
from tests.bench.options import machine

Row = dict[str, Any]


def finished(name: str, row: Mapping[str, Any], threads: int) -> Row:
    """A row with what it depends on."""
    return {"row": name, "day": datetime.now(UTC).date().isoformat(), **row, "machine": machine(threads)}


def save(rows: Mapping[str, Row], path: Path | None) -> None:
    """Put rows into the file, instead of older ones of the same names; nothing is written without a file."""
    if path is None:
        return
    document = (read(path) if path.exists() else {}) | dict(rows)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, default=reference_amg.plain) + "\n")
    partial.replace(path)
    print(f"saved in {path}", file=sys.stderr)


def read(path: Path) -> dict[str, Row]:
    return json.loads(path.read_text())
