"""How much memory processes took."""

from __future__ import annotations

import resource
import sys


def peak_memory_mb() -> float:
    """The most memory that this process, or one of its workers that ended, has held, in MB."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
