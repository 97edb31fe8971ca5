"""What flows on the device: frozen values that check shape and dtype at birth and print shapes, not numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from amg.geometry import Crop, Size


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """`pixels_N3SS`: normalised crops, zero beyond their `resized` size (height and width in the model frame).

    There may be more of them than crops: zeros that make the batch as large as it always is.
    """

    pixels_N3SS: Tensor
    crops: tuple[Crop, ...]
    resized: tuple[Size, ...]

    def __post_init__(self) -> None:
        n, side = len(self.pixels_N3SS), self.pixels_N3SS.shape[-1]
        _check("pixels_N3SS", self.pixels_N3SS, (n, 3, side, side))
        assert len(self.resized) == len(self.crops) <= n, f"{n} pictures, {len(self.crops)} crops"

    def __len__(self) -> int:
        return len(self.crops)


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """`features_NDGG`: what the image encoder makes of a batch, in the batch's order; as many more as that has."""

    features_NDGG: Tensor
    crops: tuple[Crop, ...]
    resized: tuple[Size, ...]

    def __post_init__(self) -> None:
        n, d, g = self.features_NDGG.shape[:3]
        _check("features_NDGG", self.features_NDGG, (n, d, g, g))
        assert len(self.crops) == len(self.resized) <= n

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, n: int) -> Embedding:
        return Embedding(self.features_NDGG[n : n + 1], (self.crops[n],), (self.resized[n],))


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """Prompts of one foreground point each.

    All on the host. `xy_P2` float64 in the model frame (the model rounds after it has scaled to the unit square, as
    the reference does), `xy_image_P2` float64 in the image frame, `index_P` int32 the place in the grid of the layer.
    """

    xy_P2: Tensor
    xy_image_P2: Tensor
    index_P: Tensor

    def __post_init__(self) -> None:
        p = len(self.xy_P2)
        _check("xy_P2", self.xy_P2, (p, 2), torch.float64)
        _check("xy_image_P2", self.xy_image_P2, (p, 2), torch.float64)
        _check("index_P", self.index_P, (p,), torch.int32)

    def __len__(self) -> int:
        return len(self.xy_P2)

    def __getitem__(self, span: slice) -> Points:
        return Points(self.xy_P2[span], self.xy_image_P2[span], self.index_P[span])

    @staticmethod
    def concat(parts: Sequence[Points]) -> Points:
        """All parts (at least one) after each other."""
        columns = ([getattr(part, name) for part in parts] for name in ("xy_P2", "xy_image_P2", "index_P"))
        return Points(*(torch.cat(column) for column in columns))


@dataclass(frozen=True, slots=True, eq=False)
class MaskLogits:
    """`logits_PMLL` float32, L = 256 a side over the padded model square; `iou_PM` the predicted IoU (not clamped)."""

    logits_PMLL: Tensor
    iou_PM: Tensor
    points: Points

    def __post_init__(self) -> None:
        p, m, side = self.logits_PMLL.shape[:3]
        _check("logits_PMLL", self.logits_PMLL, (p, m, side, side), torch.float32)
        _check("iou_PM", self.iou_PM, (p, m), torch.float32)
        assert len(self.points) == p


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Masks that are not drawn yet, as columns of K; `select` and `concat` are the only ways to new ones.

    `box_K4` int64 is half-open in the image frame, empty masks have all zeros. `area_K` int64 in pixels.
    To draw the bits later: mask k keeps the window of its 256x256 logits that its box depends on,
    `window_K4` int32 (row, column, rows, columns), stored row by row in `logits_V[start_K[k]:]`. Where there was no
    room for it `start_K` is -1: such a candidate must be decoded again to be drawn.
    """

    box_K4: Tensor
    area_K: Tensor
    stability_K: Tensor
    iou_K: Tensor
    xy_image_K2: Tensor
    point_index_K: Tensor
    mask_index_K: Tensor
    crop_K: Tensor
    window_K4: Tensor
    start_K: Tensor
    logits_V: Tensor

    def __post_init__(self) -> None:
        k = len(self.box_K4)
        for name, shape, dtype in (
            ("box_K4", (k, 4), torch.int64),
            ("area_K", (k,), torch.int64),
            ("stability_K", (k,), torch.float32),
            ("iou_K", (k,), torch.float32),
            ("xy_image_K2", (k, 2), torch.float64),
            ("point_index_K", (k,), torch.int32),
            ("mask_index_K", (k,), torch.int8),
            ("crop_K", (k,), torch.int32),
            ("window_K4", (k, 4), torch.int32),
            ("start_K", (k,), torch.int64),
        ):
            _check(name, getattr(self, name), shape, dtype)
        assert self.logits_V.dtype == torch.float32 and self.logits_V.ndim == 1

    def __len__(self) -> int:
        return len(self.box_K4)

    def select(self, keep: Tensor) -> Candidates:
        """The candidates at `keep` (int64 indices, in that order), their logits copied so that the others are freed."""
        starts = self.start_K[keep]
        held = starts >= 0
        sizes = torch.where(held, self.window_K4[keep, 2].to(torch.int64) * self.window_K4[keep, 3], 0)
        pieces = [self.logits_V[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        columns = {name: getattr(self, name)[keep] for name in _ROW_COLUMNS}
        logits_V = torch.cat(pieces) if pieces else self.logits_V[:0]
        return Candidates(**columns, start_K=torch.where(held, sizes.cumsum(0) - sizes, -1), logits_V=logits_V)

    def with_logits(self, start_K: Tensor, logits_V: Tensor) -> Candidates:
        """The same candidates with other logits to draw them from."""
        return replace(self, start_K=start_K, logits_V=logits_V)

    @staticmethod
    def concat(parts: Sequence[Candidates]) -> Candidates:
        """All parts (at least one) after each other; parts with the same logits go on sharing them."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _ROW_COLUMNS}
        if all(part.logits_V is parts[0].logits_V for part in parts):
            return Candidates(**columns, start_K=torch.cat([p.start_K for p in parts]), logits_V=parts[0].logits_V)
        starts, shift = [], 0
        for part in parts:
            starts.append(torch.where(part.start_K < 0, -1, part.start_K + shift))
            shift += len(part.logits_V)
        logits_V = torch.cat([part.logits_V for part in parts])
        return Candidates(**columns, start_K=torch.cat(starts), logits_V=logits_V)

    def columns_to_host(self) -> dict[str, NDArray[Any]]:
        """Every column by its name, as arrays; the logits stay where they are."""
        return {name: to_host(getattr(self, name)) for name in (*_ROW_COLUMNS, "start_K")}

    def __repr__(self) -> str:
        return f"Candidates({len(self)}, {len(self.logits_V) * 4 / 2**20:.1f} MiB of logits)"


_ROW_COLUMNS = tuple(f.name for f in fields(Candidates) if f.name not in ("start_K", "logits_V"))


class Workspace:
    """Tensors by name that are made once and overwritten by each chunk of prompts; smaller ones are views of larger."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def like(self, other: Tensor, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor of this shape, of `other`'s type and device.

        What the name held before is overwritten by whoever writes to it.
        """
        size = math.prod(shape)
        held = self._tensors.get(name)
        if held is None or len(held) < size or held.dtype != other.dtype or held.device != other.device:
            held = self._tensors[name] = other.new_empty(size)
        return held[:size].view(shape)


def _check(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> None:
    right = tuple(tensor.shape) == shape and (dtype is None or tensor.dtype == dtype)
    assert right, f"{name}: {tensor.dtype} of shape {tuple(tensor.shape)}, wanted {dtype or 'any dtype'} of {shape}"


def to_host(tensor: Tensor) -> NDArray[Any]:
    """Crossing 2, integers down: the only place where numbers leave the device."""
    return tensor.detach().cpu().numpy()


def from_host(array: NDArray[Any]) -> Tensor:
    """Columns made on the host; they stay there."""
    return torch.from_numpy(np.ascontiguousarray(array))
