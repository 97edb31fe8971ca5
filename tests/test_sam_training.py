"""Fine-tuning and what else is done to a model as a PyTorch module. Gradients are compared with transformers'."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.errors import ConfigError
from amg.sam.config import VIT_T
from amg.sam.conversion import architecture_of
from amg.sam.keys import to_original
from amg.sam.model import build_sam
from amg.sam.pretrained_config import SamConfig
from amg.sam.sam_model import SamModel
from tests.sam_reference import assert_near, pixels
from tests.sam_transformers import images, pair, prompts

BOX = torch.tensor([[[4.0, 6.0, 18.0, 20.0]]])


def fresh() -> SamModel:
    return copy.deepcopy(pair()[1])


def disc() -> Tensor:
    """A mask (1, 1, 1, 48, 48) to learn."""
    at = torch.arange(48) - 23.5
    return ((at[:, None] ** 2 + at[None, :] ** 2) < 15**2).float()[None, None, None]


def loss_of(model: nn.Module, target: Tensor, **arguments: Any) -> Tensor:
    logits = model(input_boxes=BOX, multimask_output=False, **arguments).pred_masks
    return F.binary_cross_entropy_with_logits(logits.float(), target)


def test_a_decoder_learns_one_picture_while_the_encoder_is_frozen() -> None:
    model = fresh().train()
    for name, parameter in model.named_parameters():
        if name.startswith(("vision_encoder", "prompt_encoder", "shared_image_embedding")):
            parameter.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.Adam(model.mask_decoder.parameters(), lr=3e-3)
    target = disc()
    losses = []
    for _ in range(60):
        loss = loss_of(model, target, pixel_values=images("tiny", 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0], f"from {losses[0]:.3f} to {losses[-1]:.3f}"
    with torch.no_grad():
        found = model.eval()(images("tiny", 1), input_boxes=BOX, multimask_output=False).pred_masks > 0
    assert float((found == target.bool()).float().mean()) > 0.95
    changed = {key.split(".")[0] for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert changed == {"mask_decoder"}


def test_one_step_without_freezing_changes_the_encoder() -> None:
    model = fresh().train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    loss_of(model, disc(), pixel_values=images("tiny", 1)).backward()
    optimizer.step()
    encoder = [key for key in before if key.startswith("vision_encoder.")]
    same = [key for key in encoder if torch.equal(model.state_dict()[key], before[key])]
    assert not same, same


def test_every_gradient_is_that_of_transformers() -> None:
    theirs, ours = (copy.deepcopy(model).train() for model in pair())
    arguments = {
        "pixel_values": images("tiny", 2),
        **prompts("tiny", "padded points, boxes, masks", images=2, per_image=2),
    }
    for multimask in (True, False):
        for model in (theirs, ours):
            output = model(**arguments, multimask_output=multimask)
            (output.pred_masks.square().mean() + output.iou_scores.sum()).backward()
    wanted = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert (parameter.grad is None) == (wanted[name] is None), name
        if parameter.grad is not None:
            assert float((parameter.grad - wanted[name]).norm()) <= 1e-4 * float(wanted[name].norm()) + 1e-6, name
    assert sum(grad is not None for grad in wanted.values()) > 150


def test_gradients_flow_through_given_embeddings() -> None:
    model = fresh()
    embeddings = pixels(1, 32, 12, 12).requires_grad_()
    loss_of(model, disc(), image_embeddings=embeddings).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.any()


def test_checkpointing_gives_the_same_gradients() -> None:
    grads = []
    for on in (False, True):
        model = fresh().train()
        if on:
            model.gradient_checkpointing_enable()
        loss_of(model, disc(), pixel_values=images("tiny", 1)).backward()
        grads.append(model.vision_encoder.layers[0].attn.qkv.weight.grad)
    assert torch.equal(*grads)
    model.gradient_checkpointing_disable()
    assert not any(layer.gradient_checkpointing for layer in model.vision_encoder.layers)


def test_checkpointing_is_refused_for_the_convolutional_encoder() -> None:
    with torch.device("meta"):
        model = SamModel(SamConfig({"model_type": "sam_tiny_vit_vision_model"}))
    with pytest.raises(ConfigError, match="gradient checkpointing: MobileSAM's encoder has none"):
        model.gradient_checkpointing_enable()


@pytest.mark.parametrize("kind", ["padded points, boxes", "1 point, masks"])
def test_autocast_trains_and_predicts(kind: str) -> None:
    arguments = {"pixel_values": images("tiny", 1), **prompts("tiny", kind, images=1, per_image=1)}
    model = fresh()
    truth = model(**arguments).pred_masks.detach()
    with torch.autocast("cpu", torch.bfloat16):
        output = model.train()(**arguments)
        loss = output.pred_masks.float().square().mean()
    loss.backward()
    assert model.vision_encoder.layers[0].attn.qkv.weight.grad.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model.eval()(**arguments).pred_masks
    for masks in (output.pred_masks, found):
        assert_near(masks.detach().float(), truth, 0.05)


def counting_backend(graphs: list[Any]) -> Callable[..., Any]:
    """A compiler that only counts: the captured program is run as it is."""

    def compiler(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    return compiler


@pytest.mark.parametrize(
    ("part", "in_place"),
    [("vision_encoder", True), ("prompt_encoder", True), ("mask_decoder", True), ("mask_decoder", False)],
)
def test_each_part_can_be_compiled(part: str, in_place: bool) -> None:
    torch.compiler.reset()
    arguments = {
        "pixel_values": images("tiny", 1),
        **prompts("tiny", "padded points, boxes, masks", images=1, per_image=2),
    }
    model, graphs = fresh(), []
    backend = counting_backend(graphs)
    with torch.no_grad():
        wanted = model(**arguments)
        if in_place:
            getattr(model, part).compile(backend=backend, fullgraph=True)
        else:
            setattr(model, part, torch.compile(getattr(model, part), backend=backend, fullgraph=True))
        found = model(**arguments)
        without_masks = {name: value for name, value in arguments.items() if name != "input_masks"}
        assert_near(model(**without_masks).pred_masks, fresh()(**without_masks).pred_masks)
    assert graphs
    assert_near(found.pred_masks, wanted.pred_masks)
    assert_near(found.iou_scores, wanted.iou_scores)


def test_the_whole_model_can_be_compiled_and_trained() -> None:
    torch.compiler.reset()
    arguments = {"pixel_values": images("tiny", 1), "input_boxes": BOX}
    model, graphs = fresh(), []
    wanted = model(**arguments).pred_masks
    compiled = torch.compile(model, backend=counting_backend(graphs))
    found = compiled(**arguments).pred_masks
    assert graphs
    assert_near(found.detach(), wanted.detach())
    found.square().mean().backward()
    assert model.vision_encoder.patch_embed.projection.weight.grad.any()


def test_a_state_dict_goes_round_under_either_names() -> None:
    model = fresh()
    state = model.state_dict()
    for given in (state, to_original(state)):
        other = SamModel(model.config)
        assert not other.load_state_dict(given).missing_keys
        assert all(torch.equal(tensor, state[key]) for key, tensor in other.state_dict().items())
    part = {key: tensor for key, tensor in to_original(state).items() if key.startswith("mask_decoder.")}
    missing = SamModel(model.config).load_state_dict(part, strict=False)
    assert not missing.unexpected_keys
    assert all(not key.startswith("mask_decoder.") for key in missing.missing_keys)
    with pytest.raises(RuntimeError, match="Missing key"):
        SamModel(model.config).load_state_dict(part)


def test_the_original_names_are_those_of_the_plain_model() -> None:
    model = fresh()
    sam = build_sam(architecture_of(model.config))
    sam.load_state_dict(to_original(model.state_dict()))
    with torch.no_grad():
        assert_near(sam.image_encoder(images("tiny", 1)), model.get_image_embeddings(images("tiny", 1)))
    with torch.device("meta"):
        tiny = SamModel(SamConfig({"model_type": "sam_tiny_vit_vision_model"}))
        assert to_original(tiny.state_dict()).keys() == build_sam(VIT_T).state_dict().keys()


def through_pickle(model: SamModel) -> SamModel:
    return pickle.loads(pickle.dumps(model))


def through_torch(model: SamModel) -> SamModel:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, through_pickle, through_torch])
def test_a_copy_is_whole_and_apart(copied: Callable[[SamModel], SamModel]) -> None:
    model = fresh()
    arguments = {"pixel_values": images("tiny", 1), "input_boxes": BOX}
    with torch.no_grad():
        wanted = model(**arguments).pred_masks
        other = copied(model)
        assert torch.equal(other(**arguments).pred_masks, wanted)
        for parameter in other.mask_decoder.parameters():
            parameter.zero_()
        other.shared_image_embedding.positional_embedding.zero_()
        assert torch.equal(model(**arguments).pred_masks, wanted)
        assert not other(**arguments).pred_masks.any()
    assert other.config == model.config
    assert other.prompt_encoder.shared_embedding is other.shared_image_embedding


def test_a_model_changes_its_type_and_back() -> None:
    model = fresh()
    for dtype in (torch.bfloat16, torch.float64, torch.float32):
        assert {tensor.dtype for tensor in model.to(dtype).state_dict().values()} == {dtype}
        assert model.dtype == dtype
        with torch.no_grad():
            assert model(images("tiny", 1), input_boxes=BOX).pred_masks.dtype == dtype


def test_a_new_model_is_in_training_and_draws_its_weights() -> None:
    one, two = (SamModel(fresh().config) for _ in range(2))
    assert one.training
    assert one.mask_decoder.training
    assert not torch.equal(one.mask_decoder.upscale_conv1.weight, two.mask_decoder.upscale_conv1.weight)
    assert one.config == two.config
