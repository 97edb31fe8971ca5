import numpy as np
import pytest

from amg.geometry import Box, Size, fit_longest_side, plan_crops


def test_without_layers_the_only_crop_is_the_image() -> None:
    (crop,) = plan_crops(Size(400, 600), n_layers=0, overlap_ratio=512 / 1500)
    assert (crop.box, crop.layer, crop.index) == (Box(0, 0, 600, 400), 0, 0)


def test_crops_of_a_published_sa1b_image() -> None:
    """2000x1500 pixels, two layers: the `crop_box` values in the SA-1B file of sa_226381."""
    crops = plan_crops(Size(1500, 2000), n_layers=2, overlap_ratio=512 / 1500)
    assert [sum(c.layer == layer for c in crops) for layer in range(3)] == [1, 4, 16]
    first, second = [c.box for c in crops if c.layer == 1], [c.box for c in crops if c.layer == 2]
    assert first[0].size == Size(1006, 1256)
    assert (first[1].y0 - first[0].y0, first[2].x0 - first[0].x0) == (494, 744)
    assert second[5] == Box(436, 311, 436 + 692, 311 + 567)


@pytest.mark.parametrize("size", [Size(1, 1), Size(1, 7), Size(3, 10000), Size(2, 2), Size(999, 1000), Size(37, 41)])
def test_crops_agree_with_the_reference_where_it_gives_any(size: Size) -> None:
    from segment_anything.utils.amg import generate_crop_boxes

    theirs, layers = generate_crop_boxes((size.height, size.width), 2, 512 / 1500)
    kept, seen = [], set()
    for box, layer in zip(theirs, layers, strict=True):
        if box[0] < box[2] and box[1] < box[3] and tuple(box) not in seen:
            seen.add(tuple(box))
            kept.append((tuple(box), layer))
    ours = plan_crops(size, n_layers=2, overlap_ratio=512 / 1500)
    assert [((c.box.x0, c.box.y0, c.box.x1, c.box.y1), c.layer) for c in ours] == kept
    assert [c.index for c in ours] == list(range(len(ours)))


def test_longest_side_is_rounded_as_the_reference_rounds_and_never_to_nothing() -> None:
    from segment_anything.utils.transforms import ResizeLongestSide

    rng = np.random.default_rng(0)
    for height, width in rng.integers(8, 5000, (200, 2)).tolist():
        theirs = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
        ours = fit_longest_side(Size(height, width), 1024)
        assert (ours.height, ours.width) == tuple(max(1, side) for side in theirs)
    assert fit_longest_side(Size(3, 10000), 1024) == Size(1, 1024)
