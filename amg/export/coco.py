"""One COCO file of a whole output, written as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from amg import __version__
from amg.export.exporter import Shards, box_as

CATEGORY = {"id": 1, "name": "object", "supercategory": "object"}


class Coco:
    """Exact boxes, run lengths as they are, one category; `score` is the predicted IoU.

    The id of an annotation is that of the shards plus one: pycocotools' evaluation takes 0 for no match.
    """

    makes_folder = False

    def write(self, shards: Shards, target: Path) -> None:
        about = {"description": "Masks by sam-amg (Segment Anything)", "version": __version__}
        with target.open("x", encoding="utf-8") as file:
            file.write(f'{{"info": {json.dumps(about)},\n"licenses": [],\n"categories": [{json.dumps(CATEGORY)}],\n')
            file.write('"images": [')
            _write_list(file, (_image(row) for row in shards.images()))
            file.write('],\n"annotations": [')
            _write_list(file, _annotations(shards))
            file.write("]}\n")


def _image(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": row["image_id"], "file_name": row["key"], "width": row["width"], "height": row["height"]}


def _annotations(shards: Shards) -> Iterator[dict[str, Any]]:
    for row in shards.rows():
        for annotation in row["annotations"]:
            yield {
                "id": annotation["id"] + 1,
                "image_id": row["image_id"],
                "category_id": CATEGORY["id"],
                "segmentation": annotation["segmentation"],
                "area": annotation["area"],
                "bbox": box_as("exact", annotation, shards.bbox_style),
                "iscrowd": 0,
                "score": annotation["predicted_iou"],
                "stability_score": annotation["stability_score"],
            }


def _write_list(file: TextIO, items: Iterable[Mapping[str, Any]]) -> None:
    between = "\n"
    for item in items:
        file.write(between + json.dumps(item))
        between = ",\n"
