"""Networks that cost nothing and whose masks are known: they stand where a `Sam` stands in the generation loop."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from amg.geometry import Size, fit_longest_side
from amg.sam import load, weights
from amg.sam.model import Sam
from amg.sam.processor import PIXEL_MEAN, PIXEL_STD
from amg.tensors import Batch, Embedding, MaskLogits, Points

CENTRES = (np.arange(256) + 0.5) * 4
"""Where the 256 logits of a row or column lie in the model frame."""


@dataclass(slots=True)
class FakeSam:
    """Three masks for a point, from `draw(xy of the point in the model frame, size of the crop)`."""

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    weights_digest: str | None = "0" * 64
    kernels: str = "torch"
    calls: list[int] = field(default_factory=list)

    def encode(self, batch: Batch) -> Embedding:
        return Embedding(torch.zeros(len(batch), 1, 1, 1), batch.crops, batch.resized)

    def prepare(self, embedding: Embedding, *, tokens: int = 2, needed: Size | None = None) -> Embedding:
        return embedding

    def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
        self.calls.append(len(points))
        drawn = [self.draw(xy, image.crops[0].box.size) for xy in points.xy_P2.numpy()]
        return MaskLogits(torch.stack([d[0] for d in drawn]), torch.stack([d[1] for d in drawn]), points)

    def draw(self, xy: NDArray[np.float64], crop: Size) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def as_sam(self) -> Sam:
        """For the type checker; the loop asks for nothing that is not here."""
        return cast(Sam, self)


@dataclass(slots=True)
class RoughSam(FakeSam):
    """Discs around the point with soft or sharp edges, holes, islands, a seeded IoU: all filters have work."""

    def draw(self, xy: NDArray[np.float64], crop: Size) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([int(v) for v in xy] + [crop.height, crop.width])
        distance = np.hypot(CENTRES[None, :] - xy[0], CENTRES[:, None] - xy[1])
        logits = []
        for radius in rng.uniform(8, 400, 3):
            slope = rng.choice([0.02, 0.2, 1.0])
            disc = np.clip((radius - distance) * slope, -20, 20)
            for _ in range(rng.integers(0, 6)):
                row, column, extent = rng.integers(0, 250), rng.integers(0, 250), rng.integers(1, 6)
                disc[row : row + extent, column : column + extent] *= -1
            logits.append(disc)
        return torch.from_numpy(np.stack(logits).astype(np.float32)), torch.from_numpy(
            rng.uniform(0.8, 1.02, 3).astype(np.float32)
        )


@dataclass(slots=True)
class DiscSam(FakeSam):
    """One sharp disc where the point is, three times: the radius, half of it and a quarter, in the model frame."""

    radius: float = 30.0
    iou: tuple[float, float, float] = (0.99, 0.95, 0.9)

    def draw(self, xy: NDArray[np.float64], crop: Size) -> tuple[Tensor, Tensor]:
        distance = np.hypot(CENTRES[None, :] - xy[0], CENTRES[:, None] - xy[1])
        radii = self.radius / np.array([1.0, 2.0, 4.0])
        logits = (radii[:, None, None] - distance) * 5
        return torch.from_numpy(logits.astype(np.float32)), torch.tensor(self.iou)


@dataclass(slots=True)
class NothingSam(FakeSam):
    """Masks without a pixel."""

    def draw(self, xy: NDArray[np.float64], crop: Size) -> tuple[Tensor, Tensor]:
        return torch.full((3, 256, 256), -20.0), torch.ones(3)


@dataclass(slots=True)
class RedSam(FakeSam):
    """For every point the three masks of what is redder than three values: masks that depend on the pixels alone."""

    cuts: tuple[float, float, float] = (0.25, 0.5, 0.75)

    def encode(self, batch: Batch) -> Embedding:
        return Embedding(_red(batch), batch.crops, batch.resized)

    def decode(self, image: Embedding, points: Points, workspace: object = None) -> MaskLogits:
        red_LL = image.features_NDGG[0, 0]
        logits_MLL = torch.stack([(red_LL - cut) * 1000 for cut in self.cuts])
        iou_PM = torch.tensor([[0.99, 0.95, 0.9]]).repeat(len(points), 1)
        return MaskLogits(logits_MLL.repeat(len(points), 1, 1, 1), iou_PM, points)


def _red(batch: Batch) -> Tensor:
    """The red channel from 0 to 1, each of 256 x 256 cells the mean of 4 x 4 pixels; 0 beyond the picture."""
    red_N1SS = (batch.pixels_N3SS[:, :1] * PIXEL_STD[0] + PIXEL_MEAN[0]) / 255
    for red_1SS, size in zip(red_N1SS[: len(batch)], batch.resized, strict=True):
        red_1SS[:, size.height :] = 0
        red_1SS[:, :, size.width :] = 0
    return torch.nn.functional.avg_pool2d(red_N1SS, 4)


class PredictorForReference:
    """What segment-anything's generator asks of its predictor, answered with a `FakeSam`'s masks."""

    def __init__(self, fake: FakeSam) -> None:
        from segment_anything.utils.transforms import ResizeLongestSide

        self.fake = fake
        self.image_encoder = SimpleNamespace(img_size=1024)
        self.transform = ResizeLongestSide(1024)
        self.model = self
        self.mask_threshold = 0.0
        self.device = torch.device("cpu")

    def set_image(self, pixels: NDArray[np.uint8]) -> None:
        self.size = Size(*pixels.shape[:2])

    def reset_image(self) -> None:
        del self.size

    def predict_torch(self, points: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor, Tensor]:
        from tests.reference import full_size_logits

        assert fit_longest_side(self.size, 1024)
        drawn = [self.fake.draw(xy, self.size) for xy in points[:, 0].numpy()]
        dense = torch.stack([full_size_logits(logits, self.size) for logits, _ in drawn])
        return dense, torch.stack([iou for _, iou in drawn]), dense


def label_with(sam: FakeSam, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Jobs of this process use the model for the default weights; the file that stands for those is put in `folder`."""
    file = folder / "weights.pt"
    file.write_bytes(b"stands for weights")
    known = replace(weights.KNOWN[weights.DEFAULT], sha256=weights.digest(file))
    monkeypatch.setitem(weights.KNOWN, weights.DEFAULT, known)
    monkeypatch.setattr(weights, "resolve", lambda _: file)
    monkeypatch.setattr(load, "load_sam", lambda *_, **__: sam)
