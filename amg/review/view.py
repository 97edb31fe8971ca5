"""Overlay pictures and one self-contained HTML page of what a job made."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from amg import rle
from amg.config import DecodeSettings, nearest
from amg.errors import ConfigError, StorageError
from amg.geometry import Size
from amg.review.overlay import DrawnMask, blend, paint, scale_to_fit
from amg.review.page import Card, Lost, render_page
from amg.review.pictures import data_uri, jpeg, layer_picture, load_picture
from amg.shards.reader import decode_settings, read_shards
from amg.storage.url import local_target
from amg.values import Status

FAILURES_LISTED = 500
PAGE_QUALITY = 82
PICTURE_QUALITY = 90


@dataclass(frozen=True, slots=True)
class Review:
    """What was written: the page, the overlay pictures, and how many images each status has in the whole output."""

    page: Path
    pictures: tuple[Path, ...]
    rows: Mapping[str, int]


@dataclass(slots=True)
class _Contents:
    """What a pass over the small columns finds: counts, failures, and the ids of the images to draw."""

    rows: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    chosen: set[int] = field(default_factory=set)
    lost: list[Lost] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)


def write_review(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    limit: int = 24,
    keys: Collection[str] = (),
    max_side: int = 1024,
) -> Review:
    """Draws the masks of the first `limit` labeled images, or of the images with these `keys`.

    Writes `index.html`, which needs no other file and no network, and `overlays/*.jpg` into `out`, by default
    `folder/review`. Pictures have at most `max_side` pixels a side. Failures are listed whatever was chosen.
    Raises ConfigError for a key that is not there, StorageError where there is no output or pictures cannot be written.
    """
    out = local_target(out, "pictures") if out is not None else local_target(folder, "pictures") / "review"
    contents = _look_through(folder, limit, set(keys))
    decoded = decode_settings(folder)
    cards, pictures = [], []
    for row in _chosen_rows(folder, contents.chosen):
        card, overlay = _card(row, max_side, decoded)
        cards.append(card)
        if overlay is not None:
            pictures.append(_write(out / "overlays" / _picture_name(row), overlay))
    page = render_page(Path(folder).resolve().name, cards, contents.lost, rows=contents.rows, masks=contents.masks)
    return Review(_write(out / "index.html", page.encode()), tuple(pictures), contents.rows)


def _look_through(folder: str | Path, limit: int, wanted: Collection[str]) -> _Contents:
    contents = _Contents()
    for row in read_shards(folder, columns=("image_id", "key", "status", "error", "num_masks")):
        contents.rows[row["status"]] += 1
        contents.masks += row["num_masks"] or 0
        if wanted:
            contents.keys.append(row["key"])
        if row["status"] == Status.OK:
            if row["key"] in wanted if wanted else len(contents.chosen) < limit:
                contents.chosen.add(row["image_id"])
        elif len(contents.lost) < FAILURES_LISTED:
            contents.lost.append(Lost(row["key"], row["status"], row["error"] or ""))
    missing = sorted(set(wanted) - set(contents.keys))
    if missing:
        lines = [f"{folder} has no image with the key {key!r}{nearest(key, contents.keys)}" for key in missing]
        raise ConfigError("\n".join(lines))
    return contents


def _chosen_rows(folder: str | Path, chosen: Collection[int]) -> Iterator[dict[str, Any]]:
    """Whole rows of the chosen images; shards behind the last of them are not read."""
    left = set(chosen)
    if left:
        for row in read_shards(folder):
            if row["image_id"] in left:
                yield row
                left.remove(row["image_id"])
                if not left:
                    return


def _card(row: Mapping[str, Any], max_side: int, decoded: DecodeSettings) -> tuple[Card, bytes | None]:
    """The card of an image and, where the image is still there, its overlay as JPEG."""
    size = Size(row["height"], row["width"])
    shown = scale_to_fit(size, max_side)
    masks = [DrawnMask(rle.decode(a["segmentation"]["counts"], size=size), a["area"]) for a in row["annotations"]]
    layer = paint(masks, size, shown)
    picture = load_picture(row, shown, decoded)
    found = not isinstance(picture, str)
    card = Card(
        key=row["key"],
        size=size,
        shown=shown,
        masks=len(masks),
        funnel=row["funnel"] or {},
        layer=data_uri(layer_picture(layer), "webp"),
        photo=data_uri(jpeg(picture, quality=PAGE_QUALITY), "jpeg") if found else None,
        note="" if found else picture,
    )
    return card, jpeg(blend(picture, layer), quality=PICTURE_QUALITY) if found else None


def _picture_name(row: Mapping[str, Any]) -> str:
    """Readable, and different for images of the same name in two folders."""
    stem = re.sub(r"[^\w.-]+", "_", Path(row["key"]).stem)[:80]
    return f"{row['image_id']:06d}-{stem}.jpg"


def _write(path: Path, data: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; give another folder with --out") from error
    return path
