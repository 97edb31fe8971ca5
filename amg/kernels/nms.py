"""Greedy non-maximum suppression of boxes."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray


def nms(boxes_K4: NDArray[np.float32], order_K: NDArray[np.int64], max_iou: float) -> NDArray[np.int64]:
    """Greedy NMS over float32 boxes taken as x0, y0, x1, y1: indices kept, in `order_K`.

    A box goes when its IoU with a kept one is above `max_iou`; 0/0 is not. Same float32 arithmetic as torchvision.
    """
    return _nms(np.ascontiguousarray(boxes_K4, np.float32), order_K, max_iou)


@numba.njit(nogil=True, cache=True)
def _nms(boxes, order, max_iou):  # type: ignore[no-untyped-def]
    k = len(order)
    gone = np.zeros(k, np.bool_)
    areas = np.empty(k, np.float32)
    kept = np.empty(k, np.int64)
    for i in range(k):
        b = boxes[i]
        areas[i] = (b[2] - b[0]) * (b[3] - b[1])
    n = 0
    for p in range(k):
        i = order[p]
        if gone[i]:
            continue
        kept[n] = i
        n += 1
        a = boxes[i]
        for q in range(p + 1, k):
            j = order[q]
            if gone[j]:
                continue
            b = boxes[j]
            w = max(np.float32(0), min(a[2], b[2]) - max(a[0], b[0]))
            h = max(np.float32(0), min(a[3], b[3]) - max(a[1], b[1]))
            both = w * h
            union = areas[i] + areas[j] - both
            if union > 0 and np.float64(both / union) > max_iou:
                gone[j] = True
    return kept[:n]
