"""`SamModel` against the transformers library's: results, arguments, and what wrong ones are answered with."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import amg
from amg.errors import ConfigError
from amg.geometry import Box, Crop
from amg.sam import weights
from amg.sam.predictor import Predictor
from amg.sam.processor import to_batch
from amg.sam.sam_model import SamModel
from tests.reference_amg import PHOTOS
from tests.sam_reference import assert_near, mobile_pair, mobile_sam, pixels
from tests.sam_transformers import images, pair, prompts, their_model

KINDS = [
    "",
    "1 point",
    "5 points",
    "2 labelled points",
    "padded points",
    "boxes",
    "masks",
    "1 point, boxes",
    "padded points, boxes",
    "2 labelled points, masks",
    "boxes, masks",
    "padded points, boxes, masks",
]
COUNTS = [(1, 1), (1, 3), (2, 1), (2, 3)]


def assert_same(ours: Any, theirs: Any) -> None:
    """Within 1e-5 of the range; that of scores, of which there may be one, is theirs from 0."""
    assert tuple(ours.keys()) == tuple(theirs.keys())
    for name in theirs:
        for our, their in zip(as_tuple(ours[name]), as_tuple(theirs[name]), strict=True):
            assert our.dtype == their.dtype
            near = assert_near_from_zero if name == "iou_scores" else assert_near
            near(our.detach(), their)


def assert_near_from_zero(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert_near(torch.cat([ours.flatten(), torch.zeros(1)]), torch.cat([theirs.flatten(), torch.zeros(1)]))


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "single mask"])
@pytest.mark.parametrize(("n", "p"), COUNTS, ids=lambda count: str(count))
@pytest.mark.parametrize("kind", KINDS)
def test_any_prompts_give_the_masks_of_transformers(kind: str, n: int, p: int, multimask: bool) -> None:
    if p > 1 and not ("point" in kind or "boxes" in kind):
        p = 1  # in transformers a mask alone is one prompt
    for name in ("tiny", "unusual"):
        theirs, ours = pair(name)
        arguments = {"pixel_values": images(name, n), **prompts(name, kind, images=n, per_image=p)}
        with torch.no_grad():
            wanted = theirs(**arguments, multimask_output=multimask)
            together = ours(**arguments, multimask_output=multimask)
        assert_same(together, wanted)
        with torch.enable_grad():
            assert_same(ours(**arguments, multimask_output=multimask), wanted)


@pytest.mark.parametrize("name", ["vit-b", pytest.param("vit-b at 1024", marks=pytest.mark.slow)])
def test_a_whole_vit_b_gives_the_masks_of_transformers(name: str) -> None:
    theirs, ours = pair(name)
    pixel_values = images(name, 1)
    with torch.no_grad():
        embeddings = theirs.get_image_embeddings(pixel_values)
        assert_near(ours.get_image_embeddings(pixel_values), embeddings)
        for kind, p in (("2 labelled points", 3), ("boxes", 2), ("padded points, boxes, masks", 1)):
            prompt = prompts(name, kind, images=1, per_image=p)
            assert_same(ours(image_embeddings=embeddings, **prompt), theirs(image_embeddings=embeddings, **prompt))


@pytest.mark.parametrize("kind", ["1 point", "padded points, boxes", "masks"])
def test_float64_gives_the_masks_of_transformers_to_more_digits(kind: str) -> None:
    theirs, ours = their_model("tiny", attention="sdpa").double(), fresh_pair()[1].double()
    arguments = {"pixel_values": images("tiny", 2).double(), **prompts("tiny", kind, images=2, per_image=1)}
    arguments = {name: value.double() if "labels" not in name else value for name, value in arguments.items()}
    with torch.no_grad():
        wanted, found = theirs(**arguments), ours(**arguments)
    assert found.pred_masks.dtype == torch.float64
    assert_near(found.pred_masks, wanted.pred_masks, 1e-12)
    assert_near(found.iou_scores, wanted.iou_scores, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["2 labelled points", "boxes, masks"])
def test_half_precision_is_as_near_to_the_truth_as_in_transformers(kind: str, dtype: torch.dtype) -> None:
    arguments = {"pixel_values": images("tiny", 2), **prompts("tiny", kind, images=2, per_image=1)}
    with torch.no_grad():
        truth = pair()[0](**arguments).pred_masks
        theirs, ours = (model.to(dtype) for model in fresh_pair())
        halved = {n: v.to(dtype) if n in ("pixel_values", "input_masks") else v for n, v in arguments.items()}
        wanted, found = theirs(**halved).pred_masks, ours(**halved).pred_masks
    assert found.dtype == dtype
    error, their_error = (float((masks - truth).square().mean().sqrt()) for masks in (found, wanted))
    assert error < 1.5 * their_error, f"off by {error:.3g}, transformers by {their_error:.3g}"


def fresh_pair() -> tuple[Any, SamModel]:
    import copy

    theirs, ours = pair()
    return copy.deepcopy(theirs), copy.deepcopy(ours)


def test_pixels_are_taken_in_any_float_type() -> None:
    _, ours = pair()
    with torch.no_grad():
        assert ours(pixel_values=images("tiny", 1).double()).pred_masks.dtype == torch.float32


def test_hidden_states_and_attentions_are_those_of_transformers() -> None:
    for name in ("tiny", "unusual"):
        theirs, ours = pair(name)
        arguments = {"pixel_values": images(name, 2), **prompts(name, "5 points", images=2, per_image=3)}
        with torch.no_grad():
            asked = {"output_hidden_states": True, "output_attentions": True}
            wanted, found = theirs(**arguments, **asked), ours(**arguments, **asked)
        assert len(found.vision_hidden_states) == ours.config.vision_config.num_hidden_layers + 1
        assert_same(found, wanted)
        assert torch.allclose(found.vision_attentions[0].sum(-1), torch.tensor(1.0))


def test_the_configuration_can_ask_for_hidden_states() -> None:
    _, ours = fresh_pair()
    with torch.no_grad():
        assert ours(images("tiny", 1)).vision_hidden_states is None
        ours.config.output_hidden_states = True
        assert len(ours(images("tiny", 1)).vision_hidden_states) == 3
        assert ours(images("tiny", 1), output_hidden_states=False).vision_hidden_states is None


def test_the_image_encoder_answers_alone() -> None:
    theirs, ours = pair()
    with torch.no_grad():
        asked = {"output_hidden_states": True, "output_attentions": True}
        wanted, found = (model.vision_encoder(images("tiny", 2), **asked) for model in (theirs, ours))
    assert_same(found, wanted)
    assert torch.equal(found[0], found.last_hidden_state)


def test_embeddings_can_be_had_and_used_again() -> None:
    theirs, ours = pair()
    pixel_values, prompt = images("tiny", 2), prompts("tiny", "1 point", images=2, per_image=2)
    with torch.enable_grad():
        embeddings = ours.get_image_embeddings(pixel_values)
    assert not embeddings.requires_grad
    assert_near(embeddings, theirs.get_image_embeddings(pixel_values))
    with torch.no_grad():
        again, whole = ours(image_embeddings=embeddings, **prompt), ours(pixel_values, **prompt)
    assert torch.equal(again.pred_masks, whole.pred_masks)
    assert again.vision_hidden_states is None


def test_positions_are_those_of_transformers() -> None:
    theirs, ours = pair()
    with torch.no_grad():
        assert_near(ours.get_image_wide_positional_embeddings(), theirs.get_image_wide_positional_embeddings())


@pytest.mark.parametrize("kind", KINDS)
def test_prompt_embeddings_are_those_of_transformers(kind: str) -> None:
    theirs, ours = pair()
    prompt = prompts("tiny", kind, images=2, per_image=1)
    wanted = theirs.get_prompt_embeddings(**{"input_labels": ones_for(prompt), **prompt})
    found = ours.get_prompt_embeddings(**prompt)
    assert (found[0] is None) == (wanted[0] is None)
    for our, their in zip(found, wanted, strict=True):
        if our is not None:
            assert_near(our.detach(), their.detach())


def ones_for(prompt: dict[str, Tensor]) -> Tensor | None:
    """In this method transformers wants labels."""
    return torch.ones(prompt["input_points"].shape[:3]) if "input_points" in prompt else None


def test_a_mask_for_each_prompt_is_as_one_call_for_each() -> None:
    _, ours = pair()
    prompt = prompts("tiny", "1 point", images=2, per_image=3)
    masks_NPLL = pixels(2, 3, 48, 48)
    with torch.no_grad():
        embeddings = ours.get_image_embeddings(images("tiny", 2))
        whole = ours(image_embeddings=embeddings, input_masks=masks_NPLL, **prompt).pred_masks
        for p in range(3):
            one = {"input_points": prompt["input_points"][:, p : p + 1], "input_masks": masks_NPLL[:, p : p + 1]}
            assert_near(whole[:, p : p + 1], ours(image_embeddings=embeddings, **one).pred_masks)
        alone = ours(image_embeddings=embeddings, input_masks=masks_NPLL).pred_masks
    assert alone.shape == (2, 3, 3, 48, 48)


def test_a_mask_may_come_without_a_dimension_for_prompts_and_for_all_images() -> None:
    _, ours = pair()
    mask_LL = pixels(48, 48)
    with torch.no_grad():
        wanted = ours(images("tiny", 2), input_masks=mask_LL.expand(2, 1, -1, -1)).pred_masks
        for masks in (mask_LL.expand(2, -1, -1), mask_LL[None, None], mask_LL[None]):
            assert torch.equal(ours(images("tiny", 2), input_masks=masks).pred_masks, wanted)


@pytest.mark.parametrize("with_boxes", [False, True])
def test_a_target_guides_the_decoder_as_in_transformers(with_boxes: bool) -> None:
    theirs, ours = pair()
    kind = "1 point, boxes" if with_boxes else "1 point"
    tokens = 5 + (3 if with_boxes else 2)
    arguments = {"pixel_values": images("tiny", 2), **prompts("tiny", kind, images=2, per_image=2)}
    guides = {
        "attention_similarity": pixels(4, 1, 1, 144, seed=1),
        "target_embedding": pixels(2, 2, tokens, 32, seed=2),
    }
    with torch.no_grad():
        plain = ours(**arguments).pred_masks
        for names in (["attention_similarity"], ["target_embedding"], [*guides]):
            given = {name: guides[name] for name in names}
            wanted, found = theirs(**arguments, **given), ours(**arguments, **given)
            assert_same(found, wanted)
            assert not torch.allclose(found.pred_masks, plain)


def test_labels_of_box_corners_are_a_box() -> None:
    _, ours = pair()
    box = torch.tensor([[[3.0, 4.0, 15.0, 20.0]]])
    with torch.no_grad():
        wanted = ours(images("tiny", 1), input_boxes=box).pred_masks
        corners = {"input_points": box.view(1, 1, 2, 2), "input_labels": torch.tensor([[[2, 3]]])}
        sparse, _ = ours.get_prompt_embeddings(**corners)
        boxed, _ = ours.get_prompt_embeddings(input_boxes=box)
        assert torch.equal(sparse[:, :, :2], boxed)
        assert ours(images("tiny", 1), **corners).pred_masks.shape == wanted.shape


def test_the_signature_begins_as_in_transformers() -> None:
    wanted = [name for name in inspect.signature(transformers.SamModel.forward).parameters if name != "kwargs"]
    ours = list(inspect.signature(SamModel.forward).parameters)
    assert ours[: len(wanted)] == wanted
    assert ours[1] == SamModel.main_input_name


def test_an_output_is_read_by_name_place_and_attribute() -> None:
    _, ours = pair()
    with torch.no_grad():
        output, plain = ours(images("tiny", 1)), ours(images("tiny", 1), return_dict=False)
    assert list(output) == ["iou_scores", "pred_masks"] == list(output.keys())
    assert output["pred_masks"] is output.pred_masks is output[1] is output.to_tuple()[1]
    assert isinstance(plain, tuple)
    assert [tensor.shape for tensor in plain] == [tensor.shape for tensor in output.values()]
    assert dict(output.items()).keys() == {"iou_scores", "pred_masks"}
    assert (len(output), "vision_attentions" in output, output.get("vision_attentions")) == (2, False, None)
    with pytest.raises(KeyError, match="there are iou_scores, pred_masks"):
        output["masks"]


def test_parameters_have_the_names_of_transformers_and_of_the_original() -> None:
    theirs, ours = pair()
    assert {name for name, _ in ours.named_parameters()} == {name for name, _ in theirs.named_parameters()}
    assert next(iter(ours.named_parameters()))[0] == "shared_image_embedding.positional_embedding"
    assert ours.image_encoder.blocks[0].norm1 is ours.vision_encoder.layers[0].layer_norm1
    assert ours.prompt_encoder.pe_layer is ours.shared_image_embedding
    assert ours.get_submodule("vision_encoder.neck.conv1") is ours.image_encoder.neck[0]
    assert ours.mask_decoder.output_upscaling[3] is ours.mask_decoder.upscale_conv2


def test_a_part_can_be_replaced_under_either_name() -> None:
    _, ours = fresh_pair()
    keys = ours.state_dict().keys()
    for name in ("layer_norm1", "norm1"):
        before = ours(images("tiny", 1)).pred_masks
        setattr(ours.vision_encoder.layers[0], name, torch.nn.LayerNorm(36, eps=float(len(name))))
        assert not torch.equal(ours(images("tiny", 1)).pred_masks, before)
        assert ours.state_dict().keys() == keys


@cache
def mobile() -> SamModel:
    return SamModel.from_pretrained("mobile-sam")


@cache
def real_predictor() -> Any:
    reference = mobile_sam.sam_model_registry["vit_t"](checkpoint=str(weights.fetch("mobile-sam", progress=False)))
    reference.eval()
    predictor = mobile_sam.SamPredictor(reference)
    predictor.set_image(photo())
    return predictor


def photo() -> NDArray[np.uint8]:
    return np.asarray(Image.open(PHOTOS / "coffee.jpg").convert("RGB"))


@pytest.mark.parametrize("multimask", [True, False], ids=["three masks", "single mask"])
@pytest.mark.parametrize("kind", ["point", "points", "box", "mask", "all"])
def test_real_weights_give_the_original_predictors_masks(kind: str, multimask: bool) -> None:
    theirs = real_predictor()
    height, width = photo().shape[:2]
    xy, labels = np.array([[width * 0.4, height * 0.5], [width * 0.1, height * 0.9]]), np.array([1, 0])
    box, mask = np.array([width * 0.2, height * 0.2, width * 0.7, height * 0.8]), pixels(1, 256, 256).numpy() * 4
    asked: dict[str, dict[str, Any]] = {
        "point": {"point_coords": xy[:1], "point_labels": labels[:1]},
        "points": {"point_coords": xy, "point_labels": labels},
        "box": {"box": box},
        "mask": {"mask_input": mask},
    }
    asked["all"] = {**asked["points"], **asked["box"], **asked["mask"]}
    _, iou, logits = theirs.predict(**asked[kind], multimask_output=multimask)

    crop = Crop(Box(0, 0, width, height), layer=0, index=0)
    scale = theirs.transform
    given: dict[str, Tensor] = {}
    if "point_coords" in asked[kind]:
        count = len(asked[kind]["point_coords"])
        given["input_points"] = torch.tensor(scale.apply_coords(xy, (height, width)))[None, None, :count]
        given["input_labels"] = torch.tensor(labels)[None, None, :count]
    if "box" in asked[kind]:
        given["input_boxes"] = torch.tensor(scale.apply_boxes(box[None], (height, width)))[None]
    if "mask_input" in asked[kind]:
        given["input_masks"] = torch.tensor(mask)[None]
    pixel_values = to_batch(photo(), [crop], torch.device("cpu"), side=1024).pixels_N3SS
    with torch.no_grad():
        assert_near(real_embedding(), theirs.get_image_embedding())
        assert pixel_values.shape == (1, 3, 1024, 1024)
        found = mobile()(image_embeddings=theirs.get_image_embedding(), multimask_output=multimask, **given)
    assert_near(found.pred_masks[0, 0], torch.tensor(logits))
    assert_near_from_zero(found.iou_scores[0, 0], torch.tensor(iou))


@cache
def real_embedding() -> Tensor:
    height, width = photo().shape[:2]
    crop = Crop(Box(0, 0, width, height), layer=0, index=0)
    return mobile().get_image_embeddings(to_batch(photo(), [crop], torch.device("cpu"), side=1024).pixels_N3SS)


def test_it_stands_where_a_sam_stands() -> None:
    _, sam = mobile_pair()
    model = SamModel(amg.SamConfig({"model_type": "sam_tiny_vit_vision_model"}, None, {"layer_norm_eps": 1e-5})).eval()
    model.load_state_dict(sam.state_dict())
    assert (model.name, model.side, model.device.type) == ("vit_t", 1024, "cpu")
    image = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    settings: dict[str, Any] = {
        "points_per_side": 3,
        "pred_iou_thresh": 0.0,
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    ours, wanted = (amg.generate_masks(image, each, **settings).to_dicts() for each in (model, sam))
    assert len(ours) > 3
    assert [record["segmentation"] for record in ours] == [record["segmentation"] for record in wanted]
    predictors = [Predictor(each) for each in (model, sam)]
    for predictor in predictors:
        predictor.set_image(image)
    masks, plain = (predictor.predict([[40, 30]], [1])[2] for predictor in predictors)
    assert np.array_equal(masks, plain)


XY = torch.ones(1, 2, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pixel_values": None}, "pixel_values, image_embeddings: neither came"),
        ({"image_embeddings": torch.zeros(1, 32, 12, 12)}, "pixel_values, image_embeddings: both came"),
        ({"pixel_values": torch.zeros(3, 24, 24)}, r"pixel_values: float32 of shape \(3, 24, 24\); wanted \(images, 3"),
        ({"pixel_values": torch.zeros(1, 1, 24, 24)}, r"\(1, 1, 24, 24\); wanted \(images, 3, 24, 24\)"),
        ({"pixel_values": torch.zeros(1, 3, 24, 32)}, r"pixel_values: .* \(1, 3, 24, 32\)"),
        ({"pixel_values": torch.zeros(1, 3, 24, 24, dtype=torch.uint8)}, "not normalised yet"),
        ({"pixel_values": torch.full((1, 3, 24, 24), torch.nan)}, "pixel_values: .* NaN"),
        ({"pixel_values": torch.zeros(0, 3, 24, 24)}, "pixel_values: .* it is empty"),
        ({"pixel_values": torch.zeros(1, 3, 24, 24, device="meta")}, "pixel_values: .* on meta, the model is on cpu"),
        ({"pixel_values": np.zeros((1, 3, 24, 24))}, "pixel_values: a ndarray; wanted a tensor"),
        ({"pixel_values": None, "image_embeddings": torch.zeros(1, 32, 12, 11)}, r"image_embeddings: .*, 12, 11\)"),
        ({"input_points": [[[[1, 2]]]]}, "input_points: a list; wanted a tensor"),
        ({"input_points": torch.ones(1, 2)}, r"input_points: .*\(1, 2\); wanted \(images, prompts, points"),
        ({"input_points": torch.ones(1, 3, 2)}, "a dimension is missing"),
        ({"input_points": torch.ones(1, 1, 1, 3)}, r"input_points: .* \(1, 1, 1, 3\)"),
        ({"input_points": torch.ones(1, 1, 0, 2)}, "input_points: .* it is empty"),
        ({"input_points": XY * torch.nan}, "input_points: .* NaN"),
        ({"input_points": XY.expand(2, -1, -1, -1)}, r"input_points: .* wanted the first dimension 1"),
        ({"input_points": XY.to("meta")}, "input_points: .* on meta"),
        ({"input_points": XY, "input_labels": torch.ones(1, 2, 2)}, r"input_labels: .*\(1, 2, 2\); wanted \(1, 2, 3\)"),
        ({"input_points": XY, "input_labels": torch.full((1, 2, 3), 7)}, "input_labels: .* holds 7; a label is one of"),
        ({"input_labels": torch.ones(1, 2, 3)}, r"input_labels \(1, 2, 3\) came without input_points"),
        ({"input_boxes": torch.ones(1, 4)}, r"input_boxes: .* \(1, 4\); wanted \(images, prompts, 4\)"),
        ({"input_boxes": torch.ones(1, 2, 2)}, r"input_boxes: .* \(1, 2, 2\)"),
        ({"input_boxes": torch.ones(2, 2, 4)}, "input_boxes: .* wanted the first dimension 1"),
        ({"input_boxes": torch.ones(1, 3, 4), "input_points": XY}, "input_boxes: .* each of the 2 prompts"),
        ({"input_boxes": torch.tensor([[[30.0, 1.0, 40.0, 9.0]]])}, "input_boxes: .* outside the model's square of 24"),
        ({"input_boxes": torch.full((1, 1, 4), torch.inf)}, "input_boxes: .* NaN or infinite"),
        ({"input_boxes": torch.ones(1, 0, 4)}, "input_boxes: .* it is empty"),
        ({"input_masks": torch.ones(1, 1, 24, 24)}, r"input_masks: .* wanted logits \(images, 1, 48, 48\)"),
        ({"input_masks": torch.ones(2, 1, 48, 48)}, "input_masks: .* first dimension 1"),
        ({"input_masks": torch.ones(1, 5, 48, 48), "input_points": XY}, "input_masks: .* there are 2 prompts"),
        ({"input_masks": torch.full((1, 1, 48, 48), torch.nan)}, "input_masks: .* NaN"),
        ({"target_embedding": torch.ones(1, 1, 9, 32)}, r"target_embedding: .*\(1, 1, 9, 32\); wanted \(1, 1, 5, 32\)"),
    ],
)  # fmt: skip
def test_wrong_input_is_named_with_its_shape_and_the_one_wanted(arguments: dict[str, Any], said: str) -> None:
    _, ours = pair()
    with pytest.raises(ConfigError, match=said):
        ours(**{"pixel_values": images("tiny", 1), **arguments})


def test_what_else_a_processor_returns_changes_nothing() -> None:
    _, ours = pair()
    more = {"original_sizes": torch.tensor([[5, 6]]), "reshaped_input_sizes": torch.tensor([[20, 24]]), "labels": None}
    with torch.no_grad():
        assert torch.equal(ours(images("tiny", 1), **more).pred_masks, ours(images("tiny", 1)).pred_masks)
    with pytest.raises(TypeError, match="input_point"):
        ours(images("tiny", 1), input_point=torch.ones(1, 1, 1, 2))


def test_attentions_of_the_convolutional_encoder_are_refused() -> None:
    model = SamModel(amg.SamConfig({"model_type": "sam_tiny_vit_vision_model", "image_size": 224}, {"image_size": 224}))
    x = torch.zeros(1, 3, 224, 224)
    with torch.no_grad():
        states = model.eval()(x, output_hidden_states=True).vision_hidden_states
        assert [tuple(state.shape[1:]) for state in states] == [
            (56, 56, 64),
            (28, 28, 128),
            *[(14, 14, w) for w in (160, 320, 320)],
        ]
        with pytest.raises(ConfigError, match="output_attentions=True: MobileSAM"):
            model(x, output_attentions=True)
