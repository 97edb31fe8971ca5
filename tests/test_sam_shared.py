"""The fast decoders for many points against the plain one, and `Sam`'s own methods."""

from __future__ import annotations

import pytest
import torch

from amg.geometry import Box, Crop, Size
from amg.sam import model
from amg.sam.config import VIT_T
from amg.sam.factored import decode_factored
from amg.sam.factored_image import FactoredImage, can_factor, factor
from amg.sam.model import build_sam
from amg.sam.shared import SharedImage
from amg.tensors import Batch, Embedding, Points, Workspace
from tests.sam_reference import assert_near, mobile_pair, pixels

CROP = Crop(Box(0, 0, 300, 200), layer=0, index=0)


def embedding(seed: int = 0) -> Embedding:
    return Embedding(pixels(1, 256, 64, 64, seed=seed), (CROP,), (Size(683, 1024),))


def points(count: int) -> Points:
    xy_P2 = torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * 1024
    return Points(xy_P2, xy_P2 / 4, torch.arange(count, dtype=torch.int32))


@pytest.mark.parametrize("count", [1, 2, 5, 11])
@pytest.mark.parametrize("form", [FactoredImage, SharedImage])
def test_points_on_a_prepared_image_give_the_plain_decoders_masks(
    form: type, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, sam = mobile_pair()
    if form is SharedImage:
        monkeypatch.setattr(model, "can_factor", lambda *_: False)
    prepared = sam.prepare(embedding())
    assert isinstance(prepared, form)
    masks = sam.decode(prepared, points(count))
    xy_P12, labels_P1 = points(count).xy_P2[:, None], torch.ones(count, 1, dtype=torch.int64)
    plain = sam.predict(embedding(), xy_PK2=xy_P12, labels_PK=labels_P1)
    assert masks.logits_PMLL.shape == (count, 3, 256, 256)
    assert_near(masks.logits_PMLL, plain.logits_PMLL)
    assert_near(masks.iou_PM, plain.iou_PM)


@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize("tokens", [0, 1, 3, 8, 9])
def test_prompts_of_any_number_of_tokens_give_the_plain_decoders_masks(tokens: int, multimask: bool) -> None:
    _, sam = mobile_pair()
    sparse_PKD = pixels(3, tokens, 256, seed=5)
    prepared = sam.prepare(embedding(), tokens=tokens)
    assert isinstance(prepared, FactoredImage if tokens <= 8 else SharedImage)
    logits_PMLL, iou_PM = sam.decode_tokens(prepared, sparse_PKD, multimask=multimask)
    _, dense_1DGG = sam.prompt_encoder()
    with torch.no_grad():
        plain_PMLL, plain_PM = sam.mask_decoder(
            embedding().features_NDGG, sam.prompt_encoder.grid_encoding(), sparse_PKD, dense_1DGG, multimask=multimask
        )
    assert_near(logits_PMLL, plain_PMLL)
    assert_near(iou_PM, plain_PM)


@pytest.mark.parametrize("grid", [8, 16, 32])
def test_small_images_are_decoded_in_factors_too(grid: int) -> None:
    _, sam = mobile_pair()
    features_1DGG, position_1DGG, no_mask_1DGG = (pixels(1, 256, grid, grid, seed=seed) for seed in range(3))
    sparse_PKD = pixels(5, 2, 256, seed=5)
    image = factor(sam.mask_decoder, features_1DGG, position_1DGG, no_mask_1DGG)
    with torch.no_grad():
        logits_PMLL, iou_PM = decode_factored(sam.mask_decoder, image, sparse_PKD, Workspace())
        plain_PMLL, plain_PM = sam.mask_decoder(features_1DGG, position_1DGG, sparse_PKD, no_mask_1DGG, multimask=True)
    assert_near(logits_PMLL, plain_PMLL)
    assert_near(iou_PM, plain_PM)


@pytest.mark.parametrize("needed", [Size(256, 172), Size(193, 256), Size(1, 256), Size(256, 3), Size(100, 60)])
def test_what_nobody_looks_at_is_not_drawn_and_the_rest_is_the_same(needed: Size) -> None:
    _, sam = mobile_pair()
    whole = sam.decode(sam.prepare(embedding()), points(5))
    workspace = Workspace()
    left = workspace.like(whole.logits_PMLL, "logits", *whole.logits_PMLL.shape).fill_(torch.nan)
    part = sam.decode(sam.prepare(embedding(), needed=needed), points(5), workspace)
    assert part.logits_PMLL.data_ptr() == left.data_ptr()
    there = (..., slice(needed.height), slice(needed.width))
    assert_near(part.logits_PMLL[there], whole.logits_PMLL[there])
    assert_near(part.iou_PM, whole.iou_PM)
    drawn = 8 * -(-min(needed.height, needed.width) // 8)  # two lines of tokens at a time
    assert part.logits_PMLL.isnan().float().mean() == 1 - drawn / 256


def test_an_image_that_cannot_be_cut_into_tiles_is_not_factored() -> None:
    _, sam = mobile_pair()
    assert can_factor(sam.mask_decoder, torch.zeros(1, 256, 64, 64), 2)
    assert not can_factor(sam.mask_decoder, torch.zeros(1, 256, 7, 7), 2)
    assert not can_factor(sam.mask_decoder, torch.zeros(1, 256, 64, 64, dtype=torch.float64), 2)
    assert not can_factor(sam.mask_decoder, torch.zeros(1, 256, 64, 64), 100)


def test_a_point_does_not_see_the_others_of_its_chunk() -> None:
    _, sam = mobile_pair()
    shared = sam.prepare(embedding())
    workspace = Workspace()
    whole = sam.decode(shared, points(4), workspace).logits_PMLL.clone()  # the next decode writes to the same place
    parts = [sam.decode(shared, points(4)[span], workspace).logits_PMLL.clone() for span in (slice(0, 1), slice(1, 4))]
    assert_near(torch.cat(parts), whole)


def test_decoding_twice_gives_the_same_bits() -> None:
    _, sam = mobile_pair()
    first, second = (sam.decode(sam.prepare(embedding()), points(3)).logits_PMLL for _ in range(2))
    assert torch.equal(first, second)


def test_a_crop_is_taken_from_a_batch_before_it_is_prepared() -> None:
    _, sam = mobile_pair()
    pair = Embedding(pixels(2, 256, 64, 64), (CROP, CROP), (Size(683, 1024),) * 2)
    with pytest.raises(AssertionError, match="2 crops"):
        sam.prepare(pair)
    assert sam.prepare(pair[1]).grid == 64


def test_encoding_keeps_crops_and_sizes() -> None:
    _, sam = mobile_pair()
    found = sam.encode(Batch(pixels(1, 3, 1024, 1024), (CROP,), (Size(683, 1024),)))
    assert found.features_NDGG.shape == (1, 256, 64, 64)
    assert found.crops == (CROP,)
    assert not found.features_NDGG.requires_grad


def test_a_built_model_tells_that_no_file_made_it() -> None:
    sam = build_sam(VIT_T)
    assert (sam.name, sam.weights_digest, sam.device.type, sam.side) == ("vit_t", None, "cpu", 1024)
    assert not sam.training
