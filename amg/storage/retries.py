"""How long a request to a store may take, and how often it is sent again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """`answer_seconds` may pass without a byte of an answer; after `total_seconds` of failures no try is made any more.

    Pauses between tries have full jitter: any length up to a bound, which doubles from `first_pause_seconds` to
    `longest_pause_seconds`. Many writers that were turned away together do not come back together.
    """

    answer_seconds: float = 60.0
    total_seconds: float = 180.0
    first_pause_seconds: float = 0.1
    longest_pause_seconds: float = 15.0

    def pause(self, tries: int, spent_seconds: float) -> bool:
        """Sleep after so many tries; False, at once, when the pause would outlast the time that is left."""
        bound = min(self.longest_pause_seconds, self.first_pause_seconds * 2 ** min(tries - 1, 30))
        seconds = random.uniform(0, bound)
        if spent_seconds + seconds >= self.total_seconds:
            return False
        time.sleep(seconds)
        return True
