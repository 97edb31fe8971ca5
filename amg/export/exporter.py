"""What every exporter is given and gives, and how its result appears: whole, under its name, or not at all."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from amg import rle
from amg.errors import FormatError, OutputRefused
from amg.shards.reader import Snapshot, footer_in, snapshot
from amg.storage import appearing as storage
from amg.values import Status


@dataclass(frozen=True, slots=True)
class Exported:
    """`left_out` counts the images without masks by status."""

    images: int
    masks: int
    left_out: Mapping[str, int]


class Exporter(Protocol):
    """One format. `write` makes `target`, which is not there yet: a folder if `makes_folder`, else one file."""

    makes_folder: bool

    def write(self, shards: Shards, target: Path) -> None: ...


class Shards:
    """The rows of an output, as often as they are wanted; shards that are finished later do not count."""

    def __init__(self, folder: str) -> None:
        self._snapshot = snapshot(folder)
        self.bbox_style = bbox_style(self._snapshot)

    def count(self) -> Exported:
        """What there is to export."""
        rows: Counter[str] = Counter()
        masks = 0
        for row in self._read(("status", "num_masks")):
            rows[row["status"]] += 1
            masks += row["num_masks"] or 0
        labeled = rows.pop(Status.OK, 0)
        return Exported(labeled, masks, dict(rows))

    def images(self) -> Iterator[dict[str, Any]]:
        """`image_id key width height` of every image that has masks, without reading these."""
        for row in self._read(("image_id", "key", "width", "height", "status")):
            if row["status"] == Status.OK:
                yield row

    def rows(self) -> Iterator[dict[str, Any]]:
        """The same images in the same order with their `annotations`, one at a time."""
        for row in self._read(("image_id", "key", "width", "height", "status", "annotations")):
            if row["status"] == Status.OK:
                yield row

    def _read(self, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
        return self._snapshot.rows(columns)


def bbox_style(shards: Snapshot) -> str:
    """Which of `rle.BBOX_STYLES` the boxes of an output have; FormatError where its first footer does not say."""
    shard = f"{shards.store.url}/{shards.paths[0]}"
    said = footer_in(shards.store, shards.paths[0]).get("sam_amg.config", "")
    try:
        style = json.loads(said)["output.bbox_style"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{shard}: the footer's sam_amg.config does not say output.bbox_style, so that boxes have no meaning; "
            "look what `sam-amg verify` says of this output"
        ) from error
    if style not in rle.BBOX_STYLES:
        raise FormatError(f"{shard}: output.bbox_style is {style!r}, wanted one of {', '.join(rle.BBOX_STYLES)}")
    return style


def box_as(style: str, annotation: Mapping[str, Any], stored: str) -> list[float]:
    """The box of an annotation as `exact` or `sa1b` has it, whichever of them is stored."""
    x, y, width, height = annotation["bbox"]
    if style == stored or annotation["area"] == 0:
        return [x, y, width, height]
    change = -1.0 if style == "sa1b" else 1.0
    return [x, y, width + change, height + change]


def appearing(target: Path, *, folder: bool, overwrite: bool) -> AbstractContextManager[Path]:
    """A path to write to, which becomes `target` when all went well and is removed otherwise.

    Raises OutputRefused where `target` is not free: not empty without `overwrite`, or not something to overwrite.
    """
    return storage.appearing(
        target,
        refuse=partial(_refuse, folder=folder, overwrite=overwrite),
        advice="make room or give another --out, then run the same command again: nothing was left behind",
    )


def _refuse(target: Path, *, folder: bool, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if folder != target.is_dir():
        came, wanted = ("a file", "a folder") if folder else ("a folder", "a file, such as annotations.json")
        raise OutputRefused(f"{target} is {came}, this format makes {wanted}; give another --out")
    if not folder:
        if target.stat().st_size and not overwrite:
            raise OutputRefused(f"{target} is there and not empty; give another --out, or --overwrite")
        return
    foreign = next((path for path in target.rglob("*") if not path.is_dir() and path.suffix != ".json"), None)
    if foreign is not None:
        raise OutputRefused(f"{target} holds {foreign.name}, which no export wrote; give another --out")
    if not overwrite and any(target.iterdir()):
        raise OutputRefused(f"{target} is there and not empty; give another --out, or --overwrite")
