"""The kinds of arithmetic a model can do, by name and in words. Without torch; `load.py` decides."""

from __future__ import annotations

from typing import Literal

Precision = Literal["parity", "fast"]

Kernels = Literal["torch", "triton"]
"""What works on a GPU: PyTorch's operators, or kernels of ours in Triton."""


def in_words(precision: Precision, kind: str) -> str:
    """Which arithmetic that is on a kind of device (`cpu`, `cuda`), and why it was chosen."""
    if precision == "parity":
        without = " (and no TF32)" if kind == "cuda" else ""
        return f"float32{without} on {kind}: what the published masks were made with; less changes which come out"
    where = f"the linear layers of the image encoder on {kind}"
    if kind == "cuda":
        where = f"the image encoder (in a TinyViT its linear layers) and float16 in the mask decoder on {kind}"
    return f"bfloat16 in {where}, float32 elsewhere: as asked for; parity gives the published masks"
