"""How long an image may take before its worker is given up."""

from __future__ import annotations

from collections import deque

import numpy as np

from amg.config import Config

LEAST_SECONDS = 120.0
TIMES_THE_SLOWEST = 20.0
"""Over the time that one image in a hundred exceeds, or before that is known, over the guess that sizes the shards."""
SEEN_TO_KNOW = 100
IMAGES_BETWEEN_COUNTS = 100


class Patience:
    """`run.image_timeout_s` where it is set; else what the images so far make one expect, with a wide margin."""

    def __init__(self, config: Config, expected_seconds: float) -> None:
        self._said = config.run.image_timeout_s
        self._guess = TIMES_THE_SLOWEST * expected_seconds
        self._seconds: deque[float] = deque(maxlen=1000)
        self._seen = self._counted = 0

    @property
    def seconds(self) -> float:
        return self._said if self._said is not None else max(LEAST_SECONDS, self._guess)

    @property
    def reason(self) -> str:
        """Fits after "the worker died"."""
        name = "run.image_timeout_s"
        meaning = name if self._said is not None else f"far more than other images; see {name}"
        return f"because it took more than {self.seconds:g} s ({meaning})"

    def saw(self, images: int, seconds: float) -> None:
        """So many images came in this time."""
        self._seconds.append(seconds / max(1, images))
        self._seen += images
        if self._seen >= SEEN_TO_KNOW and self._seen - self._counted >= IMAGES_BETWEEN_COUNTS:
            self._counted = self._seen
            self._guess = TIMES_THE_SLOWEST * float(np.percentile(self._seconds, 99))
