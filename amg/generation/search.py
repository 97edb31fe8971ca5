"""All prompts of one crop: decode, score, filter, remove doubles, and keep what is needed to draw the survivors.

`HostSearch` takes candidates as they come, chunk by chunk and on all cores. `DeviceSearch` asks a device for the
numbers of all chunks before it looks at any of them; what the filters need comes down at once. Between the first prompt
and the last the host then waits for nothing, with kernels of ours; PyTorch's operators make it wait twice a chunk for
how many blocks of pixels are to be looked at again. Both give the same candidates.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from amg.config import GenerateSettings
from amg.generation.clock import Clock
from amg.lanes import Lanes
from amg.masks import nms
from amg.masks.on_device import DeviceKernels
from amg.masks.score import Lens, Shelf, Tray, score
from amg.sam.model import PreparedImage, Sam
from amg.streams import Busy
from amg.tensors import Candidates, Points, Workspace, from_host, to_host
from amg.values import Funnel


@dataclass(frozen=True, slots=True)
class Found:
    """What survived in one crop, and how that crop sees its logits."""

    candidates: Candidates
    lens: Lens
    funnel: Funnel


class Search(Protocol):
    def __call__(self, prepared: PreparedImage, chunks: Sequence[Points], lens: Lens, clock: Clock) -> Found:
        """What prompts on one crop find; the chunks are of one size, but for the last."""
        ...


@dataclass(frozen=True, slots=True)
class HostSearch:
    """`room`: how many logits of a crop's candidates are kept; survivors beyond it are decoded a second time."""

    sam: Sam
    settings: GenerateSettings
    room: int
    lanes: Lanes

    def __call__(self, prepared: PreparedImage, chunks: Sequence[Points], lens: Lens, clock: Clock) -> Found:
        shelf = Shelf(self.room)

        def decode_and_score(points: Points, workspace: Workspace) -> tuple[Candidates, Funnel, float, float]:
            start = time.perf_counter()
            masks = self.sam.decode(prepared, points, workspace)
            middle = time.perf_counter()
            return *score(masks, lens, self.settings, shelf), middle - start, time.perf_counter() - middle

        with clock.stages_side_by_side() as taken:
            results = list(self.lanes.map(decode_and_score, chunks))
            taken["prompt"] = sum(result[2] for result in results)
            taken["score"] = sum(result[3] for result in results)
        funnel = sum((result[1] for result in results), Funnel())
        with clock.stage("nms"):
            candidates, dropped = _without_doubles(Candidates.concat([result[0] for result in results]), self.settings)

        def logits_of(number: int, workspace: Workspace) -> Tensor:
            return self.sam.decode(prepared, chunks[number], workspace).logits_PMLL

        with clock.stage("prompt"):
            return Found(_with_windows(candidates, len(chunks[0]), logits_of, self.lanes), lens, funnel + dropped)


@dataclass(frozen=True, slots=True)
class DeviceSearch:
    """`room`: as in `HostSearch`, on the device, in whole chunks. `lanes`: one, whose thread the device belongs to."""

    sam: Sam
    settings: GenerateSettings
    room: int
    lanes: Lanes
    busy: Busy
    kernels: DeviceKernels

    def __call__(self, prepared: PreparedImage, chunks: Sequence[Points], lens: Lens, clock: Clock) -> Found:
        tray, held = Tray(lens, self.settings, self.kernels), dict[int, Tensor]()

        def decode(job: tuple[int, Points], workspace: Workspace) -> None:
            number, points = job
            masks = self.sam.decode(prepared, points, workspace)
            tray.put(masks)
            if sum(map(torch.numel, held.values())) + masks.logits_PMLL.numel() <= self.room:
                held[number] = masks.logits_PMLL.clone()  # the next chunk overwrites the workspace

        with clock.stage("prompt"), self.busy.work():
            deque(self.lanes.map(decode, enumerate(chunks)), maxlen=0)
        with clock.stage("score"):  # here the host waits for the device
            candidates, funnel = tray.candidates()
        with clock.stage("nms"):
            candidates, dropped = _without_doubles(candidates, self.settings)

        def logits_of(number: int, workspace: Workspace) -> Tensor:
            there = held.get(number)
            return self.sam.decode(prepared, chunks[number], workspace).logits_PMLL if there is None else there

        with clock.stage("prompt"), self.busy.work():
            return Found(_with_windows(candidates, len(chunks[0]), logits_of, self.lanes), lens, funnel + dropped)


def _without_doubles(candidates: Candidates, settings: GenerateSettings) -> tuple[Candidates, Funnel]:
    keep = nms.nms_in_crop(candidates, max_iou=settings.box_nms_thresh)
    return candidates.select(keep), Funnel(dropped_crop_nms=len(candidates) - len(keep))


def _with_windows(
    candidates: Candidates, chunk: int, logits_of: Callable[[int, Workspace], Tensor], lanes: Lanes
) -> Candidates:
    """The candidates with the windows of logits that they lack, from `logits_of` their chunk (P, M, L, L)."""
    missing = np.flatnonzero(to_host(candidates.start_K) < 0)
    if not len(missing):
        return candidates
    columns = (candidates.point_index_K, candidates.mask_index_K, candidates.window_K4)
    index_K, mask_K, window_K4 = (to_host(column) for column in columns)
    number_K = index_K[missing] // chunk

    def take(number: int, workspace: Workspace) -> Tensor:
        logits_PMLL = logits_of(number, workspace)
        windows = []
        for k in missing[number_K == number]:
            row, column, rows, columns = window_K4[k]
            window = logits_PMLL[index_K[k] - number * chunk, mask_K[k], row : row + rows, column : column + columns]
            windows.append(window.reshape(-1))
        return torch.cat(windows)

    taken = torch.cat(list(lanes.map(take, np.unique(number_K))))
    order = missing[np.argsort(number_K, kind="stable")]
    size_K = window_K4[order, 2].astype(np.int64) * window_K4[order, 3]
    start_K = to_host(candidates.start_K).copy()
    start_K[order] = len(candidates.logits_V) + np.cumsum(size_K) - size_K
    return candidates.with_logits(from_host(start_K), torch.cat([candidates.logits_V, taken]))
