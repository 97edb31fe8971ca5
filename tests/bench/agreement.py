"""How far two lists of masks of one image are the same masks, where they need not be the same to the pixel."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco
from scipy.optimize import linear_sum_assignment

from tests.parity import iou_matrix
from tests.reference_amg import Record

MIN_IOU = 0.9


@dataclass(frozen=True, slots=True)
class Agreement:
    """Masks are matched one to one; a pair counts when its IoU is at least `MIN_IOU`."""

    ours: int
    theirs: int
    matched: int
    worst_iou: float  # over the pairs that count; 1 when there are none

    @property
    def f1(self) -> float:
        both = self.ours + self.theirs
        return 2 * self.matched / both if both else 1.0


def agree(ours: list[Record], theirs: list[Record]) -> Agreement:
    """Of the assignment with the largest sum of IoU; only `segmentation` of the records is looked at."""
    ious = iou_matrix(ours, theirs)
    pairs = ious[linear_sum_assignment(ious, maximize=True)]
    counting = pairs[pairs >= MIN_IOU]
    return Agreement(len(ours), len(theirs), len(counting), float(counting.min(initial=1.0)))


def over_all(images: Iterable[Agreement]) -> Agreement:
    """Of all images together."""
    images = list(images)
    return Agreement(
        sum(image.ours for image in images),
        sum(image.theirs for image in images),
        sum(image.matched for image in images),
        min((image.worst_iou for image in images), default=1.0),
    )


def record(mask_HW: NDArray[np.bool_], score: float) -> Record:
    """A mask as records have it, as far as `agree` needs."""
    rle = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}, "predicted_iou": score}
