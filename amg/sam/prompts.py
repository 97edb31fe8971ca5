"""Points, labels and boxes as people write them (nested lists, arrays, tensors): checked, padded, in the model frame.

Source of the shapes and of the padding: `SamProcessor` of transformers. Letters of docs/shapes.md, and `B` images,
`K` points of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from amg.errors import ConfigError
from amg.geometry import Size, fit_longest_side
from amg.tensors import to_host

PADDING = -10
LABELS = (-1, 0, 1, 2, 3)
POINTS_WANTED = "(images, points, 2), as [[[x, y]]], or (images, prompts, points, 2)"
LABELS_WANTED = "one label for each point, (images, points) or (images, prompts, points), as [[1]]"
BOXES_WANTED = "(images, boxes, 4), as [[[x0, y0, x1, y1]]]"
OUTSIDE = 1.0
"""Pixels that a box may reach beyond the picture: detectors round."""


@dataclass(frozen=True, slots=True, eq=False)
class Prompts:
    """What the model takes: `points` float64 (B, P, K, 2), `labels` (B, P, K), `boxes` float64 (B, P, 4), or None.

    `single_points` and `single_labels` tell that they came without a dimension of prompts and got one of length 1.
    """

    points_BPK2: NDArray[np.float64] | None = None
    labels_BPK: NDArray[Any] | None = None
    boxes_BP4: NDArray[np.float64] | None = None
    single_points: bool = False
    single_labels: bool = False


def read_prompts(
    points: Any, labels: Any, boxes: Any, sizes: Sequence[Size], *, edge: int, padding: int = PADDING
) -> Prompts:
    """All prompts of `sizes` images, scaled from pixels of each image to one whose longest side is `edge`.

    Prompts with fewer points than others, and images with fewer prompts, are filled up with points of coordinates and
    label `padding`, which the model leaves out; points without labels are foreground then.
    Raises ConfigError with the name of the argument, its shape and the shape wanted.
    """
    if points is None:
        if labels is not None:
            raise ConfigError(
                f"input_labels: shape {shape_of(labels)} without input_points; wanted points for the labels"
            )
        return Prompts(boxes_BP4=_read_boxes(boxes, sizes, edge))
    grouped = _read_points(points, len(sizes))
    known = _foreground(grouped) if labels is None else _read_labels(labels, grouped, padding)
    scaled = [_scale(image, size, edge) for image, size in _with_size(grouped.images, sizes)]
    return Prompts(
        points_BPK2=_pad(scaled, padding),
        labels_BPK=_pad(known.images, padding) if known else None,
        boxes_BP4=_read_boxes(boxes, sizes, edge),
        single_points=grouped.single,
        single_labels=bool(known and known.single),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Grouped:
    """For every image its prompts, for every prompt an array of points (K, 2) or of labels (K,)."""

    images: list[list[NDArray[Any]]]
    single: bool


def _read_points(given: Any, n_images: int) -> _Grouped:
    given = _listed("input_points", given, POINTS_WANTED)
    depth = _depth(given)
    if depth not in (3, 4):
        raise _wrong("input_points", given, POINTS_WANTED)
    _check_count("input_points", given, n_images, POINTS_WANTED)
    images = _groups("input_points", given, depth == 3, POINTS_WANTED)
    for group in (group for image in images for group in image):
        if group.ndim != 2 or group.shape[1] != 2 or not len(group) or not np.isfinite(group).all():
            raise _wrong("input_points", given, f"finite numbers of shape {POINTS_WANTED}")
    return _Grouped([[group.astype(np.float64) for group in image] for image in images], depth == 3)


def _foreground(points: _Grouped) -> _Grouped | None:
    """Labels for points that are to be filled up; where all are alike the model needs none."""
    if len({len(image) for image in points.images}) == len({len(g) for image in points.images for g in image}) == 1:
        return None
    return _Grouped([[np.ones(len(group), np.int64) for group in image] for image in points.images], points.single)


def _read_labels(given: Any, points: _Grouped, padding: int) -> _Grouped:
    wanted = f"{LABELS_WANTED}; the points have {_shape_of_groups(points)}"
    given = _listed("input_labels", given, wanted)
    depth = _depth(given)
    if depth not in (2, 3):
        raise _wrong("input_labels", given, wanted)
    images = _groups("input_labels", given, depth == 2, wanted)
    theirs = [[len(group) for group in image] for image in points.images]
    if any(group.ndim != 1 for image in images for group in image) or theirs != [
        [len(group) for group in image] for image in images
    ]:
        raise _wrong("input_labels", given, wanted)
    for group in (group for image in images for group in image):
        if not np.isin(group, (*LABELS, PADDING, padding)).all():
            raise ConfigError(
                f"input_labels: {[*map(float, group)]}; wanted 1 (foreground), 0 (background), -1 (no point) or"
                f" {padding} (padding)"
            )
    return _Grouped(images, depth == 2)


def _read_boxes(given: Any, sizes: Sequence[Size], edge: int) -> NDArray[np.float64] | None:
    if given is None:
        return None
    given = _listed("input_boxes", given, BOXES_WANTED)
    _check_count("input_boxes", given, len(sizes), BOXES_WANTED)
    if _depth(given) not in (3, 4):
        raise _wrong("input_boxes", given, BOXES_WANTED)
    images = [image.reshape(-1, 4) for image in _box_arrays(given)]
    if len({len(image) for image in images}) > 1:
        raise _wrong("input_boxes", given, f"{BOXES_WANTED}, as many boxes for every image")
    for number, (image, size) in enumerate(_with_size(images, sizes)):
        _check_boxes(f"input_boxes[{number}]", image, size)
    pairs = _with_size([image.reshape(-1, 2, 2) for image in images], sizes)
    return np.stack([_scale([image], size, edge)[0].reshape(-1, 4) for image, size in pairs])


def _box_arrays(given: Sequence[Any]) -> Iterator[NDArray[np.float64]]:
    """Rounded to float32 on the way, as the source does."""
    for image in given:
        array = _numbers("input_boxes", image, given, BOXES_WANTED)
        if array.ndim < 2 or array.shape[-1] != 4 or not array.size or not np.isfinite(array).all():
            raise _wrong("input_boxes", given, f"finite numbers of shape {BOXES_WANTED}")
        yield array.astype(np.float32).astype(np.float64)


def check_corners(name: str, box_4: NDArray[np.float64]) -> list[float]:
    """x0, y0, x1, y1; ConfigError where they are not in order."""
    x0, y0, x1, y1 = corners = [float(corner) for corner in box_4]
    if x1 < x0 or y1 < y0:
        raise ConfigError(f"{name}: {corners}; wanted x0 <= x1 and y0 <= y1, not x, y, width, height")
    return corners


def _check_boxes(name: str, boxes_P4: NDArray[np.float64], size: Size) -> None:
    for box in boxes_P4:
        x0, y0, x1, y1 = check_corners(name, box)
        reach = max(-x0, -y0, x1 - size.width, y1 - size.height)
        if reach > OUTSIDE:
            raise ConfigError(
                f"{name}: {[x0, y0, x1, y1]} lies {reach:g} pixels outside its picture of {size.height} x {size.width};"
                f" wanted 0 <= x <= {size.width} and 0 <= y <= {size.height}: clip it, or swap x and y"
            )


def _check_count(name: str, given: Sequence[Any], n_images: int, wanted: str) -> None:
    """As many as images, or any number for a single image, whose size then counts for all."""
    if n_images > 1 and len(given) != n_images:
        raise _wrong(name, given, f"{wanted} with {n_images} images")


def _with_size(images: Sequence[Any], sizes: Sequence[Size]) -> Iterator[tuple[Any, Size]]:
    return zip(images, sizes if len(sizes) == len(images) else [sizes[0]] * len(images), strict=True)


def _scale(groups: Sequence[NDArray[np.float64]], size: Size, edge: int) -> list[NDArray[np.float64]]:
    resized = fit_longest_side(size, edge)
    return [group * np.array([resized.width / size.width, resized.height / size.height]) for group in groups]


def _pad(images: Sequence[Sequence[NDArray[Any]]], padding: int) -> NDArray[Any]:
    """Groups of unequal length, and images with an unequal number of groups, in one array."""
    n_prompts = max(len(image) for image in images)
    longest = max(len(group) for image in images for group in image)
    dtype = np.result_type(*(group.dtype for image in images for group in image))
    padded = np.full((len(images), n_prompts, longest, *images[0][0].shape[1:]), padding, dtype)
    for b, image in enumerate(images):
        for p, group in enumerate(image):
            padded[b, p, : len(group)] = group
    return padded


def _groups(name: str, given: Sequence[Any], single: bool, wanted: str) -> list[list[NDArray[Any]]]:
    images = [[image] if single else image for image in given]
    if not all(isinstance(image, list) and image for image in images):
        raise _wrong(name, given, wanted)
    return [[_numbers(name, group, given, wanted) for group in image] for image in images]


def _numbers(name: str, group: Any, whole: Any, wanted: str) -> NDArray[Any]:
    try:
        array = np.asarray(group)
    except ValueError:
        array = np.empty(0, object)
    if array.dtype.kind not in "iufb":
        raise _wrong(name, whole, f"numbers of shape {wanted}" if array.dtype.kind in "US" else wanted)
    return array.astype(np.float64 if array.dtype.kind == "f" else np.int64)


def _listed(name: str, given: Any, wanted: str) -> list[Any]:
    """Nested lists from nested lists, tuples, arrays and tensors."""
    plain = _plain(given)
    if not isinstance(plain, list):
        raise ConfigError(f"{name}: a {type(given).__name__}; wanted nested lists, an array or a tensor of {wanted}")
    if not plain:
        raise ConfigError(f"{name}: shape {shape_of(plain)}, an empty list; wanted {wanted}")
    return plain


def _plain(given: Any) -> Any:
    if isinstance(given, Tensor):
        given = to_host(given.float() if given.is_floating_point() and given.itemsize < 4 else given)
    if isinstance(given, np.ndarray) and given.ndim:
        return [_plain(inner) for inner in given]
    if isinstance(given, list | tuple):
        return [_plain(inner) for inner in given]
    return given


def _depth(given: Any) -> int:
    """How deep lists are nested along the first elements."""
    depth = 0
    while isinstance(given, list):
        depth, given = depth + 1, given[0] if given else None
    return depth


def shape_of(given: Any) -> str:
    """The shape of nested lists, with `a-b` where lists beside each other have different lengths."""
    if isinstance(given, Tensor | np.ndarray):
        return str(tuple(given.shape))
    lengths, level = [], [given]
    while level and all(isinstance(item, list | tuple) for item in level):
        counts = {len(cast(list[Any], item)) for item in level}
        lengths.append(str(min(counts)) if len(counts) == 1 else f"{min(counts)}-{max(counts)}")
        level = [inner for item in level for inner in cast(list[Any], item)]
    return f"({', '.join(lengths)}{',' if len(lengths) == 1 else ''})"


def _shape_of_groups(points: _Grouped) -> str:
    lengths = [[[0] * len(group) for group in image] for image in points.images]
    return shape_of([image[0] for image in lengths] if points.single else lengths)


def _wrong(name: str, given: Any, wanted: str) -> ConfigError:
    nan = " with NaN or infinite values" if _has_nan(given) else ""
    return ConfigError(f"{name}: shape {shape_of(given)}{nan}; wanted {wanted}")


def _has_nan(given: Any) -> bool:
    if isinstance(given, list):
        return any(_has_nan(inner) for inner in given)
    return isinstance(given, float | np.floating) and not np.isfinite(given)
