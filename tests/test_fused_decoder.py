"""The decoder in GPU kernels against the shared one; without a GPU Triton's interpreter runs the kernels."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import amg
from amg.geometry import Box, Crop, Size
from amg.kernels.gpu.decoder import Launch
from amg.sam.config import DecoderConfig
from amg.sam.decoder import MaskDecoder
from amg.sam.fused import can_fuse, decode_fused, in_type, usual_launch
from amg.sam.processor import to_batch
from amg.sam.shared import SharedImage, decode_shared, share
from amg.tensors import Workspace
from tests import parity, reference_amg
from tests.sam_reference import assert_near, draw_weights, pixels

pytest.importorskip("triton", reason="Triton is for Linux")

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SMALL = Launch(look_tile=16, draw_tile=16, span=32, warps=4, held=False, products="ieee")
"""Tiles and spans of which even a small grid has several."""


@pytest.fixture(autouse=True)
def without_gradients() -> Any:
    with torch.no_grad():
        yield


def small_decoder(channels: int = 64, heads: int = 8, masks: int = 3, depth: int = 2) -> MaskDecoder:
    config = DecoderConfig(heads=heads, mlp_width=96, iou_width=64, masks=masks, depth=depth)
    decoder = MaskDecoder(config, channels=channels).eval()
    draw_weights(decoder, seed=3)
    return decoder.to(DEVICE)


def shared_image(decoder: MaskDecoder, grid: int) -> SharedImage:
    weight = decoder.iou_token.weight
    maps = (pixels(1, weight.shape[1], grid, grid, seed=seed).to(weight) for seed in range(3))
    return share(decoder, *maps)


def prompts(count: int, tokens: int = 2, channels: int = 64) -> Tensor:
    return pixels(count, tokens, channels, seed=5).to(DEVICE)


def assert_like_shared(decoder: MaskDecoder, image: SharedImage, sparse_PKD: Tensor, **options: Any) -> None:
    logits_PMLL, iou_PM = decode_fused(decoder, image, sparse_PKD, Workspace(), **options)
    multimask = options.get("multimask", True)
    plain_PMLL, plain_PM = decode_shared(decoder, image, sparse_PKD, Workspace(), multimask=multimask)
    assert_near(logits_PMLL, plain_PMLL)
    assert_near(iou_PM, plain_PM)


@pytest.mark.parametrize(("grid", "count", "tokens"), [(8, 1, 2), (6, 3, 3), (10, 5, 2), (7, 2, 0)])
def test_the_kernels_give_the_shared_decoders_masks(grid: int, count: int, tokens: int) -> None:
    decoder = small_decoder()
    assert_like_shared(decoder, shared_image(decoder, grid), prompts(count, tokens))


@pytest.mark.parametrize(("grid", "held"), [(8, True), (9, True), (9, False)])
def test_tokens_cut_into_spans_and_tiles_give_the_same(grid: int, held: bool) -> None:
    """A grid of 9 ends with a span of 17 tokens: a whole tile and one of a single token."""
    decoder = small_decoder()
    assert_like_shared(decoder, shared_image(decoder, grid), prompts(3), launch=replace(SMALL, held=held))


@pytest.mark.parametrize(("channels", "heads", "masks"), [(128, 4, 3), (64, 2, 1), (64, 4, 7)])
def test_decoders_of_other_shapes_give_their_masks(channels: int, heads: int, masks: int) -> None:
    decoder = small_decoder(channels, heads, masks)
    assert can_fuse(decoder, 2)
    assert_like_shared(decoder, shared_image(decoder, 5), prompts(2, 2, channels))


def test_the_single_mask_is_drawn_as_well() -> None:
    decoder = small_decoder()
    assert_like_shared(decoder, shared_image(decoder, 6), prompts(2), multimask=False)


def test_scores_of_any_size_and_order_are_mixed_as_by_softmax() -> None:
    """Scores far beyond what exp can take, the largest in the first span, in the last, and between them."""
    decoder = small_decoder()
    for attention in (block.cross_attn_token_to_image for block in decoder.transformer.blocks):
        attention.q_proj.weight.mul_(60)
    decoder.transformer.final_attn_token_to_image.q_proj.weight.mul_(60)
    decoder.transformer.blocks[1].cross_attn_image_to_token.k_proj.weight.mul_(60)
    image, sparse_PKD = shared_image(decoder, 9), prompts(4)
    exact = copy.deepcopy(decoder).double()
    exact_image = shared_image(exact, 9)
    truth_PMLL, _ = decode_shared(exact, exact_image, sparse_PKD.double(), Workspace())
    plain_PMLL, _ = decode_shared(decoder, image, sparse_PKD, Workspace())
    fused_PMLL, _ = decode_fused(decoder, image, sparse_PKD, Workspace(), launch=SMALL)
    assert float((fused_PMLL - truth_PMLL).abs().max()) < 3 * float((plain_PMLL - truth_PMLL).abs().max()) + 1e-5


@pytest.mark.parametrize("needed", [Size(40, 23), Size(17, 40), Size(1, 1)])
def test_what_nobody_looks_at_is_not_drawn_and_the_rest_is_the_same(needed: Size) -> None:
    decoder = small_decoder()
    image, sparse_PKD, workspace = shared_image(decoder, 10), prompts(2), Workspace()
    whole_PMLL, _ = decode_fused(decoder, image, sparse_PKD, Workspace())
    left = workspace.like(whole_PMLL, "logits", *whole_PMLL.shape).fill_(torch.nan)
    part_PMLL, _ = decode_fused(decoder, image, sparse_PKD, workspace, needed=needed)
    assert part_PMLL.data_ptr() == left.data_ptr()
    height, width = (4 * -(-side // 4) for side in (needed.height, needed.width))
    assert torch.equal(part_PMLL[..., :height, :width], whole_PMLL[..., :height, :width])
    assert part_PMLL[..., height:, :].isnan().all() and part_PMLL[..., width:].isnan().all()


def test_prompts_of_many_tokens_and_deep_decoders_are_decoded_by_the_twin() -> None:
    decoder, deep = small_decoder(), small_decoder(depth=3)
    assert [can_fuse(decoder, tokens) for tokens in (0, 3, 4)] == [True, True, False]
    assert not can_fuse(deep, 2)
    assert not can_fuse(small_decoder(channels=96), 2)
    assert not can_fuse(small_decoder(channels=96, heads=6), 2)
    half = in_type(shared_image(decoder, 6), torch.float16)
    logits_PMLL, _ = decode_fused(decoder, half, prompts(2, 4), Workspace())
    assert logits_PMLL.dtype == torch.float32
    assert_near(logits_PMLL, decode_shared(decoder, shared_image(decoder, 6), prompts(2, 4), Workspace())[0], 5e-3)
    assert_like_shared(deep, shared_image(deep, 6), prompts(2))


def test_a_point_does_not_see_the_others_and_twice_is_the_same() -> None:
    decoder, workspace = small_decoder(), Workspace()
    image, sparse_PKD = shared_image(decoder, 6), prompts(3)
    whole_PMLL = decode_fused(decoder, image, sparse_PKD, workspace)[0].clone()
    assert torch.equal(decode_fused(decoder, image, sparse_PKD, workspace)[0], whole_PMLL)
    assert_near(decode_fused(decoder, image, sparse_PKD[1:2], workspace)[0], whole_PMLL[1:2])


class Largest(TorchDispatchMode):
    """Remembers the most bytes that any result of PyTorch had."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.size = max([self.size, *(x.nbytes for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_memory_holds_no_image_tokens_of_a_prompt() -> None:
    decoder, grid, count = small_decoder(), 12, 3
    image, sparse_PKD = shared_image(decoder, grid), prompts(count)
    with Largest() as largest:
        decode_fused(decoder, image, sparse_PKD, Workspace(), multimask=False)
    with Largest() as plain:
        decode_shared(decoder, image, sparse_PKD, Workspace(), multimask=False)
    tokens = count * grid**2 * 64 * 4
    assert largest.size < tokens <= plain.size


def rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(x).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)


def from_bfloat16(x: np.ndarray) -> np.ndarray:
    return torch.from_numpy(np.ascontiguousarray(x).view(np.int16)).view(torch.bfloat16).float().numpy()


def ten_bits(x: np.ndarray) -> np.ndarray:
    """float32 numbers rounded to TF32's."""
    return ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.fixture
def matrix_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter with a GPU's rounding: alone it multiplies bfloat16 by its bits, cuts where it should round to
    it, and takes tf32x3 for float32."""
    if DEVICE.type == "cuda":
        return
    from triton import language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    cast = builder.cast_impl

    def cast_impl(self: Any, source: Any, kind: Any) -> Any:
        if source.dtype.scalar == tl.float32 and kind.scalar == tl.bfloat16:
            return handle(to_bfloat16(source.data), tl.bfloat16)
        return cast(self, source, kind)

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, most_imprecise: int) -> Any:
        x, y = (
            from_bfloat16(of.data) if of.dtype.scalar == tl.bfloat16 else of.data.astype(np.float32) for of in (a, b)
        )
        if "TF32x3" in str(precision) and a.dtype.scalar == tl.float32:
            x_high, y_high = ten_bits(np.ascontiguousarray(x)), ten_bits(np.ascontiguousarray(y))
            x_low, y_low = ten_bits(x - x_high), ten_bits(y - y_high)
            return handle(x_low @ y_high + x_high @ y_low + x_high @ y_high + d.data, tl.float32)
        return handle(x @ y + d.data, tl.float32)

    monkeypatch.setattr(builder, "cast_impl", cast_impl)
    monkeypatch.setattr(builder, "create_dot", create_dot)


@pytest.mark.usefixtures("matrix_instructions")
def test_three_products_of_parts_are_near_enough_for_parity() -> None:
    decoder = small_decoder()
    assert_like_shared(decoder, shared_image(decoder, 6), prompts(3), products="tf32x3")


@pytest.mark.usefixtures("matrix_instructions")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float16, 2e-3), (torch.bfloat16, 1.5e-2)])
def test_in_two_bytes_the_kernels_are_nearer_to_float32_than_the_shared_decoder(
    dtype: torch.dtype, bound: float
) -> None:
    decoder = small_decoder()
    image, sparse_PKD = shared_image(decoder, 8), prompts(3)
    exact_PMLL, exact_PM = decode_shared(decoder, image, sparse_PKD, Workspace())
    logits_PMLL, iou_PM = decode_fused(decoder, in_type(image, dtype), sparse_PKD, Workspace())
    assert logits_PMLL.dtype == torch.float32
    assert_near(logits_PMLL, exact_PMLL, bound)
    assert_near(iou_PM, exact_PM, bound)
    half = copy.deepcopy(decoder).to(dtype)
    shared_PMLL, _ = decode_shared(half, shared_image(half, 8), sparse_PKD.to(dtype), Workspace())
    all_PMLL, _ = decode_fused(half, shared_image(half, 8), sparse_PKD.to(dtype), Workspace())
    ours, rounded, shared = (rms(each - exact_PMLL) for each in (logits_PMLL, all_PMLL, shared_PMLL))
    assert ours < 0.5 * shared  # the prompt tokens are in float32, which costs next to nothing
    assert rounded < 1.1 * shared  # their rounding is what counts


def test_with_real_weights_and_a_photo_the_masks_are_those_of_the_shared_decoder() -> None:
    """A corner of 16 by 16 tokens, where the published sizes of everything else hold."""
    sam = amg.load_sam(parity.find_weights(None), device=str(DEVICE))
    with PIL.Image.open(reference_amg.PHOTOS / "coffee.jpg") as photo:
        pixels_HWC = np.asarray(photo.convert("RGB"))
    crop = Crop(Box(0, 0, pixels_HWC.shape[1], pixels_HWC.shape[0]), layer=0, index=0)
    features_1DGG = sam.encode(to_batch(pixels_HWC, [crop])).features_NDGG
    corner = (..., slice(16), slice(16))
    _, no_mask_1DGG = sam.prompt_encoder()
    maps = (each[corner].contiguous() for each in (features_1DGG, sam.prompt_encoder.grid_encoding(), no_mask_1DGG))
    image = share(sam.mask_decoder, *maps)
    unit_P12 = torch.tensor([[[0.05, 0.1]], [[0.2, 0.15]]], device=DEVICE)
    labels_PK = torch.tensor([[1, -1]] * 2, device=DEVICE)
    sparse_P2D = sam.prompt_encoder.embed_points(unit_P12.repeat(1, 2, 1), labels_PK)
    assert_like_shared(sam.mask_decoder, image, sparse_P2D)


COMPILE = """
import sys, torch
from amg.kernels.gpu import look, upscale
from amg.sam import fused
from amg.sam.config import DecoderConfig
from amg.sam.decoder import MaskDecoder
from amg.sam.shared import share
from amg.tensors import Workspace
from tests.hopper import Compiled

looking, drawing = look._look, upscale._draw = Compiled(look._look), Compiled(upscale._draw)
plain = MaskDecoder(DecoderConfig(), channels=256).eval().requires_grad_(False)
image = share(plain, *(torch.zeros(1, 256, 64, 64) for _ in range(3)))
image = fused.in_type(image, getattr(torch, sys.argv[1]))
fused.decode_fused(plain, image, torch.zeros(1, 2, 256), Workspace(), products=sys.argv[2])
for built in (*looking.built, *drawing.built):
    print(built.metadata.shared, built.asm["ptx"].count("mma"), len(built.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "products"), [("bfloat16", "ieee"), ("float16", "ieee"), ("float32", "tf32x3")])
def test_the_kernels_compile_for_hopper(dtype: str, products: str, tmp_path: Path) -> None:
    """At the published sizes: with matrix instructions, and in the shared memory of a multiprocessor."""
    from tests.hopper import SHARED_MEMORY

    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE, dtype, products]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(built) == 3
    for shared, matrix_instructions, size in built:
        assert 0 < shared <= SHARED_MEMORY
        assert matrix_instructions > 0 and size > 0


def test_whole_tiles_make_a_span() -> None:
    assert usual_launch(torch.bfloat16).draw_tile >= usual_launch(torch.float32).draw_tile
    with pytest.raises(AssertionError, match="a span of 40 tokens, wanted whole tiles of 16"):
        replace(SMALL, span=40)
