"""A model as two ONNX files, for ONNX Runtime and what builds on it: browsers, C++, programs in TensorFlow.

`image_encoder.onnx`
    pixel_values (N, 3, S, S) float32, normalised and padded  ->  image_embeddings (N, D, G, G)
`mask_decoder.onnx`, with the inputs and outputs of the original project's export (`SamOnnxModel`)
    image_embeddings (1, D, G, G); point_coords (P, K, 2) in the model frame; point_labels (P, K): 1, 0, -1 for no
    point, 2 and 3 for a box's corners; mask_input (1, 1, L, L) for all prompts, read where has_mask_input (1) is 1;
    orig_im_size (2), height and width; all float32
    ->  masks (P, M, H, W) logits; iou_predictions (P, M); low_res_masks (P, M, L, L)

The number of images N, of prompts P, of their points K is free. M is 4: the single mask, then the three of an
ambiguous prompt; or 1, chosen as the original does. A prompt without a box must end in a point with label -1.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from amg.errors import ConfigError, OutputRefused, StorageError
from amg.sam.model import Sam
from amg.sam.processor import PIXEL_MEAN, PIXEL_STD

ENCODER, DECODER = "image_encoder.onnx", "mask_decoder.onnx"
OPSETS = (18, 19, 20, 21, 22, 23)
"""Those that PyTorch's exporter writes and onnx's checker knows."""
LARGEST_FILE = 2**31 - 2**20
"""Bytes of weights in one file, by a limit of protobuf; those of larger models lie beside it."""

CLEAR = 1000.0
"""Added to the single mask's predicted IoU for each point above two and a half. Source: `SamOnnxModel.select_masks`."""


@dataclass(frozen=True, slots=True)
class OnnxFiles:
    encoder: Path
    decoder: Path


def export_onnx(sam: Sam, folder: str | Path, *, opset: int = 18, best_mask: bool = False) -> OnnxFiles:
    """Write both files into `folder`, over what an earlier export wrote there; `best_mask`: one mask for each prompt.

    One mask: for a single point and the closing one the best of three, otherwise the single one. Raises ConfigError
    where the model is not float32, in evaluation mode and on the CPU, or where onnx is not installed.
    """
    _refuse(sam, opset)
    require_onnx()
    refuse_taken(folder, overwrite=True)
    files = OnnxFiles(Path(folder) / ENCODER, Path(folder) / DECODER)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        _save_encoder(sam, files.encoder, opset)
        _save_decoder(sam, files.decoder, opset, best_mask=best_mask)
    except OSError as error:
        raise StorageError(f"cannot write into {folder}: {error.strerror or error}; give another folder") from error
    return files


def refuse_taken(folder: str | Path, *, overwrite: bool) -> None:
    """OutputRefused where `folder` is a file, holds anything but an export, or without `overwrite` an export."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise OutputRefused(f"{folder} is a file, the export makes a folder; give another --out")
    held = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    foreign = next((name for name in held if name not in (ENCODER, DECODER, f"{ENCODER}.data")), None)
    if foreign is not None:
        raise OutputRefused(f"{folder} holds {foreign}, which no export wrote; give another --out")
    if held and not overwrite:
        raise OutputRefused(f"{folder} holds an export already; give another --out, or --overwrite")


def require_onnx() -> None:
    """ConfigError where the packages of the extra `onnx` are not there."""
    try:
        import onnx
        import onnxscript
    except ImportError as error:
        raise ConfigError(
            f"exporting to ONNX needs the packages onnx and onnxscript, and {error.name} is not installed; run: pip"
            " install 'sam-amg[onnx]'"
        ) from error
    assert onnx and onnxscript


class Encoder(nn.Module):
    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = self.image_encoder(pixel_values)
        return seen if isinstance(seen, Tensor) else seen.last_hidden_state


class Decoder(nn.Module):
    """From an embedding and prompts to all four masks at the decoder's resolution, or to the best of them."""

    def __init__(self, sam: Sam, *, best_mask: bool) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.best_mask = best_mask

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        encoder = self.prompt_encoder
        sparse_PKD = encoder.embed_points(encoder.to_unit(point_coords), point_labels.to(torch.int64))
        no_mask_1D11 = encoder.no_mask_embed.weight[:, :, None, None]
        shown_1DGG = encoder.mask_downscaling(mask_input)
        dense_1DGG = no_mask_1D11 + has_mask_input[:, None, None, None] * (shown_1DGG - no_mask_1D11)
        logits_PMLL, iou_PM = self.mask_decoder(
            image_embeddings, encoder.grid_encoding(), sparse_PKD, dense_1DGG, multimask=None
        )
        if self.best_mask:
            clear_M = iou_PM.new_tensor([CLEAR, *[0.0] * (iou_PM.shape[1] - 1)])
            best_P = (iou_PM + (point_coords.shape[1] - 2.5) * clear_M).argmax(1)
            at_P111 = best_P[:, None, None, None].expand(-1, 1, *logits_PMLL.shape[2:])
            return iou_PM.gather(1, best_P[:, None]), logits_PMLL.gather(1, at_P111)
        return iou_PM, logits_PMLL


def _save_encoder(sam: Sam, path: Path, opset: int) -> None:
    import onnx

    pixels_N3SS = torch.zeros(1, 3, sam.side, sam.side)
    program = _program(
        Encoder(sam),
        {"pixel_values": pixels_N3SS},
        outputs=["image_embeddings"],
        free={"pixel_values": {0: "images"}},
        opset=opset,
    )
    _describe(program.model, sam)
    size = sum(tensor.numel() * tensor.element_size() for tensor in sam.image_encoder.state_dict().values())
    path.with_name(f"{path.name}.data").unlink(missing_ok=True)
    program.save(path, external_data=size > LARGEST_FILE)
    onnx.checker.check_model(path)


def _save_decoder(sam: Sam, path: Path, opset: int, *, best_mask: bool) -> None:
    import onnx

    from amg.sam.onnx_resize import add_resize

    channels, grid = sam.mask_decoder.iou_token.embedding_dim, sam.prompt_encoder.grid
    inputs = {
        "image_embeddings": torch.zeros(1, channels, grid, grid),
        "point_coords": torch.zeros(2, 3, 2),
        "point_labels": torch.ones(2, 3),
        "mask_input": torch.zeros(1, 1, 4 * grid, 4 * grid),
        "has_mask_input": torch.zeros(1),
    }
    axes = {0: "prompts", 1: "points"}
    program = _program(
        Decoder(sam, best_mask=best_mask),
        inputs,
        outputs=["iou_predictions", "low_res_masks"],
        free={"point_coords": axes, "point_labels": axes},
        opset=opset,
    )
    _describe(program.model, sam)
    model = program.model_proto
    add_resize(model, side=sam.side)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _program(
    module: nn.Module, inputs: dict[str, Tensor], *, outputs: list[str], free: dict[str, dict[int, str]], opset: int
) -> Any:
    """What PyTorch's exporter makes of a module; `free` names the dimensions that a caller may choose."""
    dynamic = {name: free.get(name, {}) for name in inputs}
    # With gradients the model takes its plain ways. The fused attention of a device reports strides that the exported
    # steps do not have.
    with warnings.catch_warnings(), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        warnings.simplefilter("ignore")  # of PyTorch about itself, differently in every version
        return torch.onnx.export(
            module.eval(),
            (),
            kwargs=inputs,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=dynamic,
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )


def _describe(model: Any, sam: Sam) -> None:
    """What a program that has only the file needs to know of it."""
    model.metadata_props.update(
        {
            "architecture": sam.name,
            "weights_sha256": sam.weights_digest or "",
            "side": str(sam.side),
            "pixel_mean": json.dumps(PIXEL_MEAN),
            "pixel_std": json.dumps(PIXEL_STD),
        }
    )


def _refuse(sam: Sam, opset: int) -> None:
    if opset not in OPSETS:
        raise ConfigError(f"opset {opset}; wanted one of {', '.join(map(str, OPSETS))}")
    weight = sam.mask_decoder.iou_token.weight
    if sam.training or weight.dtype != torch.float32 or weight.device.type != "cpu":
        mode = "training" if sam.training else "evaluation"
        raise ConfigError(
            f"a model in {mode} mode, {weight.dtype}, on {weight.device}; wanted evaluation mode, float32, on the CPU:"
            " model.eval().float().cpu()"
        )
