"""Where there is no memory for what is done at once, less is done at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from amg.generation.labeler import Labeler
from amg.values import Failure, Image, MaskSet, Status

OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True, slots=True, order=True)
class Limits:
    """How many crops the encoder and how many points the decoder takes at once."""

    batch: int
    chunk: int

    def smaller(self) -> Limits | None:
        """Half of the batch, then half of the chunk; None where it is one of each."""
        if self.batch > 1:
            return Limits(self.batch // 2, self.chunk)
        return Limits(1, self.chunk // 2) if self.chunk > 1 else None


class WithinMemory:
    """Labels within limits that become smaller where they must.

    With `remember` the next images begin with what worked, which is right where memory does not depend on the image.
    """

    def __init__(self, labeler: Labeler, limits: Limits, *, remember: bool) -> None:
        self._labeler, self._limits, self._remember = labeler, limits, remember

    def label(self, images: Sequence[Image]) -> list[MaskSet]:
        """As `Labeler.label`; raises when one crop and one point are too much."""
        limits = self._limits
        while True:
            try:
                masks = self._labeler.label(images, batch=limits.batch, chunk=limits.chunk)
            except OUT_OF_MEMORY:
                smaller = limits.smaller()
                if smaller is None:
                    raise
            else:
                if self._remember:
                    self._limits = min(self._limits, limits)
                return masks
            limits = smaller
            self._labeler.lanes.forget()  # room for the larger chunk is no use any more
            if self._labeler.sam.device.type == "cuda":
                torch.cuda.empty_cache()

    def label_or_say_why_not(self, images: Sequence[Image]) -> list[MaskSet | Failure]:
        """The same, with a `Failure` for an image that is too much on its own."""
        try:
            return list(self.label(images))
        except OUT_OF_MEMORY as error:
            if len(images) == 1:
                return [_failure(images[0], error)]
        return [result for image in images for result in self.label_or_say_why_not([image])]


def _failure(image: Image, error: BaseException) -> Failure:
    size = f"{image.size.width}x{image.size.height}"
    reason = f"no memory left for an image of {size}: {error or type(error).__name__}"
    return Failure(image.ref, Status.OUT_OF_MEMORY, reason)
