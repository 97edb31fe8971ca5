"""What prompts on one image gave, as a folder for people and programs: masks, `prediction.json`, `overlay.png`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from amg import rle
from amg.errors import OutputRefused
from amg.review.panels import overlay
from amg.storage.appearing import appearing
from amg.storage.url import local_target
from amg.values import Image

RECORD = "prediction.json"
OVERLAY = "overlay.png"
OURS = re.compile(rf"mask-\d+-\d+\.png|{re.escape(OVERLAY)}|{re.escape(RECORD)}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """One object: points as (x, y, label 1 or 0), a box (x0, y0, x1, y1), or both; pixels of the image."""

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The masks for one prompt in the model's order, `masks_MHW` bool, and what it predicts of their IoU."""

    prompt: Prompt
    masks_MHW: NDArray[np.bool_]
    iou_M: NDArray[np.float32]

    def __post_init__(self) -> None:
        assert self.masks_MHW.dtype == np.bool_ and self.masks_MHW.ndim == 3, self.masks_MHW.shape
        assert self.iou_M.shape == self.masks_MHW.shape[:1], f"iou_M.shape = {self.iou_M.shape}"


@dataclass(frozen=True, slots=True)
class Written:
    """The files of a prediction, and the record as it stands in `prediction.json`."""

    record_file: Path
    overlay: Path
    masks: tuple[Path, ...]
    record: Mapping[str, Any]


def write_prediction(
    folder: str | Path, image: Image, answers: Sequence[Answer], *, about: Mapping[str, Any], overwrite: bool = False
) -> Written:
    """The folder with all files, there only when complete; `about` goes into the record as it is.

    All answers have the same number of masks. Raises as `refuse_taken`, and StorageError where nothing can be written.
    """
    target = Path(os.path.realpath(local_target(folder, "a prediction")))
    refuse = partial(refuse_taken, overwrite=overwrite)
    record = {"image": _image_record(image), **about, "objects": [_object_record(i, a) for i, a in enumerate(answers)]}
    with appearing(target, refuse=refuse, advice="make room or give another --out") as making:
        making.mkdir()
        for index, answer in enumerate(answers):
            for number, mask_HW in enumerate(answer.masks_MHW):
                _save(mask_HW.astype(np.uint8) * 255, making / mask_file(index, number))
        _save(overlay(image.pixels_HWC, answers), making / OVERLAY)
        (making / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    masks = tuple(target / mask["file"] for each in record["objects"] for mask in each["masks"])
    return Written(target / RECORD, target / OVERLAY, masks, record)


def refuse_taken(folder: str | Path, *, overwrite: bool) -> None:
    """OutputRefused where `folder` is not free: a file, or not empty without `overwrite`, or with foreign files."""
    target = local_target(folder, "a prediction")
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise OutputRefused(f"{target} is a file, a prediction makes a folder; give another --out")
    held = sorted(path.name for path in target.iterdir())
    foreign = next((name for name in held if not OURS.fullmatch(name)), None)
    if foreign is not None:
        raise OutputRefused(f"{target} holds {foreign}, which no prediction wrote; give another --out")
    if held and not overwrite:
        raise OutputRefused(f"{target} is there and not empty; give another --out, or --overwrite")


def mask_file(index: int, number: int) -> str:
    """The name of mask `number` of object `index`."""
    return f"mask-{index}-{number}.png"


def _image_record(image: Image) -> dict[str, Any]:
    return {"file": image.ref.uri, "width": image.size.width, "height": image.size.height}


def _object_record(index: int, answer: Answer) -> dict[str, Any]:
    prompt = answer.prompt
    scored = zip(answer.masks_MHW, answer.iou_M.tolist(), strict=True)
    return {
        "points": [[x, y] for x, y, _ in prompt.points],
        "labels": [label for _, _, label in prompt.points],
        "box": None if prompt.box is None else list(prompt.box),
        "masks": [_mask_record(mask_file(index, n), mask_HW, iou) for n, (mask_HW, iou) in enumerate(scored)],
    }


def _mask_record(file: str, mask_HW: NDArray[np.bool_], predicted_iou: float) -> dict[str, Any]:
    """With the names of COCO and SA-1B; `bbox` is x, y, width, height, exact."""
    height, width = mask_HW.shape
    runs_R = rle.from_mask(mask_HW)
    x0, y0, x1, y1 = rle.box(runs_R, height)
    return {
        "file": file,
        "segmentation": {"size": [height, width], "counts": rle.encode(runs_R)},
        "area": rle.area(runs_R),
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "predicted_iou": predicted_iou,
    }


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    PIL.Image.fromarray(pixels).save(path, format="PNG", optimize=True)
