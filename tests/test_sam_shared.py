"""The fast decoder for many points against the plain one, and `Sam`'s own methods."""

from __future__ import annotations

import pytest
import torch

from amg.geometry import Box, Crop, Size
from amg.sam.config import VIT_T
from amg.sam.model import build_sam
from amg.tensors import Batch, Embedding, Points
from tests.sam_reference import assert_near, mobile_pair, pixels

CROP = Crop(Box(0, 0, 300, 200), layer=0, index=0)


def embedding(seed: int = 0) -> Embedding:
    return Embedding(pixels(1, 256, 64, 64, seed=seed), (CROP,), (Size(683, 1024),))


def points(count: int) -> Points:
    xy_P2 = torch.rand(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(8)) * 1024
    return Points(xy_P2, xy_P2 / 4, torch.arange(count, dtype=torch.int32))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_points_on_a_shared_image_give_the_plain_decoders_masks(count: int) -> None:
    _, sam = mobile_pair()
    masks = sam.decode(sam.prepare(embedding()), points(count))
    xy_P12, labels_P1 = points(count).xy_P2[:, None], torch.ones(count, 1, dtype=torch.int64)
    plain = sam.predict(embedding(), xy_PK2=xy_P12, labels_PK=labels_P1)
    assert masks.logits_PMLL.shape == (count, 3, 256, 256)
    assert_near(masks.logits_PMLL, plain.logits_PMLL)
    assert_near(masks.iou_PM, plain.iou_PM)


def test_a_point_does_not_see_the_others_of_its_chunk() -> None:
    _, sam = mobile_pair()
    shared = sam.prepare(embedding())
    whole = sam.decode(shared, points(4)).logits_PMLL.clone()  # the next decode writes to the same place
    parts = [sam.decode(shared, points(4)[span]).logits_PMLL.clone() for span in (slice(0, 1), slice(1, 4))]
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
