"""One JSON file for each image, as the SA-1B dataset is published."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from amg.export.exporter import Shards, box_as

FIELDS = (
    "bbox",
    "area",
    "segmentation",
    "predicted_iou",
    "point_coords",
    "crop_box",
    "id",
    "stability_score",
)
"""Of an annotation, in the order of the published files; what else the shards know is not theirs."""


class Sa1b:
    """`sa_1.jpg` becomes `sa_1.json`, in the folders of the keys; boxes are SA-1B's, one short in width and height."""

    makes_folder = True

    def write(self, shards: Shards, target: Path) -> None:
        target.mkdir()
        names = file_names(row["key"] for row in shards.images())
        for row in shards.rows():
            path = target / names[row["key"]]
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8") as file:
                json.dump(document(row, shards.bbox_style), file)


def document(row: Mapping[str, Any], bbox_style: str) -> dict[str, Any]:
    """The content of an image's file; `bbox_style` is that of the row."""
    image = {"image_id": row["image_id"], "width": row["width"], "height": row["height"], "file_name": row["key"]}
    annotations = []
    for annotation in row["annotations"]:
        boxed = {**annotation, "bbox": box_as("sa1b", annotation, bbox_style)}
        annotations.append({name: boxed[name] for name in FIELDS})
    return {"image": image, "annotations": annotations}


def file_names(keys: Iterable[str]) -> dict[str, str]:
    """A relative path for each key: its suffix becomes `.json`, or follows it where two images differ by it alone."""
    keys = list(keys)
    stems = {key: str(PurePosixPath(key).with_suffix("")) if PurePosixPath(key).name else key for key in keys}
    shared = Counter(stems.values())
    taken = set(keys)
    return {
        key: _inside(key if shared[stem] > 1 or (stem != key and stem in taken) else stem) + ".json"
        for key, stem in stems.items()
    }


def _inside(path: str) -> str:
    """The path with nothing in it that leads out of the target; `%` is escaped in keys, so that no two become one."""
    names = {"": "%2F", ".": "%2E", "..": "%2E%2E"}
    return "/".join(names.get(part, part) for part in path.split("/"))
