"""Precision as a choice: float32 for the reference's masks, bfloat16 in the encoder where the processor has it."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from amg.config import load_config
from amg.errors import ConfigError, OutputRefused
from amg.geometry import Box, Crop, Size
from amg.run import probe
from amg.run.local import run_local
from amg.run.plan import read_plan
from amg.run.progress import Silent, Summary
from amg.sam import load
from amg.sam.bfloat16 import RoundedLinear, round_products, round_vit
from amg.sam.config import VIT_T, Architecture, DecoderConfig, VitConfig
from amg.sam.load import lacks_bfloat16, load_sam
from amg.sam.model import Sam, build_sam
from amg.sam.precision import in_words
from amg.sam.processor import to_batch
from amg.sam.vit import Vit
from amg.storage.url import open_store
from amg.tensors import Embedding, Points
from tests.fakes import DiscSam, label_with
from tests.sam_reference import draw_weights, mobile_pair

CPU = torch.device("cpu")
NO_REASON = "this processor is older than bfloat16"


def fast(sam: Sam) -> Sam:
    """The same weights with rounded products, which every processor can do at some speed."""
    other = build_sam(VIT_T)
    other.load_state_dict(sam.state_dict())
    round_products(other.image_encoder)
    return other


def embed(sam: Sam) -> Embedding:
    pixels_HWC = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    return sam.encode(to_batch(pixels_HWC, [Crop(Box(0, 0, 120, 90), 0, 0)]))


def weights_file(folder: Path) -> Path:
    path = folder / "weights.pth"
    torch.save(mobile_pair()[1].state_dict(), path)
    return path


def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "lacks_bfloat16", lambda device: NO_REASON)


def with_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "lacks_bfloat16", lambda device: None)


def test_fast_rounds_products_and_nothing_else() -> None:
    """bfloat16 has 8 bits; rounding whatever runs from layer to layer too would be several times worse."""
    _, sam = mobile_pair()
    whole = fast(sam)
    whole.image_encoder.to(torch.bfloat16)
    exact = embed(sam).features_NDGG
    rounded = embed(fast(sam)).features_NDGG
    with torch.autocast("cpu", torch.bfloat16):
        everything = embed(whole).features_NDGG
    assert rounded.dtype == exact.dtype == torch.float32
    error, error_everywhere = (float((each - exact).norm() / exact.norm()) for each in (rounded, everything))
    assert 1e-4 < error < 1e-2
    assert error < error_everywhere / 2


def test_the_weights_keep_their_keys() -> None:
    _, sam = mobile_pair()
    kept, rounded = sam.state_dict(), fast(sam).state_dict()
    assert list(rounded) == list(kept)
    lower = {key for key, tensor in rounded.items() if tensor.dtype == torch.bfloat16}
    linear = {
        f"image_encoder.{name}.weight" for name, m in sam.image_encoder.named_modules() if isinstance(m, nn.Linear)
    }
    assert lower == linear
    assert all(torch.equal(rounded[key], kept[key]) for key in kept if key not in lower)


@pytest.mark.parametrize("bias", [True, False])
def test_a_rounded_layer_gives_back_the_type_it_got(bias: bool) -> None:
    torch.manual_seed(0)
    layer, x_32 = nn.Linear(64, 16, bias=bias), torch.randn(3, 2, 64)
    for x in (x_32, x_32.double(), x_32.bfloat16()):
        found = RoundedLinear(layer)(x)
        assert found.dtype == x.dtype
        torch.testing.assert_close(found.float(), layer(x_32), atol=2e-2, rtol=2e-2)


def test_what_follows_the_encoder_is_the_same_arithmetic() -> None:
    _, sam = mobile_pair()
    embedding = embed(sam)
    points_PK2, labels_PK = torch.tensor([[[300.0, 200.0]]]), torch.ones(1, 1, dtype=torch.int64)
    both = [each.predict(embedding, xy_PK2=points_PK2, labels_PK=labels_PK) for each in (sam, fast(sam))]
    assert torch.equal(both[0].logits_PMLL, both[1].logits_PMLL)


def test_precision_is_decided_when_the_model_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights_file(tmp_path)
    exact = load_sam(path)
    with_bfloat16(monkeypatch)
    rounded = load_sam(path, precision="fast")
    kinds = [type(sam.image_encoder.layers[1].blocks[0].mlp.fc1) for sam in (exact, rounded)]
    assert [issubclass(kind, RoundedLinear) for kind in kinds] == [False, True]
    assert exact.precision.startswith("float32 on cpu: what the published masks were made with")
    assert rounded.precision.startswith(
        "bfloat16 in the linear layers of the image encoder on cpu, float32 elsewhere: "
    )


def test_the_words_say_what_a_gpu_does() -> None:
    assert in_words("parity", "cuda").startswith("float32 (and no TF32) on cuda: ")
    said = in_words("fast", "cuda")
    assert said.startswith(
        "bfloat16 in the image encoder (in a TinyViT its linear layers) and float16 in the mask decoder"
    )


def test_on_a_gpu_a_tinyvit_rounds_its_linear_layers_and_the_decoder_is_float16() -> None:
    sam = build_sam(VIT_T)
    sam.load_state_dict(mobile_pair()[1].state_dict())
    load.use_fewer_bits(sam, torch.device("cuda"))
    lower = {
        type(module)
        for module in sam.image_encoder.modules()
        if any(p.dtype != torch.float32 for p in module.parameters(recurse=False))
    }
    assert lower == {RoundedLinear}
    assert {parameter.dtype for parameter in sam.mask_decoder.parameters()} == {torch.float16}
    assert {parameter.dtype for parameter in sam.prompt_encoder.parameters()} == {torch.float32}


def small_vit() -> Sam:
    """A ViT with a global block and one with windows that do not divide its grid."""
    torch.manual_seed(0)
    encoder = VitConfig(width=32, depth=2, heads=2, global_blocks=(1,), window=3)
    sam = build_sam(Architecture("tiny", encoder, DecoderConfig(mlp_width=64, iou_width=16), 32, 8, side=128, grid=8))
    draw_weights(sam, seed=5)
    return sam


def test_a_rounded_vit_keeps_its_sum_its_norms_and_its_embedding_float32() -> None:
    exact, rounded = small_vit(), small_vit()
    round_vit(cast(Vit, rounded.image_encoder))
    assert list(rounded.state_dict()) == list(exact.state_dict())
    between: list[torch.dtype] = []
    inside: list[torch.dtype] = []
    for block in cast(Vit, rounded.image_encoder).blocks:
        block.register_forward_hook(lambda _module, _given, out: between.append(out.dtype))
        block.norm1.register_forward_hook(lambda _module, _given, out: between.append(out.dtype))
        block.attn.qkv.register_forward_hook(lambda _module, _given, out: inside.append(out.dtype))
        block.mlp.lin1.register_forward_hook(lambda _module, _given, out: inside.append(out.dtype))
    pixels_13SS = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, wanted = rounded.image_encoder(pixels_13SS), exact.image_encoder(pixels_13SS)
    assert set(between) == {torch.float32} and set(inside) == {torch.bfloat16}
    assert found.dtype == torch.float32
    error = float((found - wanted).norm() / wanted.norm())
    assert 1e-4 < error < 2e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_decoder_of_fewer_bits_is_given_them_and_gives_float32(dtype: torch.dtype) -> None:
    exact, lower = small_vit(), small_vit()
    lower.mask_decoder.to(dtype)
    crop = Crop(Box(0, 0, 128, 128), 0, 0)
    features = torch.randn(1, 32, 8, 8, generator=torch.Generator().manual_seed(2))
    embedding = Embedding(features, (crop,), (Size(128, 128),))
    xy_P2 = torch.tensor([[20.0, 100.0], [64.0, 3.0]], dtype=torch.float64)
    points = Points(xy_P2, xy_P2, torch.arange(2, dtype=torch.int32))
    several = [sam.decode(sam.prepare(embedding), points) for sam in (lower, exact)]
    asked = {"xy_PK2": xy_P2[:, None].float(), "labels_PK": torch.ones(2, 1, dtype=torch.int64)}
    single = [sam.predict(embedding, **asked) for sam in (lower, exact)]
    for found, wanted in (several, single):
        assert found.logits_PMLL.dtype == found.iou_PM.dtype == torch.float32
        error = float((found.logits_PMLL - wanted.logits_PMLL).norm() / wanted.logits_PMLL.norm())
        assert 0 < error < (5e-3 if dtype == torch.float16 else 4e-2)


def test_a_processor_without_bfloat16_is_told_before_a_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    without_bfloat16(monkeypatch)
    with pytest.raises(ConfigError, match=f"'fast' is bfloat16, but {NO_REASON}; use precision 'parity'"):
        load_sam("not-even-there.pth", precision="fast")


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="asks /proc/cpuinfo of x86-64")
def test_the_processor_has_bfloat16_where_its_flags_say_so() -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next(line for line in lines if line.startswith("flags")).split()
    has = "avx512_bf16" in flags or "amx_bf16" in flags
    assert (lacks_bfloat16(CPU) is None) == has


def test_avx512_alone_would_emulate_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_has_x86_bfloat16", lambda: False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert lacks_bfloat16(CPU) in (
        "this processor has neither AVX512_BF16 nor AMX",
        "PyTorch finds no bfloat16 for this processor",
    )
    assert "never measured" in str(lacks_bfloat16(torch.device("mps")))


def test_the_probe_says_whether_a_device_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    question = json.dumps(["cpu", None, "fast"])
    with_bfloat16(monkeypatch)
    assert json.loads(probe.main(question)) == {"devices": ["cpu"]}
    without_bfloat16(monkeypatch)
    said = json.loads(probe.main(question))
    assert said["error"] == "ConfigError"
    assert NO_REASON in said["text"]
    assert json.loads(probe.main(json.dumps(["cpu", None, "parity"]))) == {"devices": ["cpu"]}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    label_with(DiscSam(), monkeypatch, tmp_path)
    folder = tmp_path / "photos"
    folder.mkdir()
    PIL.Image.new("RGB", (40, 30)).save(folder / "a.png")
    return folder


def run(photos: Path, out: Path, precision: str) -> Summary:
    named: dict[str, Any] = {"generate.points_per_side": 2, "run.threads": 1, "run.device": "cpu"}
    config = load_config(overrides=named | {"model.precision": precision})
    return run_local([str(photos)], str(out), config, observer=Silent())


def test_a_job_says_its_arithmetic_and_refuses_the_other(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_bfloat16(monkeypatch)
    summary = run(photos, tmp_path / "out", "fast")
    assert "  arithmetic   bfloat16 in the linear layers of the image encoder on cpu" in summary.render()
    with pytest.raises(OutputRefused, match=r"model\.precision"):
        run(photos, tmp_path / "out", "parity")
    assert "  arithmetic   float32 on cpu" in run(photos, tmp_path / "other", "parity").render()


def test_a_job_that_cannot_be_done_leaves_no_plan(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_bfloat16(monkeypatch)
    with pytest.raises(ConfigError, match=NO_REASON):
        run(photos, tmp_path / "out", "fast")
    assert read_plan(open_store(str(tmp_path / "out"))) is None
