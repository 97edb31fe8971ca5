"""Encoders, prompt encoder and plain decoder against the original packages, all weights random."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amg.geometry import Box, Crop, Size
from amg.sam.config import (
    ARCHITECTURES,
    VIT_B,
    VIT_H,
    VIT_L,
    Architecture,
    DecoderConfig,
    TinyVitConfig,
    VitConfig,
)
from amg.sam.decoder import MaskDecoder
from amg.sam.model import build_sam
from amg.sam.prompt import PromptEncoder
from amg.sam.tinyvit import Shortened, TinyVit
from amg.sam.vit import Vit
from amg.tensors import Batch
from tests.sam_reference import assert_near, draw_weights, mobile_pair, mobile_sam, pixels, segment_anything


def reference_vit(config: VitConfig, side: int) -> Any:
    return segment_anything.modeling.ImageEncoderViT(
        img_size=side,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window,
        global_attn_indexes=config.global_blocks,
    )


def assert_same_features(config: VitConfig, *, side: int, images: int) -> None:
    theirs, ours = reference_vit(config, side).eval(), Vit(config, side=side, channels=256).eval()
    ours.load_state_dict(draw_weights(theirs, seed=config.width))
    x_N3SS = pixels(images, 3, side, side)
    with torch.no_grad():
        assert_near(ours(x_N3SS), theirs(x_N3SS))


@pytest.mark.parametrize("architecture", [VIT_B, VIT_L, VIT_H], ids=lambda a: a.name)
def test_vit_blocks_of_true_width_give_the_reference_features(architecture: Architecture) -> None:
    assert isinstance(architecture.encoder, VitConfig)
    config = replace(architecture.encoder, depth=3, global_blocks=(1,))
    assert_same_features(config, side=320, images=2)  # a grid of 20: windows of 14 are padded


@pytest.mark.parametrize("side", [512, pytest.param(1024, marks=pytest.mark.slow)])
def test_vit_b_at_full_depth_gives_the_reference_features(side: int) -> None:
    assert isinstance(VIT_B.encoder, VitConfig)
    assert_same_features(VIT_B.encoder, side=side, images=1)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", [VIT_L, VIT_H], ids=lambda architecture: architecture.name)
def test_vit_l_and_h_at_full_depth_and_side_give_the_reference_features(architecture: Architecture) -> None:
    assert isinstance(architecture.encoder, VitConfig)
    assert_same_features(architecture.encoder, side=1024, images=1)


def test_tinyvit_gives_the_reference_features() -> None:
    theirs, sam = mobile_pair()
    x_N3SS = pixels(1, 3, 1024, 1024)
    with torch.no_grad():
        assert_near(sam.image_encoder(x_N3SS), theirs.image_encoder(x_N3SS))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_padding_that_is_left_out_of_the_convolutions_is_put_in_again(blocks: int, stride: int) -> None:
    """For every size of a picture: the map of the whole square, and less than that computed where there is padding."""
    side = 128
    config = TinyVitConfig(widths=(8, 8), depths=(blocks, 1), heads=(1, 1), windows=(7, 7), strides=(stride,))
    encoder = TinyVit(config, channels=8).eval()
    draw_weights(encoder, seed=1)
    shorter = 0
    for covered in range(1, side + 1):
        x_N3SS = torch.zeros(1, 3, side, side)
        x_N3SS[:, :, :covered] = pixels(1, 3, covered, side, seed=covered)
        for size, given in ((Size(covered, side), x_N3SS), (Size(side, covered), x_N3SS.transpose(2, 3))):
            with torch.no_grad():
                assert_near(encoder._convolve_covered(given, size), encoder._convolve(given))
        shorter += Shortened.of(covered, side, blocks=blocks, stride=stride).pixels < side
    assert shorter > side // 2


@pytest.mark.parametrize("size", [Size(1024, 683), Size(768, 1024), Size(1024, 1)])
def test_tinyvit_gives_the_same_features_without_the_padding(size: Size) -> None:
    _, sam = mobile_pair()
    x_N3SS = torch.zeros(1, 3, 1024, 1024)
    x_N3SS[:, :, : size.height, : size.width] = pixels(1, 3, size.height, size.width)
    crop = Crop(Box(0, 0, size.width, size.height), layer=0, index=0)
    with torch.no_grad():
        assert_near(sam.encode(Batch(x_N3SS, (crop,), (size,))).features_NDGG, sam.image_encoder(x_N3SS))


@pytest.mark.parametrize("name", ["vit_t", "vit_b", "vit_l", "vit_h"])
def test_state_dict_has_the_keys_and_shapes_of_the_original(name: str) -> None:
    with torch.device("cpu" if name == "vit_t" else "meta"):
        theirs = (mobile_sam if name == "vit_t" else segment_anything).sam_model_registry[name]()
    with torch.device("meta"):
        ours = build_sam(ARCHITECTURES[name])
    assert shapes(ours) == shapes(theirs)


def shapes(module: nn.Module) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in module.state_dict().items()}


@cache
def prompt_encoders() -> tuple[Any, PromptEncoder]:
    theirs = segment_anything.modeling.PromptEncoder(
        embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
    )
    ours = PromptEncoder(channels=256, mask_channels=16, side=1024, grid=64)
    ours.load_state_dict(draw_weights(theirs, seed=2))
    return theirs, ours


@cache
def decoders() -> tuple[Any, MaskDecoder]:
    modeling = segment_anything.modeling
    transformer = modeling.TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8)
    theirs = modeling.MaskDecoder(transformer_dim=256, transformer=transformer).eval()
    ours = MaskDecoder(DecoderConfig(), channels=256).eval()
    ours.load_state_dict(draw_weights(theirs, seed=3))
    return theirs, ours


def prompts() -> dict[str, dict[str, Tensor]]:
    xy_352 = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(4)) * 1100 - 40
    labels_35 = torch.tensor([[1, 1, 0, 0, 1], [0, 1, -1, -1, -1], [-1, 0, 1, 0, -1]])
    boxes_34 = xy_352[:, :2].reshape(3, 4)
    masks_3 = pixels(3, 1, 256, 256, seed=5) * 8
    points = {"xy_PK2": xy_352, "labels_PK": labels_35}
    return {
        "points": points,
        "one point": {"xy_PK2": xy_352[:, :1], "labels_PK": labels_35[:, :1].abs()},
        "boxes": {"boxes_P4": boxes_34},
        "points and boxes": points | {"boxes_P4": boxes_34},
        "masks": {"masks_P1LL": masks_3},
        "points and masks": points | {"masks_P1LL": masks_3},
        "all": points | {"boxes_P4": boxes_34, "masks_P1LL": masks_3},
        "none": {},
    }


def embed(encoder: Any, prompt: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    points = (prompt["xy_PK2"], prompt["labels_PK"]) if "xy_PK2" in prompt else None
    return encoder(points=points, boxes=prompt.get("boxes_P4"), masks=prompt.get("masks_P1LL"))


@pytest.mark.parametrize("kind", prompts())
def test_prompt_encoder_gives_the_reference_embeddings(kind: str) -> None:
    theirs, ours = prompt_encoders()
    prompt = prompts()[kind]
    with torch.no_grad():
        sparse_PKD, dense_PDGG = embed(theirs, prompt)
        our_sparse_PKD, our_dense_PDGG = ours(**prompt)
        if sparse_PKD.numel():
            assert_near(our_sparse_PKD, sparse_PKD)
        assert our_sparse_PKD.shape == sparse_PKD.shape
        assert_near(our_dense_PDGG.expand_as(dense_PDGG), dense_PDGG)
        assert_near(ours.grid_encoding(), theirs.get_dense_pe())


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "single mask"])
@pytest.mark.parametrize("kind", ["points", "all", "none"])
def test_decoder_gives_the_reference_masks(kind: str, multimask: bool) -> None:
    theirs, ours = decoders()
    prompt_encoder, our_prompt_encoder = prompt_encoders()
    features_1DGG = pixels(1, 256, 64, 64, seed=6)
    with torch.no_grad():
        sparse_PKD, dense_PDGG = embed(prompt_encoder, prompts()[kind])
        logits_PMLL, iou_PM = theirs(
            features_1DGG, prompt_encoder.get_dense_pe(), sparse_PKD, dense_PDGG, multimask_output=multimask
        )
        our_logits_PMLL, our_iou_PM = ours(
            features_1DGG,
            our_prompt_encoder.grid_encoding(),
            *our_prompt_encoder(**prompts()[kind]),
            multimask=multimask,
        )
    assert_near(our_logits_PMLL, logits_PMLL)
    assert_near(our_iou_PM, iou_PM)


def test_gradients_reach_every_part() -> None:
    encoder = VitConfig(width=32, depth=2, heads=2, global_blocks=(1,), window=3)
    sam = build_sam(Architecture("tiny", encoder, DecoderConfig(mlp_width=64, iou_width=16), 32, 8, side=128, grid=8))
    draw_weights(sam, seed=7)
    features_1DGG = sam.image_encoder(pixels(1, 3, 128, 128))
    sparse_PKD, dense_PDGG = sam.prompt_encoder(torch.tensor([[[40.0, 60.0]]]), torch.tensor([[1]]))
    logits_PMLL, iou_PM = sam.mask_decoder(
        features_1DGG, sam.prompt_encoder.grid_encoding(), sparse_PKD, dense_PDGG, multimask=True
    )
    (logits_PMLL.square().mean() + iou_PM.sum()).backward()
    idle = {name.split(".", 3)[1] for name, p in sam.named_parameters() if p.grad is None or not p.grad.any()}
    assert idle <= {"mask_downscaling", "point_embeddings", "output_hypernetworks_mlps", "transformer"}, idle
    assert sam.image_encoder.patch_embed.proj.weight.grad.any()
