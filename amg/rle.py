"""Run lengths: COCO's compressed strings, area, box and records of masks, without dense masks.

A mask is a uint32 array of run lengths in column-major order that starts with a (possibly empty) run of zeros.
Source of the string format: `rleToString` and `rleFrString` of pycocotools' `maskApi.c`; bytes equal theirs.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amg.errors import ConfigError, FormatError
from amg.geometry import Size
from amg.values import MaskSet

OUTPUT_MODES = ("coco_rle", "uncompressed_rle", "binary_mask")
BBOX_STYLES = ("exact", "sa1b")

_BITS = 5  # payload of one character; the sixth bit says that another follows
_MAX_CHARACTERS = 7  # a difference of two uint32 needs 33 bits


def encode(runs: NDArray[np.uint32]) -> str:
    """The compressed COCO string of one mask."""
    characters, _ = encode_all(runs, np.array([0, len(runs)], np.int64))
    return characters.tobytes().decode("ascii")


def encode_all(
    runs_R: NDArray[np.uint32], offsets_K1: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The compressed strings of K masks, end to end in ASCII, and the K + 1 offsets that tell them apart."""
    deltas_R = runs_R.astype(np.int64)
    deltas_R[3:] -= runs_R[1:-2]
    for place in range(3):  # the first three runs of a mask have nothing to be a difference from
        first = offsets_K1[:-1][np.diff(offsets_K1) > place] + place
        deltas_R[first] = runs_R[first]

    width = _characters_of(deltas_R)
    if width * _BITS < 32:
        deltas_R = deltas_R.astype(np.int32)
    magnitude_R = np.where(deltas_R < 0, ~deltas_R, deltas_R)
    table = np.empty((len(runs_R), width), np.uint8)  # each number's characters, padded to the longest
    used = np.ones((len(runs_R), width), np.bool_)
    for n in range(width):
        table[:, n] = (deltas_R >> (_BITS * n) & 31) + 48
        if n + 1 < width:
            used[:, n + 1] = magnitude_R >= 1 << (_BITS * (n + 1) - 1)
            table[:, n] += used[:, n + 1].view(np.uint8) << _BITS
    ends_R = np.cumsum(used.sum(axis=1))
    return table[used], np.concatenate([[0], ends_R])[offsets_K1]


def strings(mask_set: MaskSet) -> list[str]:
    """The compressed strings of all masks of an image."""
    characters, offsets_K1 = encode_all(mask_set.runs_R, mask_set.offsets_K1)
    text = characters.tobytes().decode("ascii")
    ends = offsets_K1.tolist()
    return [text[start:end] for start, end in itertools.pairwise(ends)]


def decode(counts: str | bytes, *, size: Size | None = None) -> NDArray[np.uint32]:
    """The run lengths of a compressed string; with `size`, they must cover exactly its pixels.

    Raises `FormatError` on anything that pycocotools would read as garbage: foreign characters, a number that is cut
    off or too long, a negative run.
    """
    raw = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    digits = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not len(digits) or digits.min() < 0 or digits.max() > 63:
        raise FormatError(f"not a COCO run-length string: {_excerpt(raw)}, wanted characters from '0' to 'o'")
    last = np.flatnonzero(digits < 32)
    if not len(last) or last[-1] != len(digits) - 1:
        raise FormatError(f"a COCO run-length string that is cut off inside a number: {_excerpt(raw)}")
    first = np.concatenate([[0], last[:-1] + 1])
    lengths = last - first + 1
    if lengths.max() > _MAX_CHARACTERS:
        raise FormatError(f"a COCO run-length string with a number of {lengths.max()} characters: {_excerpt(raw)}")

    place = np.arange(len(digits)) - np.repeat(first, lengths)
    deltas = np.add.reduceat((digits & 31) << (_BITS * place), first)
    deltas -= (digits[last] >> 4 & 1) << (_BITS * lengths)  # the highest bit of the last character is the sign
    deltas[1::2] = np.cumsum(deltas[1::2])
    deltas[2::2] = np.cumsum(deltas[2::2])
    if deltas.min() < 0 or deltas.max() >= 1 << 32:
        raise FormatError(f"a COCO run-length string with a run of {deltas.min()} or {deltas.max()}: {_excerpt(raw)}")
    runs = deltas.astype(np.uint32)
    if size is not None:
        _check_sum(runs, size)
    return runs


def area(runs: NDArray[np.uint32]) -> int:
    """The number of set pixels."""
    return int(runs[1::2].sum(dtype=np.int64))


def box(runs: NDArray[np.uint32], height: int) -> tuple[int, int, int, int]:
    """The half-open box (x0, y0, x1, y1) around the set pixels; (0, 0, 0, 0) where there are none."""
    ends = np.cumsum(runs, dtype=np.int64)
    start, stop = ends[0::2][: len(runs) // 2], ends[1::2]
    start, stop = start[stop > start], stop[stop > start]
    if not len(start):
        return 0, 0, 0, 0
    x0, x1 = start[0] // height, (stop[-1] - 1) // height + 1
    if (start // height != (stop - 1) // height).any():  # a run over two columns touches both edges
        return int(x0), 0, int(x1), height
    return int(x0), int((start % height).min()), int(x1), int(((stop - 1) % height).max()) + 1


def to_mask(runs: NDArray[np.uint32], size: Size) -> NDArray[np.bool_]:
    """The dense mask, HxW bool."""
    _check_sum(runs, size)
    column_major = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return np.ascontiguousarray(column_major.reshape(size.width, size.height).T)


def from_mask(mask: NDArray[np.bool_]) -> NDArray[np.uint32]:
    """The run lengths of a dense HxW mask; what is not zero counts as set."""
    column_major = np.asarray(mask, np.bool_).ravel(order="F")
    changes = np.flatnonzero(column_major[1:] != column_major[:-1]) + 1
    starts = [0, 0] if column_major[0] else [0]
    return np.diff(np.concatenate([starts, changes, [len(column_major)]])).astype(np.uint32)


def records(mask_set: MaskSet, *, output_mode: str = "coco_rle", bbox_style: str = "sa1b") -> list[dict[str, Any]]:
    """The masks as the original generator's dicts, in its order of keys; documented at `MaskSet.to_dicts`."""
    check_record_styles(output_mode=output_mode, bbox_style=bbox_style)
    segmentations = _segmentations(mask_set, output_mode)
    crops = [list(crop.box.xywh) for crop in mask_set.crops]
    columns = zip(
        segmentations,
        mask_set.area_K.tolist(),
        xywh(mask_set.box_K4, bbox_style=bbox_style).tolist(),
        mask_set.predicted_iou_K.tolist(),
        mask_set.point_K2.tolist(),
        mask_set.stability_K.tolist(),
        mask_set.crop_K.tolist(),
        strict=True,
    )
    return [
        {
            "segmentation": segmentation,
            "area": pixels,
            "bbox": bbox,
            "predicted_iou": predicted_iou,
            "point_coords": [point],
            "stability_score": stability,
            "crop_box": list(crops[crop]),
        }
        for segmentation, pixels, bbox, predicted_iou, point, stability, crop in columns
    ]


def check_record_styles(*, output_mode: str, bbox_style: str) -> None:
    """ConfigError for what `records` does not know."""
    if output_mode not in OUTPUT_MODES:
        raise ConfigError(f"output_mode is {output_mode!r}, wanted one of {', '.join(OUTPUT_MODES)}")
    _check_bbox_style(bbox_style)


def _check_bbox_style(bbox_style: str) -> None:
    if bbox_style not in BBOX_STYLES:
        raise ConfigError(f"bbox_style is {bbox_style!r}, wanted one of {', '.join(BBOX_STYLES)}")


def xywh(box_K4: NDArray[np.int32], *, bbox_style: str) -> NDArray[np.int32]:
    """Half-open boxes as x, y, width, height: `exact` as COCO has them, `sa1b` one short in width and height."""
    _check_bbox_style(bbox_style)
    sides_K2 = box_K4[:, 2:] - box_K4[:, :2]
    if bbox_style == "sa1b":
        sides_K2 = np.maximum(sides_K2 - 1, 0)
    return np.concatenate([box_K4[:, :2], sides_K2], axis=1)


def _segmentations(mask_set: MaskSet, output_mode: str) -> list[Any]:
    size = mask_set.size
    if output_mode == "coco_rle":
        return [{"size": [size.height, size.width], "counts": counts} for counts in strings(mask_set)]
    each = (mask_set.runs(k) for k in range(len(mask_set)))
    if output_mode == "binary_mask":
        return [to_mask(runs, size) for runs in each]
    return [{"size": [size.height, size.width], "counts": runs.tolist()} for runs in each]


def _characters_of(deltas_R: NDArray[np.int64]) -> int:
    """How many characters the longest number takes: each holds five bits, the last of them the sign."""
    largest = max(int(deltas_R.max()), ~int(deltas_R.min())) if len(deltas_R) else 0
    return largest.bit_length() // _BITS + 1


def _check_sum(runs: NDArray[np.uint32], size: Size) -> None:
    pixels = int(runs.sum(dtype=np.int64))
    if pixels != size.pixels:
        raise FormatError(
            f"run lengths that cover {pixels} pixels, wanted {size.height} x {size.width} = {size.pixels}: "
            "the mask belongs to another image, or its file is damaged"
        )


def _excerpt(raw: bytes) -> str:
    return repr(raw[:24]) + (f" and {len(raw) - 24} bytes more" if len(raw) > 24 else "")
