"""The kinds of arithmetic a model can do, by name and in words. Without torch; `load.py` decides."""

from __future__ import annotations

from typing import Literal

Precision = Literal["parity", "fast"]


def in_words(precision: Precision, kind: str) -> str:
    """Which arithmetic that is on a kind of device (`cpu`, `cuda`), and why it was chosen."""
    if precision == "parity":
        return f"float32 on {kind}: what the published masks were made with; less changes which come out"
    where = f"the linear layers of the image encoder on {kind}"
    return f"bfloat16 in {where}, float32 elsewhere: as asked for; parity gives the published masks"
