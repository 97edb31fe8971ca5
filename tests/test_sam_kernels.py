"""A model whose prompts and attention are done by kernels for a GPU; without one Triton's interpreter runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from amg.config import load_config
from amg.errors import ConfigError
from amg.geometry import Box, Crop, Size
from amg.run import local
from amg.run.progress import Silent
from amg.sam import faster, load, model
from amg.sam.config import Architecture, DecoderConfig, VitConfig
from amg.sam.factored_image import FactoredImage
from amg.sam.fused import FusedImage
from amg.sam.load import load_sam, use_fewer_bits
from amg.sam.model import Sam, build_sam
from amg.tensors import Batch, Points
from tests import parity, reference_amg
from tests.sam_reference import assert_near, draw_weights, pixels

TINY = Architecture(
    "tiny",
    VitConfig(width=64, depth=2, heads=1, global_blocks=(1,), window=5),
    DecoderConfig(mlp_width=64, iou_width=16),
    channels=64,
    side=128,
    grid=8,
)
BATCH = Batch(pixels(1, 3, 128, 128), (Crop(Box(0, 0, 128, 96), 0, 0),), (Size(96, 128),))


def points() -> Points:
    xy_P2 = torch.tensor([[30.0, 40.0], [90.5, 12.0], [64.0, 90.0]], dtype=torch.float64)
    return Points(xy_P2, xy_P2, torch.arange(3, dtype=torch.int32))


def tiny(kernels: str) -> Sam:
    sam = build_sam(TINY)
    draw_weights(sam, seed=1)
    if kernels == "triton":
        faster.use_triton(sam.image_encoder)
        sam.kernels = "triton"
    return sam


def test_prompts_give_the_same_masks_by_kernels() -> None:
    plain, fused = tiny("torch"), tiny("triton")
    embedding = plain.encode(BATCH)
    needed = Size(24, 32)
    image = fused.prepare(fused.encode(BATCH), needed=needed)
    assert isinstance(image, FusedImage) and image.needed == needed
    ours = fused.decode(image, points())
    wanted = plain.decode(plain.prepare(embedding), points())
    assert_near(ours.logits_PMLL[..., :24, :32], wanted.logits_PMLL[..., :24, :32], 2e-5)
    assert_near(ours.iou_PM, wanted.iou_PM, 2e-5)


def test_prompts_of_many_tokens_need_no_kernels() -> None:
    sam = tiny("triton")
    assert not isinstance(sam.prepare(sam.encode(BATCH), tokens=9), FusedImage | FactoredImage)


def test_fewer_bits_are_those_of_the_image_tokens_alone() -> None:
    sam = tiny("triton")
    use_fewer_bits(sam, torch.device("cpu"))
    image = sam.prepare(sam.encode(BATCH))
    assert isinstance(image, FusedImage)
    assert image.shared.base_1ID.dtype == torch.float16
    assert {p.dtype for p in sam.mask_decoder.parameters()} == {torch.float32}
    exact = tiny("torch")
    wanted = exact.decode(exact.prepare(exact.encode(BATCH)), points())
    assert_near(sam.decode(image, points()).logits_PMLL, wanted.logits_PMLL, 0.05)


def test_kernels_are_refused_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ConfigError, match="the model is on cpu; use kernels 'torch'"):
        load_sam(parity.find_weights(None), kernels="triton")


def test_a_job_without_a_gpu_refuses_kernels_before_it_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    config = load_config(overrides={"model.kernels": "triton", "run.device": "cpu"})
    with pytest.raises(
        ConfigError, match=r"model\.kernels is triton and the job runs on cpu: .*use torch, or --device"
    ):
        local.run_local([str(reference_amg.PHOTOS)], str(tmp_path / "out"), config, observer=Silent())
    assert not (tmp_path / "out" / "_plan").exists()


def test_a_worker_opens_the_model_as_its_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is put back, whatever it was
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("SAM_AMG_CACHE", str(tmp_path))

    def opened(checkpoint: Path, **named: object) -> Sam:
        asked.update(named)
        return tiny("torch")

    monkeypatch.setattr(load, "load_sam", opened)
    config = load_config(overrides={"model.kernels": "triton", "model.compile": True, "run.threads": 1})
    local.open_label(tmp_path, config, "cpu")
    assert asked == {"device": "cpu", "precision": "parity", "kernels": "triton", "compiled": True}
    assert Path(local.os.environ["TORCHINDUCTOR_CACHE_DIR"]) == tmp_path / "compiled"


def test_compiled_blocks_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.nn.Module] = []
    monkeypatch.setattr(load, "compile_blocks", seen.append)
    sam = load_sam(parity.find_weights(None), compiled=True)
    assert seen == [sam.image_encoder]
    assert isinstance(sam, model.Sam)
