"""`SamImageProcessor` against the class of the same name in transformers: equal numbers, over what people pass in."""

from __future__ import annotations

import base64
import io
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from numpy.typing import NDArray

from amg import SamImageProcessor
from amg.errors import ConfigError, SourceError, WeightsError
from amg.sam import mask_postprocess
from tests.same import assert_same

SMALL = {"size": {"longest_edge": 96}, "pad_size": {"height": 96, "width": 96}}
"""Keeps the grid fast; the sizes of the published models have tests of their own."""


def pixels(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, dtype=np.uint8)


def picture(mode: str, height: int = 40, width: int = 61) -> PIL.Image.Image:
    bands = {"RGB": 3, "RGBA": 4, "LA": 2, "CMYK": 4}.get(mode)
    if bands:
        array = pixels(height, width, bands)
        return PIL.Image.merge(mode, [PIL.Image.fromarray(array[..., band]) for band in range(bands)])
    return PIL.Image.fromarray(pixels(height, width, 3)).convert(mode)


IMAGES: dict[str, Any] = {
    **{f"pil {mode}": picture(mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "1", "CMYK")},
    "uint8 HWC": pixels(40, 61, 3),
    "uint8 CHW": pixels(3, 40, 61),
    "uint8 one channel last": pixels(40, 61, 1),
    "uint8 one channel first": pixels(1, 40, 61),
    "uint8 four channels": pixels(40, 61, 4),
    "float32 HWC": pixels(40, 61, 3).astype(np.float32),
    "float64 CHW": pixels(3, 40, 61).astype(np.float64),
    "float16 HWC": pixels(40, 61, 3).astype(np.float16),
    "float32 four channels": pixels(40, 61, 4).astype(np.float32) / 255,
    "int32 HWC": pixels(40, 61, 3).astype(np.int32),
    "tensor uint8 CHW": torch.from_numpy(pixels(3, 40, 61)),
    "tensor float HWC": torch.from_numpy(pixels(40, 61, 3)).float(),
    "batch of arrays": pixels(2, 40, 61, 3),
    "batch of tensors": torch.from_numpy(pixels(2, 3, 40, 61)),
    "list of sizes": [pixels(40, 61, 3), pixels(70, 30, 3), pixels(96, 96, 3), pixels(200, 150, 3)],
    "list of PIL": [picture("RGB"), picture("RGB", 50, 20)],
    "tuple": (picture("RGB"), picture("L")),
    "nested": [[picture("RGB")], [picture("RGB", 50, 20), picture("RGB", 9, 90)]],
    "list of batches": [pixels(2, 40, 61, 3), pixels(1, 40, 61, 3)],
    "one pixel high": pixels(3, 1, 61),
}


@pytest.mark.parametrize("name", IMAGES)
def test_every_kind_of_image_gives_the_same_numbers(name: str) -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    assert_same(ours(IMAGES[name], return_tensors="pt"), theirs(IMAGES[name], return_tensors="pt"))


@pytest.mark.parametrize("size", [(480, 640), (1024, 1024), (1201, 811), (37, 53)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_the_published_size_gives_the_same_numbers(size: tuple[int, int], kind: Any) -> None:
    image = pixels(*size, 3).astype(kind)
    assert_same(
        SamImageProcessor()(image, return_tensors="pt"), transformers.SamImageProcessor()(image, return_tensors="pt")
    )


SWITCHES: list[dict[str, Any]] = [
    {"do_resize": False},
    {"do_rescale": False},
    {"do_normalize": False},
    {"do_normalize": False, "do_rescale": False},
    {"do_pad": False},
    {"do_resize": False, "do_pad": False, "do_normalize": False, "do_rescale": False},
    {"do_convert_rgb": False},
    {"pad_size": None},
    {"pad_size": {"height": 128, "width": 100}},
    {"pad_size": 128},
    {"size": {"longest_edge": 33}},
    {"size": {"longest_edge": 200}, "pad_size": {"height": 200, "width": 200}},
    {"resample": 0},
    {"resample": PIL.Image.Resampling.BICUBIC},
    {"rescale_factor": 1 / 127.5},
    {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]},
    {"image_mean": 0.5, "image_std": 0.25},
    {"image_mean": [0.5, 0.4, 0.3], "do_rescale": False},
    {"input_data_format": "channels_last"},
    {"do_resize": None, "do_pad": None},
    {"disable_grouping": False},
    {"device": "cpu"},
]


@pytest.mark.parametrize("settings", SWITCHES, ids=str)
@pytest.mark.parametrize("kind", [np.uint8, np.float32, np.float64])
def test_every_switch_gives_the_same_numbers(settings: dict[str, Any], kind: Any) -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    image = pixels(40, 61, 3).astype(kind)
    assert_same(ours(image, return_tensors="pt", **settings), theirs(image, return_tensors="pt", **settings))


@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
@pytest.mark.parametrize("images", ["uint8 HWC", "list of sizes", "list of PIL"])
def test_lists_arrays_and_tensors_come_back_as_asked(return_tensors: str | None, images: str) -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    assert_same(
        ours(IMAGES[images], return_tensors=return_tensors), theirs(IMAGES[images], return_tensors=return_tensors)
    )


def test_settings_of_the_processor_and_of_the_call_mean_the_same() -> None:
    settings = {"do_normalize": False, "size": {"longest_edge": 50}, "pad_size": {"height": 50, "width": 64}}
    image = pixels(40, 61, 3)
    by_call = SamImageProcessor()(image, return_tensors="pt", **settings)
    assert_same(SamImageProcessor(**settings)(image, return_tensors="pt"), by_call)
    processor = SamImageProcessor()
    processor.do_normalize, processor.size, processor.pad_size = False, {"longest_edge": 50}, [50, 64]
    assert_same(processor(image, return_tensors="pt"), by_call)


def test_images_of_unequal_size_stay_lists_without_padding() -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    assert_same(ours(IMAGES["list of sizes"], do_pad=False), theirs(IMAGES["list of sizes"], do_pad=False))
    with pytest.raises(ConfigError, match=r"pixel_values: shapes .*\(3, 63, 96\).* do not stack"):
        ours(IMAGES["list of sizes"], do_pad=False, return_tensors="pt")


MAPS: dict[str, Any] = {
    "array": pixels(40, 61),
    "int64": pixels(40, 61).astype(np.int64),
    "int32": pixels(40, 61).astype(np.int32),
    "bool": pixels(40, 61) > 100,
    "tensor": torch.from_numpy(pixels(40, 61)),
    "pil": picture("L"),
    "palette": picture("P"),
    "list": [pixels(40, 61)],
    "batch": pixels(1, 40, 61),
}


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("return_tensors", [None, "np", "pt"])
def test_segmentation_maps_become_labels_of_the_masks_size(name: str, return_tensors: str | None) -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    image = pixels(40, 61, 3)
    found = ours(image, MAPS[name], return_tensors=return_tensors)
    assert_same(found, theirs(image, MAPS[name], return_tensors=return_tensors))
    assert found["labels"][0].shape == (256, 256)


@pytest.mark.parametrize(
    "settings",
    [
        {"mask_size": {"longest_edge": 20}, "mask_pad_size": {"height": 32, "width": 24}},
        {"do_resize": False},
        {"do_pad": False},
        {"do_convert_rgb": False},
    ],
    ids=str,
)
def test_segmentation_maps_follow_the_switches(settings: dict[str, Any]) -> None:
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    images, maps = [pixels(40, 61, 3), pixels(50, 30, 3)], [pixels(40, 61), pixels(50, 30)]
    assert_same(ours(images, segmentation_maps=maps, **settings), theirs(images, segmentation_maps=maps, **settings))


def test_grey_arrays_of_two_dimensions_are_images_too() -> None:
    grey = pixels(40, 61)
    processor = SamImageProcessor(**SMALL)
    assert_same(processor(grey, return_tensors="pt"), processor(grey[..., None], return_tensors="pt"))
    assert_same(processor([grey], return_tensors="pt"), processor(grey[..., None], return_tensors="pt"))


def test_views_with_negative_strides_are_images_too() -> None:
    image, processor = pixels(40, 61, 3), SamImageProcessor(**SMALL)
    flipped = image[:, ::-1, ::-1]
    assert_same(processor(flipped, return_tensors="pt"), processor(flipped.copy(), return_tensors="pt"))


def test_an_image_as_long_as_thin_keeps_one_pixel() -> None:
    found = SamImageProcessor()(pixels(1, 3, 10000), return_tensors="pt")
    assert found["reshaped_input_sizes"].tolist() == [[1, 1024]]


def test_paths_addresses_of_data_and_pictures_are_the_same_image(tmp_path: Path) -> None:
    turned = picture("RGB")
    exif = turned.getexif()
    exif[0x0112] = 6  # turned by 90 degrees
    path = tmp_path / "turned.png"
    turned.save(path, exif=exif)
    data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    ours, theirs = SamImageProcessor(**SMALL), transformers.SamImageProcessor(**SMALL)
    upright = ours(turned.transpose(PIL.Image.Transpose.ROTATE_270), return_tensors="pt")
    for source in (path, str(path), [data], [str(path)]):
        assert_same(ours(source, return_tensors="pt"), upright)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs may decode with a part of torchvision that is to go
        assert_same(upright, theirs(str(path), return_tensors="pt"))


def test_an_address_is_fetched_with_its_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    buffer = io.BytesIO()
    picture("RGB").save(buffer, "png")
    asked = []

    class Answer:
        content = buffer.getvalue()

        def raise_for_status(self) -> None:
            pass

    def get(address: str, timeout: float | None) -> Answer:
        asked.append((address, timeout))
        return Answer()

    monkeypatch.setattr(requests, "get", get)
    processor = SamImageProcessor(**SMALL)
    found = processor("https://example.org/a.png", return_tensors="pt")
    assert_same(found, processor(picture("RGB"), return_tensors="pt"))
    assert asked == [("https://example.org/a.png", None)]


def test_what_is_no_file_or_no_picture_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    processor = SamImageProcessor()
    for source in ("missing.png", tmp_path / "text.png", "data:image/png;base64,%%%"):
        with pytest.raises(SourceError, match="is no picture that can be read"):
            processor(source)


nan = pixels(40, 61, 3).astype(np.float32)
nan[3, 4, 1] = np.nan

WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "nothing": ([], {}, "images: an empty list; wanted at least one picture"),
    "none": (None, {}, "images: a NoneType; wanted a PIL image"),
    "number": ([3], {}, r"images\[0\]: a int; wanted a PIL image"),
    "five dimensions": (np.zeros((1, 1, 3, 4, 5)), {}, r"images: shape \(1, 1, 3, 4, 5\); wanted one picture \(height"),
    "one dimension": (np.zeros(5), {}, r"images: shape \(5,\); wanted one picture"),
    "no pixel": (np.zeros((0, 4, 3)), {}, r"images: shape \(0, 4, 3\); wanted one picture"),
    "two channels": (pixels(40, 61, 2), {}, r"images\[0\]: shape \(40, 61, 2\); wanted 1, 3 or 4 channels"),
    "second of two": ([pixels(8, 6, 3), pixels(8, 6, 5)], {}, r"images\[1\]: shape \(8, 6, 5\); wanted 1, 3 or 4"),
    "not a number": (nan, {}, r"images\[0\]: torch.float32 of shape \(40, 61, 3\) with NaN"),
    "complex": (torch.zeros(3, 4, 6, dtype=torch.complex64), {}, r"images\[0\]: torch.complex64 of shape \(3, 4, 6\)"),
    "words": (np.full((4, 6, 3), "a"), {}, r"images\[0\]: <U1 of shape \(4, 6, 3\); wanted numbers"),
    "see-through beyond one": (np.full((8, 6, 4), 2.0), {}, r"images\[0\]: torch.float64 with transparency and values"),
    "grey without rgb": (picture("L"), {"do_convert_rgb": False}, "images: 1 channels and do_convert_rgb off"),
    "size": (
        pixels(8, 6, 3),
        {"size": {"height": 4, "width": 4}},
        r"size: \{'height': 4, 'width': 4\}; wanted \{'longe",
    ),
    "size as number": (pixels(8, 6, 3), {"size": 512}, "size: 512; wanted {'longest_edge': pixels}"),
    "size none": (pixels(8, 6, 3), {"size": None}, "size: None; wanted"),
    "pad size": (pixels(8, 6, 3), {"pad_size": {"height": 4}}, r"pad_size: \{'height': 4\}; wanted"),
    "pad too small": (pixels(8, 6, 3), {"pad_size": 5}, "pad_size: 5 x 5 for a picture of 1024 x 768; wanted at least"),
    "switch": (pixels(8, 6, 3), {"do_pad": "yes"}, "do_pad: 'yes'; wanted True or False"),
    "mean": (pixels(8, 6, 3), {"image_mean": [1, 2]}, r"image_mean: \[1, 2\]; wanted three numbers"),
    "std": (pixels(8, 6, 3), {"image_std": [1, 0, 1]}, r"image_std: \[1, 0, 1\]; wanted no zero"),
    "factor": (pixels(8, 6, 3), {"rescale_factor": None}, "rescale_factor: None; do_rescale wants a number"),
    "filter": (pixels(8, 6, 3), {"resample": 7}, "resample: 7; wanted 0"),
    "tensors": (pixels(8, 6, 3), {"return_tensors": "tf"}, "return_tensors: 'tf'; wanted 'pt'"),
    "layout": (pixels(8, 6, 3), {"input_data_format": "HWC"}, "input_data_format: 'HWC'; wanted 'channels_first'"),
    "unknown": (pixels(8, 6, 3), {"do_resiz": True}, "there is no setting 'do_resiz'; did you mean 'do_resize'"),
    "crop": (pixels(8, 6, 3), {"do_center_crop": True}, "there is no setting 'do_center_crop'"),
    "map too many": (pixels(8, 6, 3), {"segmentation_maps": pixels(2, 8, 6)}, "segmentation_maps: 2 maps for 1 images"),
    "map nothing": (pixels(8, 6, 3), {"segmentation_maps": []}, "segmentation_maps: an empty list"),
    "map shape": (pixels(8, 6, 3), {"segmentation_maps": np.zeros(4)}, r"segmentation_maps: shape \(4,\); wanted one"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_named_with_what_was_wanted(name: str) -> None:
    image, settings, message = WRONG[name]
    with pytest.raises(ConfigError, match=message.replace("{", r"\{").replace(r"\\{", r"\{")):
        SamImageProcessor()(image, **settings)


def test_a_shape_that_may_be_read_two_ways_is_read_as_there_with_a_warning() -> None:
    theirs = transformers.SamImageProcessor(**SMALL)(pixels(3, 50, 3), return_tensors="pt")
    with pytest.warns(UserWarning, match=r"images\[0\]: shape \(3, 50, 3\) has channels first or last"):
        assert_same(SamImageProcessor(**SMALL)(pixels(3, 50, 3), return_tensors="pt"), theirs)


def test_old_and_new_folders_are_read(tmp_path: Path) -> None:
    theirs = transformers.SamImageProcessor(
        do_normalize=False, size={"longest_edge": 77}, pad_size={"height": 80, "width": 81}, mask_pad_size=[30, 31]
    )
    theirs.save_pretrained(tmp_path / "old")
    transformers.SamProcessor(theirs).save_pretrained(tmp_path / "new")
    image = pixels(40, 61, 3)
    for source in (tmp_path / "old", str(tmp_path / "new"), tmp_path / "old" / "preprocessor_config.json"):
        ours = SamImageProcessor.from_pretrained(source)
        assert ours.to_dict() == json.loads(theirs.to_json_string())
        assert_same(ours(image, return_tensors="pt"), theirs(image, return_tensors="pt"))
    assert SamImageProcessor.from_pretrained(tmp_path, subfolder="old").size == {"longest_edge": 77}


def test_what_is_saved_transformers_reads(tmp_path: Path) -> None:
    ours = SamImageProcessor(do_rescale=False, image_mean=[1.0, 2.0, 3.0], resample=3, **SMALL)
    (path,) = ours.save_pretrained(tmp_path)
    assert Path(path).name == "preprocessor_config.json"
    theirs = transformers.SamImageProcessor.from_pretrained(tmp_path)
    assert json.loads(theirs.to_json_string()) == ours.to_dict()
    assert_same(ours(pixels(40, 61, 3), return_tensors="pt"), theirs(pixels(40, 61, 3), return_tensors="pt"))


def test_the_new_layout_wins_over_the_old(tmp_path: Path) -> None:
    SamImageProcessor(do_pad=False).save_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "SamProcessor"}))
    assert SamImageProcessor.from_pretrained(tmp_path).do_pad is False
    inner = SamImageProcessor(do_normalize=False).to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner}))
    read = SamImageProcessor.from_pretrained(tmp_path)
    assert read.do_pad is True and read.do_normalize is False


def test_settings_given_by_name_win_over_the_folders(tmp_path: Path) -> None:
    SamImageProcessor(do_pad=False).save_pretrained(tmp_path)
    assert SamImageProcessor.from_pretrained(tmp_path, do_pad=True, do_normalize=False).to_dict() == (
        SamImageProcessor(do_normalize=False).to_dict()
    )
    with pytest.raises(ConfigError, match="there is no setting 'do_padd'"):
        SamImageProcessor.from_pretrained(tmp_path, do_padd=True)


def test_unknown_settings_of_a_folder_are_kept(tmp_path: Path) -> None:
    written = {"do_pad": False, "image_processor_type": "SamImageProcessorFast", "new_thing": {"a": [1]}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(written))
    read = SamImageProcessor.from_pretrained(tmp_path)
    assert read.to_dict() == {**SamImageProcessor(do_pad=False).to_dict(), "new_thing": {"a": [1]}}


def test_our_own_weights_have_the_defaults() -> None:
    assert SamImageProcessor.from_pretrained("mobile-sam").to_dict() == SamImageProcessor().to_dict()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"image_processor_type": "CLIPImageProcessor"},
            "is for CLIPImageProcessor; wanted the settings of a SamImage",
        ),
        ({"size": {"shortest_edge": 4}}, "size: {'shortest_edge': 4}; wanted"),
        ([1], "holds a list; wanted an object"),
    ],
)
def test_settings_of_another_processor_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=message):
        SamImageProcessor.from_pretrained(tmp_path)


def test_a_folder_without_settings_and_a_damaged_file_are_said(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has neither processor_config.json nor preprocessor_config.json"):
        SamImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ConfigError, match="is no JSON"):
        SamImageProcessor.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="is a file; wanted a folder"):
        SamImageProcessor().save_pretrained(tmp_path / "preprocessor_config.json")


LOGITS = torch.randn(2, 3, 2, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("sizes", ["tensor", "array", "list", "tuples of tensors"])
@pytest.mark.parametrize("settings", [{}, {"binarize": False}, {"mask_threshold": 0.7}, {"pad_size": 80}], ids=str)
def test_masks_of_the_picture_are_the_same(sizes: str, settings: dict[str, Any]) -> None:
    original, resized = [[40, 61], [55, 20]], [[31, 48], [48, 17]]
    kinds: dict[str, Any] = {
        "tensor": torch.tensor,
        "array": np.array,
        "list": lambda rows: rows,
        "tuples of tensors": lambda rows: [tuple(torch.tensor(row)) for row in rows],
    }
    ours = SamImageProcessor(pad_size=48)
    theirs = transformers.SamImageProcessor(pad_size=48)
    square = {"pad_size": {"height": 80, "width": 80}} if "pad_size" in settings else {}
    found = ours.post_process_masks(LOGITS, kinds[sizes](original), kinds[sizes](resized), **settings)
    wanted = theirs.post_process_masks(LOGITS, original, resized, **(settings | square))
    assert_same(found, wanted)
    assert [tuple(mask.shape) for mask in found] == [(3, 2, 40, 61), (3, 2, 55, 20)]


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.bfloat16])
def test_masks_keep_the_precision_of_the_logits(kind: torch.dtype) -> None:
    theirs = transformers.SamImageProcessor().post_process_masks(LOGITS.to(kind), [[40, 61]] * 2, [[672, 1024]] * 2)
    assert_same(SamImageProcessor().post_process_masks(LOGITS.to(kind), [[40, 61]] * 2, [[672, 1024]] * 2), theirs)


def test_masks_come_as_arrays_and_lists_too_and_are_left_as_they_are() -> None:
    ours = SamImageProcessor()
    wanted = ours.post_process_masks(LOGITS, [[40, 61]] * 2, [[672, 1024]] * 2)
    given: list[Any] = [LOGITS[0].numpy(), LOGITS[1]]
    assert_same(ours.post_process_masks(given, [[40, 61]] * 2, [[672, 1024]] * 2), wanted)
    assert isinstance(given[0], np.ndarray)
    assert_same(ours.post_process_masks(LOGITS.numpy(), [[40, 61]] * 2, [[672, 1024]] * 2), wanted)


@pytest.mark.parametrize(
    ("masks", "original", "resized", "message"),
    [
        (LOGITS, [[40, 61]], [[672, 1024]] * 2, "masks of 2 images, original_sizes of 1, reshaped_input_sizes of 2"),
        (
            LOGITS[0],
            [[40, 61]] * 3,
            [[672, 1024]] * 3,
            r"masks\[0\]: torch.float32 of shape \(2, 16, 16\); wanted logits",
        ),
        (
            LOGITS > 0,
            [[40, 61]] * 2,
            [[672, 1024]] * 2,
            r"masks\[0\]: torch.bool of shape \(3, 2, 16, 16\); wanted log",
        ),
        (["a"], [[40, 61]], [[672, 1024]], r"masks\[0\]: a str; wanted a tensor"),
        (
            LOGITS,
            [40, 61],
            [[672, 1024]] * 2,
            r"original_sizes: shape \(2,\); wanted whole numbers of shape \(images, 2\)",
        ),
        (LOGITS, [[40, 61]] * 2, [[6.5, 10.0]] * 2, r"reshaped_input_sizes: shape \(2, 2\); wanted whole numbers"),
        (LOGITS, [[0, 61]] * 2, [[672, 1024]] * 2, "original_sizes: shape"),
        (
            LOGITS,
            [[40, 61]] * 2,
            [[672, 1025]] * 2,
            r"reshaped_input_sizes\[0\]: 672 x 1025 in a square of 1024 x 1024",
        ),
    ],
)
def test_wrong_masks_and_sizes_are_named(masks: Any, original: Any, resized: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamImageProcessor().post_process_masks(masks, original, resized)


@pytest.mark.parametrize("size", [(40, 61), (70, 33), (128, 128)])
@pytest.mark.parametrize("layers", [0, 1, 2])
def test_crop_boxes_and_their_points_are_the_same(size: tuple[int, int], layers: int) -> None:
    image = pixels(*size, 3)
    found = SamImageProcessor().generate_crop_boxes(image, 1024, layers, 0.3, points_per_crop=7)
    assert_same(
        found, transformers.SamImageProcessor().generate_crop_boxes(image, 1024, layers, 0.3, points_per_crop=7)
    )


def test_crop_boxes_take_pil_images_and_the_defaults() -> None:
    found = SamImageProcessor().generate_crop_boxes(picture("RGB"), 1024)
    assert_same(found, transformers.SamImageProcessor().generate_crop_boxes(picture("RGB"), 1024))


def test_crop_boxes_of_layers_with_other_grids_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"crop_n_points_downscale_factor 2 give grids of \[32, 16\] points a side"):
        SamImageProcessor().generate_crop_boxes(picture("RGB"), 1024, 1, crop_n_points_downscale_factor=2)
    with pytest.raises(ConfigError, match="image: 2 pictures; wanted one"):
        SamImageProcessor().generate_crop_boxes([picture("RGB")] * 2, 1024)


def blobs(n: int, m: int, height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of soft discs, some over the edge and some empty, and random scores."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres, radii = rng.uniform(0, 1, (n * m, 2)) * [height, width], rng.uniform(-3, 25, n * m)
    distance = np.hypot(y - centres[:, :1, None], x - centres[:, 1:, None])
    logits = (radii[:, None, None] - distance) * rng.choice([0.05, 0.5, 5.0], (n * m, 1, 1))
    scores = torch.from_numpy(rng.uniform(0.7, 1, (n, m)).astype(np.float32))
    return torch.from_numpy(logits.astype(np.float32)).reshape(n, m, height, width), scores


@pytest.mark.parametrize("crop", [(0, 0, 90, 80), (10, 0, 90, 60), (30, 25, 75, 80)])
@pytest.mark.parametrize(
    "thresholds",
    [
        {},
        {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.9},
        {"pred_iou_thresh": 0.75, "stability_score_thresh": 0.0},
        {"stability_score_thresh": 0.6, "mask_threshold": 0.5, "stability_score_offset": 2},
    ],
    ids=str,
)
def test_filtering_keeps_the_same_masks(crop: tuple[int, int, int, int], thresholds: dict[str, float]) -> None:
    x0, y0, x1, y1 = crop
    masks, scores = blobs(40, 3, y1 - y0, x1 - x0, seed=x0)
    box = torch.tensor(crop, dtype=torch.float32)
    found = SamImageProcessor().filter_masks(masks, scores, (80, 90), box, **thresholds)
    wanted = transformers.SamImageProcessor().filter_masks(masks, scores, (80, 90), box, **thresholds)
    assert_same(found, wanted)
    assert 0 < len(found[0]) < 120


def test_filtering_may_leave_nothing() -> None:
    masks, scores = blobs(4, 3, 80, 90, seed=0)
    found = SamImageProcessor().filter_masks(masks, scores, (80, 90), (0, 0, 90, 80), pred_iou_thresh=1.0)
    assert found[0] == [] and found[1].shape == (0,) and found[2].shape == (0, 4)


def test_filtering_says_which_shapes_do_not_fit() -> None:
    masks, scores = blobs(4, 3, 80, 90, seed=0)
    processor = SamImageProcessor()
    with pytest.raises(ConfigError, match=r"masks: shape \(4, 3, 80, 90\), iou_scores: shape \(4, 2\); wanted"):
        processor.filter_masks(masks, scores[:, :2], (80, 90), (0, 0, 90, 80))
    with pytest.raises(ConfigError, match="masks: 80 x 90 for a cropped_box_image of 60 x 90"):
        processor.filter_masks(masks, scores, (80, 90), (0, 0, 90, 60))


@pytest.mark.parametrize("threshold", [0.3, 0.7, 1.0])
def test_removing_doubles_keeps_the_same_masks(threshold: float) -> None:
    masks, scores = blobs(40, 3, 80, 90, seed=3)
    theirs, ours = transformers.SamImageProcessor(), SamImageProcessor()
    filtered = ours.filter_masks(masks, scores, (80, 90), (0, 0, 90, 80), 0.75, 0.5)
    found = ours.post_process_for_mask_generation(*filtered, threshold)
    assert_same(found, theirs.post_process_for_mask_generation(*filtered, threshold))
    assert threshold == 1.0 or 0 < len(found[0]) < len(filtered[0])
    with pytest.raises(ConfigError, match="all_masks: 0, all_scores"):
        ours.post_process_for_mask_generation([], *filtered[1:], threshold)


def test_run_lengths_of_full_empty_and_mixed_masks_are_known() -> None:
    full, empty, mixed = (
        torch.ones(2, 3) > 0,
        torch.zeros(2, 3) > 0,
        torch.tensor([[False, True, True], [False, True, True]]),
    )
    counts = [record["counts"] for record in mask_postprocess.run_lengths(torch.stack([full, empty, mixed]))]
    assert counts == [[0, 6], [6], [2, 4]]
    record = {"size": [2, 3], "counts": [1, 2, 3]}
    assert mask_postprocess.from_run_lengths(record).tolist() == [[False, True, False], [True, False, False]]


def test_pad_and_resize_are_there_for_themselves() -> None:
    theirs, ours = transformers.SamImageProcessor(), SamImageProcessor()
    images = [torch.from_numpy(pixels(3, 40, 61)), torch.from_numpy(pixels(3, 50, 20))]
    assert_same(ours.pad(images), theirs.pad(images))
    from transformers.image_utils import SizeDict

    assert_same(ours.pad(images, (64, 70)), theirs.pad(images, SizeDict(height=64, width=70)))
    assert_same(ours.resize(images[0], {"longest_edge": 33}), theirs.resize(images[0], SizeDict(longest_edge=33)))
