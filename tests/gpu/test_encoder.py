"""Image encoders on a GPU against the same on the CPU, at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import amg
from amg.sam.bfloat16 import round_vit
from amg.sam.config import VIT_B, VIT_T
from amg.sam.load import Uninitialised
from amg.sam.model import Sam, build_sam
from amg.sam.processor import to_batch
from amg.sam.vit import Vit
from amg.tensors import Batch
from tests.gpu.photos import lens_and_points, photos, pixels
from tests.sam_reference import assert_near, draw_weights

pytestmark = pytest.mark.gpu

PARITY = 1e-4
"""Of the embedding's range: float32 that is added up in another order."""
ROUNDED = 2e-2


def random_sam(name: str) -> Sam:
    with Uninitialised():
        sam = build_sam({"vit_b": VIT_B, "vit_t": VIT_T}[name])
    draw_weights(sam, seed=3)
    return sam


def batch_on(device: torch.device | str, count: int = 1) -> Batch:
    """The same photo so many times."""
    lens, _ = lens_and_points(photos()[0])
    return to_batch(pixels(photos()[0]), [lens.crop] * count, device)


@pytest.mark.parametrize("name", ["vit_b", "vit_t"])
@pytest.mark.parametrize("allowed", ["highest", "high"])
def test_an_embedding_is_that_of_the_cpu_whatever_the_process_allows(
    name: str, allowed: str, cuda: torch.device
) -> None:
    """With `high`, products of the process's own are TF32; ours are not."""
    sam = random_sam(name)
    wanted = sam.encode(batch_on("cpu")).features_NDGG
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(allowed)
    try:
        found = sam.to(cuda).encode(batch_on(cuda)).features_NDGG
    finally:
        torch.set_float32_matmul_precision(before)
    assert_near(found.cpu(), wanted, PARITY)


def test_tf32_would_be_seen(cuda: torch.device) -> None:
    """The bar above tells TF32 from float32: the encoder's own products without what keeps them exact."""
    sam = random_sam("vit_b")
    wanted = sam.encode(batch_on("cpu")).features_NDGG
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with torch.no_grad():
            found = sam.to(cuda).image_encoder(batch_on(cuda).pixels_N3SS)
    finally:
        torch.set_float32_matmul_precision(before)
    with pytest.raises(AssertionError, match="of the range"):
        assert_near(found.cpu(), wanted, PARITY)


@pytest.mark.parametrize("name", ["vit_b", "vit_t"])
def test_crops_of_a_batch_do_not_see_each_other(name: str, cuda: torch.device) -> None:
    sam = random_sam(name).to(cuda)
    alone = sam.encode(batch_on(cuda)).features_NDGG
    together = sam.encode(batch_on(cuda, 3)).features_NDGG
    for features_DGG in together:
        assert_near(features_DGG[None], alone, PARITY)


def test_a_rounded_vit_is_near_and_gives_float32(cuda: torch.device) -> None:
    sam = random_sam("vit_b").to(cuda)
    wanted = sam.encode(batch_on(cuda)).features_NDGG
    assert isinstance(sam.image_encoder, Vit)
    round_vit(sam.image_encoder)
    found = sam.encode(batch_on(cuda)).features_NDGG
    assert found.dtype == torch.float32
    assert 1e-4 < float((found - wanted).norm() / wanted.norm()) < ROUNDED


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ViT-B of random numbers, as a file."""
    path = tmp_path_factory.mktemp("weights") / "vit_b.pth"
    torch.save(random_sam("vit_b").state_dict(), path)
    return path


@pytest.mark.parametrize(("precision", "tolerance"), [("parity", 1e-5), ("fast", ROUNDED)])
@pytest.mark.parametrize("choice", [{"kernels": "triton"}, {"compiled": True}])
def test_the_kernel_and_compiled_blocks_give_what_plain_pytorch_gives(
    precision: Any, tolerance: float, choice: Any, weights: Path, cuda: torch.device
) -> None:
    plain, other = (amg.load_sam(weights, device=cuda, precision=precision, **more) for more in ({}, choice))
    wanted, found = (sam.encode(batch_on(cuda)).features_NDGG for sam in (plain, other))
    assert float((found - wanted).norm() / wanted.norm()) < tolerance


def test_fast_loads_with_fewer_bits_where_they_were_decided(cuda: torch.device) -> None:
    sam = amg.load_sam("mobile-sam", device=cuda, precision="fast")
    assert {parameter.dtype for parameter in sam.mask_decoder.parameters()} == {torch.float16}
    assert sam.encode(batch_on(cuda)).features_NDGG.dtype == torch.float32
