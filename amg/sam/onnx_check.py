"""Exported files run in ONNX Runtime beside the model that they were made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from amg.errors import ConfigError, WeightsError
from amg.geometry import Box, Crop, Size, fit_longest_side
from amg.sam.model import Sam
from amg.sam.onnx import OnnxFiles
from amg.sam.prompt import FOREGROUND, NOT_A_POINT
from amg.tensors import Embedding, to_host

TOLERANCE = 1e-3
"""Of the range. Rounding in two runtimes stays under 1e-4; what a wrong operator does is far above."""
IMAGE = Size(480, 640)
POINTS = 3


def compare(sam: Sam, files: OnnxFiles) -> float:
    """The largest difference of any output from the model's, over that output's range; on noise and three points.

    Raises ConfigError where onnxruntime is not installed, WeightsError where the difference is above `TOLERANCE`.
    """
    draw = torch.Generator().manual_seed(0)
    pixels_13SS = torch.randn(1, 3, sam.side, sam.side, generator=draw)
    xy_P2 = torch.rand(POINTS, 2, generator=draw) * sam.side
    found = run(files.encoder, {"pixel_values": to_host(pixels_13SS)})
    found |= run(files.decoder, _inputs(sam, found["image_embeddings"], xy_P2))
    wanted = _of_model(sam, pixels_13SS, xy_P2)
    if found["iou_predictions"].shape[1] == 1:
        wanted = _best(wanted)
    difference = max(_difference(found, wanted, name) for name in wanted)
    if not difference <= TOLERANCE:
        raise WeightsError(
            f"{files.encoder.parent}: the exported files give other results than the model, by {difference:.1e} of the"
            " range; do not use them, and try another --opset or another version of torch, onnx and onnxscript"
        )
    return difference


def run(path: Path, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The outputs of a file by name, on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ConfigError("running ONNX files needs the package onnxruntime; run: pip install onnxruntime") from error
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    results: Any = session.run(names, dict(inputs))
    return dict(zip(names, results, strict=True))


def _inputs(sam: Sam, embeddings: NDArray[np.float32], xy_P2: torch.Tensor) -> dict[str, NDArray[np.float32]]:
    """Each point with the closing one."""
    low_side = 4 * sam.prompt_encoder.grid
    coords_P22 = F.pad(xy_P2[:, None], (0, 0, 0, 1))
    return {
        "image_embeddings": embeddings,
        "point_coords": to_host(coords_P22),
        "point_labels": np.tile(np.array([FOREGROUND, NOT_A_POINT], np.float32), (POINTS, 1)),
        "mask_input": np.zeros((1, 1, low_side, low_side), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
        "orig_im_size": np.array([IMAGE.height, IMAGE.width], np.float32),
    }


def _of_model(sam: Sam, pixels_13SS: torch.Tensor, xy_P2: torch.Tensor) -> dict[str, NDArray[Any]]:
    with torch.no_grad():
        seen = sam.image_encoder(pixels_13SS)
    features = seen if isinstance(seen, torch.Tensor) else seen.last_hidden_state
    whole, resized = Crop(Box(0, 0, IMAGE.width, IMAGE.height), layer=0, index=0), fit_longest_side(IMAGE, sam.side)
    labels_P1 = torch.full((POINTS, 1), FOREGROUND)
    both = [
        sam.predict(Embedding(features, (whole,), (resized,)), xy_PK2=xy_P2[:, None], labels_PK=labels_P1, multimask=m)
        for m in (False, True)
    ]
    low_res = torch.cat([each.logits_PMLL for each in both], dim=1)
    square = F.interpolate(low_res, (sam.side, sam.side), mode="bilinear", align_corners=False)
    cut = square[..., : resized.height, : resized.width]
    masks = F.interpolate(cut, (IMAGE.height, IMAGE.width), mode="bilinear", align_corners=False)
    iou = torch.cat([each.iou_PM for each in both], dim=1)
    named = {"image_embeddings": features, "masks": masks, "iou_predictions": iou, "low_res_masks": low_res}
    return {name: to_host(tensor) for name, tensor in named.items()}


def _best(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Of the three masks of each point the one with the largest predicted IoU."""
    best_P = 1 + outputs["iou_predictions"][:, 1:].argmax(1)
    chosen = {
        name: array[np.arange(POINTS), best_P][:, None] for name, array in outputs.items() if len(array) == POINTS
    }
    return outputs | chosen


def _difference(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]], name: str) -> float:
    assert found[name].shape == wanted[name].shape, f"{name}: {found[name].shape}, wanted {wanted[name].shape}"
    spread = float(wanted[name].max() - wanted[name].min())
    return float(np.abs(found[name] - wanted[name]).max()) / spread
