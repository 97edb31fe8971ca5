"""Every Triton kernel, compiled and at full size, against the PyTorch that it stands for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from amg.kernels import torch_resample, torch_runs
from amg.sam.fused import decode_fused, in_type
from amg.sam.processor import to_batch
from amg.sam.prompt import FOREGROUND, close
from amg.sam.shared import SharedImage, decode_shared, share
from amg.sam.vit import relative_position_bias
from amg.tensors import Workspace
from tests.gpu.photos import lens_and_points, logits_on_cpu, on_cpu, photos, pixels
from tests.sam_reference import assert_near

pytestmark = pytest.mark.gpu


def random_attention(
    device: torch.device, dtype: torch.dtype, *, side: int, heads: int, channels: int
) -> tuple[Tensor, ...]:
    generator = torch.Generator(device).manual_seed(7)
    tokens = side * side
    shapes = [(2, heads, tokens, channels)] * 3 + [(2, heads, tokens, side)] * 2
    return tuple(torch.randn(shape, generator=generator, device=device, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]
)
@pytest.mark.parametrize(("side", "heads", "channels"), [(64, 12, 64), (64, 16, 80), (14, 16, 80), (37, 3, 64)])
def test_attention_is_that_of_float64(
    dtype: torch.dtype, tolerance: float, side: int, heads: int, channels: int, cuda: torch.device
) -> None:
    """The tolerance is of the range; operands are rounded alike, so only what is done with them differs."""
    from amg.kernels.gpu.attention import attend

    given = random_attention(cuda, dtype, side=side, heads=heads, channels=channels)
    found_BThc = attend(*given, scale=channels**-0.5)
    for n in range(2):  # one image at a time: biases of float64 are large
        q, k, v, rows, columns = (x[n : n + 1].double() for x in given)
        for head in range(heads):
            one = slice(head, head + 1)
            bias = relative_position_bias(rows[:, one], columns[:, one])
            wanted = F.scaled_dot_product_attention(
                q[:, one], k[:, one], v[:, one], attn_mask=bias, scale=channels**-0.5
            )
            assert_near(found_BThc[n, :, head].double(), wanted[0, 0], tolerance)


def prompts(device: torch.device, count: int) -> tuple[SharedImage, Tensor]:
    """MobileSAM's embedding of a photo, made ready, and points on it."""
    lens, points = lens_and_points(photos()[0], 32)
    sam = on_cpu()
    with torch.inference_mode():
        features_1DGG = sam.encode(to_batch(pixels(photos()[0]), [lens.crop])).features_NDGG
        _, no_mask_1DGG = sam.prompt_encoder()
        maps = (features_1DGG, sam.prompt_encoder.grid_encoding(), no_mask_1DGG)
        image = share(sam.mask_decoder, *maps)
        unit_P12 = sam.prompt_encoder.to_unit(points.xy_P2[:count, None])
        sparse_PKD = sam.prompt_encoder.embed_points(*close(unit_P12, torch.full((count, 1), FOREGROUND)))
    image = SharedImage(*(getattr(image, name).to(device) for name in SharedImage.__dataclass_fields__))
    return image, sparse_PKD.to(device)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
@pytest.mark.parametrize("count", [1, 64, 1024])
def test_the_fused_decoder_gives_the_shared_ones_masks(
    count: int, dtype: torch.dtype, tolerance: float, cuda: torch.device
) -> None:
    """The tolerance is of all numbers together: single ones of a rounded decoder may be further off."""
    decoder = copy.deepcopy(on_cpu().mask_decoder).to(cuda)
    image, sparse_PKD = prompts(cuda, count)
    with torch.inference_mode():
        logits_PMLL, iou_PM = decode_fused(decoder, in_type(image, dtype), sparse_PKD, Workspace())
        for start in range(0, count, 64):
            span = slice(start, start + 64)
            wanted_PMLL, wanted_PM = decode_shared(decoder, image, sparse_PKD[span], Workspace())
            assert distance(logits_PMLL[span], wanted_PMLL) < tolerance
            assert distance(iou_PM[span], wanted_PM) < tolerance


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


def scored(module: Any, logits_CLL: Tensor) -> tuple[Tensor, Tensor]:
    lens, _ = lens_and_points(photos()[-1])
    return module.score(logits_CLL, lens.x, lens.y, low=-1.0, middle=0.0, high=1.0)


def test_scores_are_the_twins_to_the_pixel(cuda: torch.device) -> None:
    from amg.kernels.gpu import score

    _, masks = logits_on_cpu(photos()[-1])
    logits_CLL = masks.logits_PMLL.flatten(0, 1)
    wanted = scored(torch_resample, logits_CLL)
    for found in (scored(score, logits_CLL.to(cuda)), scored(torch_resample, logits_CLL.to(cuda))):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))


def test_run_lengths_are_the_twins(cuda: torch.device) -> None:
    from amg.kernels.gpu import draw

    lens, masks = logits_on_cpu(photos()[-1])
    logits_CLL = masks.logits_PMLL.flatten(0, 1)
    _, box_C4 = scored(torch_resample, logits_CLL)
    there = {"threshold": 0.0, "corner": (0, 0), "image": (lens.image.height, lens.image.width)}
    wanted = torch_runs.run_lengths(logits_CLL, box_C4, lens.x, lens.y, **there)
    given = logits_CLL.to(cuda), box_C4.to(cuda), lens.x, lens.y
    for module in (draw, torch_runs):
        found = module.run_lengths(*given, **there)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(found, wanted, strict=True))
