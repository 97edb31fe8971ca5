"""The memory of a worker's GPU: that it is not cut into pieces, and how much of it is the worker's. Without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence

from amg.errors import ConfigError

_SETTINGS = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


def keep_whole() -> None:
    """Let PyTorch's pools of GPU memory grow where they are (expandable segments), unless the user says otherwise.

    Images of many sizes cut pools of fixed segments into pieces that are too small for the next one. For a process that
    is ours, and before it loads torch; those it starts take it over.
    """
    if not any(name in os.environ for name in _SETTINGS):
        os.environ[_SETTINGS[0]] = "expandable_segments:True"


def check_fraction(fraction: float | None, devices: Sequence[str]) -> None:
    """ConfigError for a bound on memory that the devices do not have."""
    others = sorted({name for name in devices if not name.startswith("cuda")})
    if fraction is not None and others:
        raise ConfigError(
            f"memory.fraction is {fraction:g} and the job runs on {', '.join(others)}: it bounds what a worker takes "
            "of its GPU's memory; leave it out, or use --device cuda"
        )
