"""The exported files in ONNX Runtime: against the model, against the original package's own export, and refusals."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from segment_anything.utils.onnx import SamOnnxModel

from amg.cli.main import main
from amg.errors import ConfigError, OutputRefused, WeightsError
from amg.geometry import Box, Crop, Size, fit_longest_side
from amg.sam import onnx_check
from amg.sam.config import Architecture, DecoderConfig, VitConfig
from amg.sam.load import load_sam
from amg.sam.model import Sam, build_sam
from amg.sam.onnx import DECODER, ENCODER, OnnxFiles, export_onnx, refuse_taken
from amg.sam.onnx_check import compare, run
from amg.sam.predictor import Predictor
from amg.tensors import Embedding, to_host
from tests.parity import find_weights
from tests.reference_amg import PHOTOS, read_rgb
from tests.sam_reference import assert_near, draw_weights

SIDE, LOW_SIDE = 128, 32
SIZE = Size(61, 97)
ROUNDING = 1e-5
"""Of the range: the same steps, added up in another order."""


@pytest.fixture(scope="module")
def sam() -> Sam:
    encoder = VitConfig(width=32, depth=2, heads=2, global_blocks=(1,), window=3)
    tiny = Architecture("tiny", encoder, DecoderConfig(mlp_width=64, iou_width=16), 32, 8, side=SIDE, grid=8)
    model = build_sam(tiny)
    draw_weights(model, seed=3)
    return model.eval()


@pytest.fixture(scope="module")
def files(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> OnnxFiles:
    return export_onnx(sam, tmp_path_factory.mktemp("exported"))


@pytest.fixture(scope="module")
def embeddings(sam: Sam) -> torch.Tensor:
    with torch.no_grad():
        return sam.image_encoder(drawn(2, 3, SIDE, SIDE))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def decoder_inputs(
    embeddings: torch.Tensor, *, prompts: int, points: int, mask: bool, size: Size = SIZE, seed: int = 0
) -> dict[str, NDArray[np.float32]]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, 4, (prompts, points), generator=draw)
    labels[:, -1] = -1
    return {
        "image_embeddings": to_host(embeddings[:1]),
        "point_coords": to_host(torch.rand(prompts, points, 2, generator=draw) * SIDE),
        "point_labels": to_host(labels.float()),
        "mask_input": to_host(drawn(1, 1, LOW_SIDE, LOW_SIDE, seed=9)),
        "has_mask_input": np.full(1, mask, np.float32),
        "orig_im_size": np.array([size.height, size.width], np.float32),
    }


def wanted_of(sam: Sam, inputs: dict[str, NDArray[np.float32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """All four masks' logits and IoU by the model; its own closing point is the inputs' last."""
    given = {name: torch.from_numpy(array) for name, array in inputs.items()}
    whole = Crop(Box(0, 0, SIDE, SIDE), layer=0, index=0)
    embedding = Embedding(given["image_embeddings"], (whole,), (Size(SIDE, SIDE),))
    both = [
        sam.predict(
            embedding,
            xy_PK2=given["point_coords"][:, :-1],
            labels_PK=given["point_labels"][:, :-1].long(),
            masks_P1LL=given["mask_input"] if given["has_mask_input"] else None,
            multimask=multimask,
        )
        for multimask in (False, True)
    ]
    return torch.cat([b.logits_PMLL for b in both], 1), torch.cat([b.iou_PM for b in both], 1)


@pytest.mark.parametrize("images", [1, 3])
def test_the_encoder_gives_the_models_embeddings_for_any_number_of_images(
    sam: Sam, files: OnnxFiles, images: int
) -> None:
    pixels = drawn(images, 3, SIDE, SIDE, seed=images)
    with torch.no_grad():
        wanted = sam.image_encoder(pixels)
    found = run(files.encoder, {"pixel_values": to_host(pixels)})
    assert_near(torch.from_numpy(found["image_embeddings"]), wanted, ROUNDING)


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("prompts", "points"), [(1, 2), (1, 6), (5, 2), (4, 3)])
def test_the_decoder_gives_the_models_masks_for_any_number_of_prompts_and_points(
    sam: Sam, files: OnnxFiles, embeddings: torch.Tensor, prompts: int, points: int, mask: bool
) -> None:
    inputs = decoder_inputs(embeddings, prompts=prompts, points=points, mask=mask, seed=prompts)
    found = run(files.decoder, inputs)
    logits, iou = wanted_of(sam, inputs)
    assert list(found) == ["masks", "iou_predictions", "low_res_masks"]
    assert_near(torch.from_numpy(found["low_res_masks"]), logits, ROUNDING)
    assert_near(torch.from_numpy(found["iou_predictions"]), iou, ROUNDING)


@pytest.mark.parametrize("size", [Size(61, 97), Size(97, 61), Size(128, 128), Size(3, 700), Size(300, 1)], ids=str)
def test_masks_have_the_size_of_the_image_and_are_resized_as_the_predictor_does(
    sam: Sam, files: OnnxFiles, embeddings: torch.Tensor, size: Size
) -> None:
    found = run(files.decoder, decoder_inputs(embeddings, prompts=2, points=2, mask=False, size=size))
    predictor = Predictor(sam)
    whole = Crop(Box(0, 0, size.width, size.height), layer=0, index=0)
    predictor._embedding = Embedding(embeddings[:1], (whole,), (fit_longest_side(size, SIDE),))
    wanted = predictor._to_image(torch.from_numpy(found["low_res_masks"]))
    assert found["masks"].shape == (2, 4, size.height, size.width)
    assert_near(torch.from_numpy(found["masks"]), wanted, ROUNDING)


def test_the_decoder_has_the_inputs_and_outputs_of_the_originals_export(files: OnnxFiles) -> None:
    graph = onnx.load(files.decoder).graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "image_embeddings": [1, 32, 8, 8],
        "point_coords": ["prompts", "points", 2],
        "point_labels": ["prompts", "points"],
        "mask_input": [1, 1, LOW_SIDE, LOW_SIDE],
        "has_mask_input": [1],
        "orig_im_size": [2],
        "masks": ["prompts", 4, "height", "width"],
        "iou_predictions": ["prompts", 4],
        "low_res_masks": ["prompts", 4, LOW_SIDE, LOW_SIDE],
    }
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}


def test_the_files_say_what_they_are(files: OnnxFiles) -> None:
    for path in (files.encoder, files.decoder):
        model = onnx.load(path)
        said = {entry.key: entry.value for entry in model.metadata_props}
        assert said["architecture"] == "tiny"
        assert said["side"] == str(SIDE)
        assert said["pixel_mean"] == "[123.675, 116.28, 103.53]"
        assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 18)]


@pytest.fixture(scope="module")
def other_files(sam: Sam, tmp_path_factory: pytest.TempPathFactory) -> OnnxFiles:
    """With the best mask alone, other operators, and the encoder as if it were too large for one file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("amg.sam.onnx.LARGEST_FILE", 0)
        return export_onnx(sam, tmp_path_factory.mktemp("other"), best_mask=True, opset=21)


def test_numbers_of_a_large_model_lie_beside_its_file(
    sam: Sam, other_files: OnnxFiles, embeddings: torch.Tensor
) -> None:
    beside = other_files.encoder.with_name("image_encoder.onnx.data")
    assert beside.stat().st_size > other_files.encoder.stat().st_size / 10
    found = run(other_files.encoder, {"pixel_values": to_host(drawn(2, 3, SIDE, SIDE))})
    assert_near(torch.from_numpy(found["image_embeddings"]), embeddings, ROUNDING)
    assert onnx.load(other_files.decoder).opset_import[0].version == 21
    refuse_taken(other_files.encoder.parent, overwrite=True)


@pytest.mark.parametrize("points", [2, 3, 5])
def test_the_best_mask_is_the_one_the_original_would_choose(
    sam: Sam, other_files: OnnxFiles, embeddings: torch.Tensor, points: int
) -> None:
    inputs = decoder_inputs(embeddings, prompts=4, points=points, mask=False)
    found = run(other_files.decoder, inputs)
    logits, iou = wanted_of(sam, inputs)
    knows_the_count = SimpleNamespace(model=SimpleNamespace(mask_decoder=SimpleNamespace(num_mask_tokens=4)))
    select: Any = SamOnnxModel.select_masks
    wanted_logits, wanted_iou = select(knows_the_count, logits, iou, points)
    assert found["masks"].shape == (4, 1, SIZE.height, SIZE.width)
    assert_near(torch.from_numpy(found["low_res_masks"]), wanted_logits, ROUNDING)
    assert_near(torch.from_numpy(found["iou_predictions"]), wanted_iou, ROUNDING)


def test_files_and_model_are_compared(sam: Sam, files: OnnxFiles, other_files: OnnxFiles) -> None:
    assert 0 < compare(sam, files) < ROUNDING
    assert 0 < compare(sam, other_files) < ROUNDING


def test_a_file_of_another_model_is_found_out(sam: Sam, files: OnnxFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = VitConfig(width=32, depth=2, heads=2, global_blocks=(1,), window=3)
    other = build_sam(Architecture("tiny", encoder, DecoderConfig(mlp_width=64, iou_width=16), 32, 8, SIDE, 8))
    draw_weights(other, seed=4)
    with pytest.raises(WeightsError, match="give other results than the model"):
        compare(other.eval(), files)
    monkeypatch.setattr(onnx_check, "TOLERANCE", 0.0)
    with pytest.raises(WeightsError, match="of the range"):
        compare(sam, files)


@pytest.mark.slow
def test_mobilesam_exported_by_the_command_gives_the_predictors_masks_of_a_photo(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = find_weights(None)
    out = tmp_path / "mobile-sam"
    monkeypatch.setattr(sys, "argv", ["sam-amg", "weights", "export-onnx", str(weights), "-o", str(out)])
    assert main() == 0
    assert "differ from the model by" in capsys.readouterr().out
    predictor = Predictor(load_sam(weights))
    pixels = read_rgb(PHOTOS / "coffee.jpg")
    predictor.set_image(pixels)
    masks, iou, low_res = predictor.predict([[300, 200]], [1])
    x, y = 300 * 1024 / 600, 200 * 683 / 400  # the height is rounded to 683 when the width becomes 1024
    found = run(
        out / DECODER,
        {
            "image_embeddings": to_host(predictor.get_image_embedding()),
            "point_coords": np.array([[[x, y], [0, 0]]], np.float32),
            "point_labels": np.array([[1, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(pixels.shape[:2], np.float32),
        },
    )
    assert np.abs(found["low_res_masks"][0, 1:] - low_res).max() < 1e-3
    assert np.abs(found["iou_predictions"][0, 1:] - iou).max() < 1e-4
    assert ((found["masks"][0, 1:] > 0) != masks).sum() <= 3


# Refusals.


def test_a_model_that_cannot_be_exported_is_refused(sam: Sam, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="opset 9; wanted one of 18"):
        export_onnx(sam, tmp_path, opset=9)
    sam.train()
    try:
        with pytest.raises(ConfigError, match="a model in training mode"):
            export_onnx(sam, tmp_path)
    finally:
        sam.eval()
    half = build_sam(Architecture("tiny", VitConfig(8, 1, 2, (0,)), DecoderConfig(mlp_width=8), 16, 8, 128, 8)).half()
    with pytest.raises(ConfigError, match=r"torch\.float16"):
        export_onnx(half, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_what_to_install(
    sam: Sam, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"onnx.* is not installed; run: pip install 'sam-amg\[onnx\]'"):
        export_onnx(sam, tmp_path)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    refuse_taken(tmp_path, overwrite=False)
    refuse_taken(tmp_path / "new", overwrite=False)
    (tmp_path / ENCODER).write_bytes(b"")
    refuse_taken(tmp_path, overwrite=True)
    with pytest.raises(OutputRefused, match="holds an export already"):
        refuse_taken(tmp_path, overwrite=False)
    (tmp_path / "notes.txt").write_bytes(b"")
    with pytest.raises(OutputRefused, match=r"holds notes\.txt"):
        refuse_taken(tmp_path, overwrite=True)
    with pytest.raises(OutputRefused, match="is a file"):
        refuse_taken(tmp_path / "notes.txt", overwrite=True)


def test_the_command_refuses_a_taken_folder_before_it_loads_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", ["sam-amg", "weights", "export-onnx", "no-such-weights", "-o", str(tmp_path)])
    assert main() == 2
    assert "holds notes.txt" in capsys.readouterr().err
