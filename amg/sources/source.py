"""What every place that images come from can do: list them in a stable order and read one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from amg.values import Failure, ImageRef


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in the input that gets no row; `path` is written like a key, `reason` is for a person."""

    path: str
    reason: str


def ignore(skipped: Skipped) -> None:
    """The reporter of those who do not ask what was skipped."""


class Source(Protocol):
    def refs(self, *, skipped: Callable[[Skipped], object] = ignore) -> Iterator[ImageRef]:
        """All images, streamed, in an order that is the same for the same input; rows count from 0.

        What is not an image is told to `skipped` on the way. Raises `SourceError` where the input cannot be listed, and
        at the end where there was no image at all.
        """
        ...

    def read(self, ref: ImageRef) -> bytes | Failure:
        """The image's file as it is stored; `missing` where its bytes cannot be had."""
        ...
