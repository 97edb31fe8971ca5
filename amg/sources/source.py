"""What every place that images come from can do: list them in a stable order and read one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import pyarrow as pa

from amg.values import Failure, ImageRef


@dataclass(frozen=True, slots=True)
class Skipped:
    """Something in the input that gets no row; `path` is written like a key, `reason` is for a person."""

    path: str
    reason: str


Report = Callable[[Skipped], object]

LISTING_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("tag", pa.string()),
        pa.field("extra", pa.string()),
    ]
)
"""Images as columns, under the names of `ImageRef`; the row is the place."""


def ignore(skipped: Skipped) -> None:
    """The reporter of those who do not ask what was skipped."""


class Source(Protocol):
    def refs(self, *, skipped: Report = ignore) -> Iterator[ImageRef]:
        """All images, streamed, in an order that is the same for the same input; rows count from 0.

        What is not an image is told to `skipped` on the way. Raises `SourceError` where the input cannot be listed, and
        at the end where there was no image at all.
        """
        ...

    def read(self, ref: ImageRef) -> bytes | Failure:
        """The image's file as it is stored; `missing` where its bytes cannot be had."""
        ...


@runtime_checkable
class Columnar(Source, Protocol):
    """A source that can list without a Python object for each image, which counts when there are millions."""

    def columns(self, *, skipped: Report = ignore) -> Iterator[pa.RecordBatch]:
        """What `refs` lists, in the same order, with the columns of LISTING_SCHEMA.

        A path may come several times, where `refs` gives the first alone, and two images may have one key, where `refs`
        puts parent folders in front of the later one's: whoever reads the columns sees to both.
        """
        ...

    def digest(self) -> str | None:
        """A digest of all that `columns` depends on but the images themselves; None where only a listing can tell."""
        ...
