"""The transformers library's model and ours with the same random weights, and prompts for both.

`eager` is that library's plain attention: it can show its weights, and its softmax is in float32 whatever the rest is.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import torch
import transformers
from torch import Tensor

from amg.sam.load import Uninitialised
from amg.sam.pretrained_config import SamConfig
from amg.sam.sam_model import SamModel
from tests.sam_reference import draw_weights, pixels

transformers.utils.logging.disable_progress_bar()
logging.getLogger("transformers").setLevel(logging.ERROR)

CONFIGS: dict[str, dict[str, Any]] = {
    "tiny": {
        "vision_config": {
            "hidden_size": 36,
            "output_channels": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": 24,
            "patch_size": 2,
            "num_pos_feats": 16,
            "window_size": 5,
            "global_attn_indexes": [1],
        },
        "prompt_encoder_config": {"hidden_size": 32, "image_size": 24, "patch_size": 2, "mask_input_channels": 16},
        "mask_decoder_config": {
            "hidden_size": 32,
            "mlp_dim": 64,
            "num_attention_heads": 4,
            "iou_head_hidden_dim": 32,
        },
    },
    "unusual": {  # a window beyond the grid, other depths, no narrow attention, larger epsilons
        "vision_config": {
            "hidden_size": 32,
            "output_channels": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": 40,
            "patch_size": 4,
            "num_pos_feats": 32,
            "window_size": 14,
            "global_attn_indexes": [],
            "mlp_dim": 96,
            "layer_norm_eps": 1e-2,
        },
        "prompt_encoder_config": {
            "hidden_size": 64,
            "image_size": 40,
            "patch_size": 4,
            "mask_input_channels": 8,
            "layer_norm_eps": 2e-2,
        },
        "mask_decoder_config": {
            "hidden_size": 64,
            "mlp_dim": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "attention_downsample_rate": 1,
            "num_multimask_outputs": 4,
            "iou_head_depth": 4,
            "iou_head_hidden_dim": 24,
            "layer_norm_eps": 3e-2,
        },
    },
    "vit-b": {
        "vision_config": {"image_size": 512},
        "prompt_encoder_config": {"image_size": 512},
        "mask_decoder_config": {},
    },
    "vit-b at 1024": {"vision_config": {}, "prompt_encoder_config": {}, "mask_decoder_config": {}},
}


def their_config(name: str) -> transformers.SamConfig:
    return transformers.SamConfig(**{section: dict(values) for section, values in CONFIGS[name].items()})


def their_model(name: str, *, seed: int = 3, attention: str = "eager") -> Any:
    """Transformers' model with every parameter drawn, in evaluation mode."""
    with Uninitialised():
        model = transformers.SamModel._from_config(their_config(name), attn_implementation=attention)
    draw_weights(model, seed)
    return model.eval()


@cache
def pair(name: str = "tiny") -> tuple[Any, SamModel]:
    """Theirs and ours in evaluation mode; nobody changes them."""
    theirs = their_model(name)
    with Uninitialised():
        ours = SamModel(SamConfig.from_dict(theirs.config.to_dict())).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def images(name: str, count: int) -> Tensor:
    side = their_config(name).vision_config.image_size
    return pixels(count, 3, side, side, seed=count)


def prompts(name: str, kind: str, *, images: int, per_image: int) -> dict[str, Tensor]:
    """`kind`: words such as `1 point`, `3 labelled points`, `padded points`, `boxes`, `masks`, joined by `, `."""
    config = their_config(name).prompt_encoder_config
    side, grid = config.image_size, config.image_embedding_size
    generator = torch.Generator().manual_seed(11)
    made: dict[str, Tensor] = {}
    for word in kind.split(", ") if kind else []:
        count = int(word[0]) if word[0].isdigit() else 4
        if "point" in word:
            made["input_points"] = torch.rand(images, per_image, count, 2, generator=generator) * side
        if "labelled" in word or "padded" in word:
            made["input_labels"] = torch.randint(0, 2, (images, per_image, count), generator=generator)
        if "padded" in word:
            made["input_labels"][..., 2] = -1
            made["input_labels"][..., 3] = -10
        if word == "boxes":
            corners = torch.rand(images, per_image, 2, 2, generator=generator) * side
            made["input_boxes"] = corners.sort(dim=2).values.flatten(2)
        if word == "masks":
            made["input_masks"] = 8 * torch.randn(images, 1, 4 * grid, 4 * grid, generator=generator)
    return made
