"""What flows on the host: frozen values that check themselves at birth and print shapes, not pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amg.geometry import Crop, Size


class Status(StrEnum):
    """What became of a planned image; the same words in rows, counters, exit texts and metrics."""

    OK = "ok"
    DECODE_ERROR = "decode_error"
    TOO_LARGE = "too_large"
    UNSUPPORTED = "unsupported"
    MISSING = "missing"
    TIMEOUT = "timeout"
    OUT_OF_MEMORY = "out_of_memory"
    CRASH = "crash"


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One planned image. `row` is its place in the plan and its `image_id`; `key` is unique and stable within the plan.

    `size_bytes` and `tag` (modification time or etag, as text) are what the listing said, or None.
    `extra` is what a manifest said of the image beside its path: a JSON object as text, with sorted keys.
    """

    row: int
    key: str
    uri: str
    member: str | None = None
    size_bytes: int | None = None
    tag: str | None = None
    extra: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An upright image: `pixels_HWC` uint8 RGB; `original` and `orientation` as in the file, before it was turned.

    `decoded_at` is when it was ready, in seconds of `time.perf_counter`; 0 where nobody looked.
    """

    ref: ImageRef
    pixels_HWC: NDArray[np.uint8]
    original: Size
    orientation: int = 1
    decode_seconds: float = 0.0
    decoded_at: float = 0.0

    def __post_init__(self) -> None:
        pixels = self.pixels_HWC
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, _seen("pixels_HWC", pixels)

    @property
    def size(self) -> Size:
        return Size(*self.pixels_HWC.shape[:2])

    def __repr__(self) -> str:
        return f"Image({self.ref.key!r}, {self.size.height}x{self.size.width})"


@dataclass(frozen=True, slots=True)
class Failure:
    """An image that could not be labeled. `reason` is a sentence for a person."""

    ref: ImageRef
    status: Status
    reason: str

    def __post_init__(self) -> None:
        assert self.status is not Status.OK and self.reason, f"a failure needs a status and a reason: {self}"


@dataclass(frozen=True, slots=True)
class Funnel:
    """How many candidates of an image each filter dropped, in the order they act; the rest was kept."""

    candidates: int = 0
    dropped_predicted_iou: int = 0
    dropped_stability: int = 0
    dropped_max_area: int = 0
    dropped_crop_edge: int = 0
    dropped_crop_nms: int = 0
    dropped_image_nms: int = 0
    dropped_small: int = 0
    dropped_cleanup_nms: int = 0
    kept: int = 0

    def __add__(self, other: Funnel) -> Funnel:
        return Funnel(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


GPU_BUSY, GPU_IDLE = "gpu_busy", "gpu_idle"
"""Beside the stages, which are the host's seconds: those in which a GPU had work, and of a shard those in which not."""


def stages(seconds: Mapping[str, float]) -> dict[str, float]:
    """The host's seconds alone."""
    return {name: spent for name, spent in seconds.items() if name not in (GPU_BUSY, GPU_IDLE)}


@dataclass(frozen=True, slots=True, eq=False)
class MaskSet:
    """The masks of one image, as columns of K in the reference's order; all coordinates in the image frame.

    `runs_R` holds the run lengths of all masks one after the other (column-major, starting with a run of zeros);
    mask k owns `runs_R[offsets_K1[k]:offsets_K1[k + 1]]`. `box_K4` is half-open (x0, y0, x1, y1).
    `crop_K` indexes `crops`; `point_index_K` counts in the grid of the crop's layer, `mask_index_K` (0, 1, 2) among the
    three masks of a point. `changed_K` tells whether the clean-up of small regions changed the mask.
    """

    ref: ImageRef
    size: Size
    original: Size
    orientation: int
    crops: tuple[Crop, ...]
    runs_R: NDArray[np.uint32]
    offsets_K1: NDArray[np.int64]
    box_K4: NDArray[np.int32]
    area_K: NDArray[np.int64]
    predicted_iou_K: NDArray[np.float32]
    stability_K: NDArray[np.float32]
    point_K2: NDArray[np.float64]
    crop_K: NDArray[np.int32]
    point_index_K: NDArray[np.int32]
    mask_index_K: NDArray[np.int8]
    changed_K: NDArray[np.bool_]
    funnel: Funnel
    seconds: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        k = len(self)
        for name, shape, dtype in (
            ("box_K4", (k, 4), np.int32),
            ("area_K", (k,), np.int64),
            ("predicted_iou_K", (k,), np.float32),
            ("stability_K", (k,), np.float32),
            ("point_K2", (k, 2), np.float64),
            ("crop_K", (k,), np.int32),
            ("point_index_K", (k,), np.int32),
            ("mask_index_K", (k,), np.int8),
            ("changed_K", (k,), np.bool_),
        ):
            column = getattr(self, name)
            assert column.shape == shape and column.dtype == dtype, f"{_seen(name, column)}, wanted {shape} {dtype}"
        assert self.runs_R.dtype == np.uint32 and self.offsets_K1.dtype == np.int64 and self.offsets_K1.ndim == 1
        assert self.offsets_K1[0] == 0 and self.offsets_K1[-1] == len(self.runs_R)

    def __len__(self) -> int:
        return len(self.offsets_K1) - 1

    def runs(self, k: int) -> NDArray[np.uint32]:
        """The run lengths of mask `k`."""
        return self.runs_R[self.offsets_K1[k] : self.offsets_K1[k + 1]]

    def to_dicts(self, *, output_mode: str = "coco_rle", bbox_style: str = "sa1b") -> list[dict[str, Any]]:
        """The records of the original package's generator, one dict a mask.

        `output_mode`: `coco_rle` (compressed, str), `uncompressed_rle` (list of int) or `binary_mask` (HxW bool).
        `bbox_style`: `sa1b` gives XYWH one pixel short in width and height, as the original does; `exact` gives COCO's.
        """
        from amg.rle import records

        return records(self, output_mode=output_mode, bbox_style=bbox_style)

    def __repr__(self) -> str:
        size = f"{self.size.height}x{self.size.width}"
        return f"MaskSet({self.ref.key!r}, {size}, {len(self)} masks, {len(self.runs_R)} runs)"


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one shard came to. `won` is False when another worker had committed the same shard first.

    `size_bytes` is the size of the file that was made of it, whether it won or not; `peak_memory_mb` (10^6 bytes) the
    most that the process which made it has held so far.
    """

    shard: int
    rows: Mapping[str, int]
    masks: int
    won: bool
    seconds: Mapping[str, float] = field(default_factory=dict)
    size_bytes: int = 0
    peak_memory_mb: float = 0.0


def _seen(name: str, array: NDArray[Any]) -> str:
    return f"{name}: {array.dtype} of shape {array.shape}"
