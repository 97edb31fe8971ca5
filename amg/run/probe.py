"""`python -m amg.run.probe`: asks torch for a process that has not loaded it. One line of JSON in, one line out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from amg.errors import AmgError
from amg.sam.load import load_sam, usable_device, usable_dtype


def answer(names: Sequence[str], weights: Path | None, precision: Any) -> list[str]:
    """The names, `auto` settled.

    ConfigError where a device is not there or does not do the arithmetic, WeightsError where `weights` is no model.
    """
    found = ["cuda" if torch.cuda.is_available() else "cpu"] if list(names) == ["auto"] else list(names)
    for name in found:
        usable_dtype(precision, usable_device(name))
    if weights is not None:
        load_sam(weights)
    return found


def main(question: str) -> str:
    """`[name, ..., path or null, precision]` to `{"devices": [...]}` or `{"error": class, "text": ...}`."""
    *names, weights, precision = json.loads(question)
    try:
        return json.dumps({"devices": answer(names, Path(weights) if weights else None, precision)})
    except AmgError as error:
        return json.dumps({"error": type(error).__name__, "text": str(error)})


if __name__ == "__main__":
    print(main(sys.argv[1]))
