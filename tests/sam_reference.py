"""The original packages' models with random weights, and the tolerance our model is held to.

Every parameter and statistic is drawn: a fresh model has all-zero relative positions, attention biases and batch-norm
means, which would hide errors. Scales are chosen so that activations stay near one through all layers.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from amg.sam.config import VIT_T
from amg.sam.model import Sam, build_sam

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mobile_sam imports names that timm has moved, and registers them over timm's
    import mobile_sam
    import segment_anything

TOLERANCE = 1e-5
"""Of the reference's range: float32 rounding over the depth of the largest part; a wrong constant is far above it."""

AS_WIDE_AS_THE_ACTIVATIONS = (
    "attention_biases",
    "gaussian_matrix",
    "mask_embed.weight",
    "point_embed.weight",
    "token.weight",
    "tokens.weight",
)


def draw_weights(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Give every tensor of the state dict random values of a sensible size; returns the state dict."""
    generator = torch.Generator().manual_seed(seed)
    state = module.state_dict()
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            state[name] = noise.abs() * 0.3 + 0.7
        elif "rel_pos" in name or "pos_embed" in name:
            state[name] = 0.2 * noise
        elif name.endswith(AS_WIDE_AS_THE_ACTIVATIONS) or "point_embeddings" in name:
            state[name] = noise
        elif tensor.ndim >= 2:
            fan_in = tensor[0].numel() if "upscaling" not in name else tensor.shape[0]
            state[name] = noise / fan_in**0.5
        elif name.endswith("weight"):
            state[name] = 1 + 0.2 * noise
        else:
            state[name] = 0.2 * noise
    module.load_state_dict(state)
    return state


@cache
def mobile_pair() -> tuple[Any, Sam]:
    """MobileSAM of the original package and ours, with the same random weights."""
    reference = mobile_sam.sam_model_registry["vit_t"]().eval()
    sam = build_sam(VIT_T)
    sam.load_state_dict(draw_weights(reference, seed=1))
    reference.eval()  # refreshes the biases that it gathers when it leaves training
    return reference, sam


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_near(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape, f"{tuple(ours.shape)}, wanted {tuple(theirs.shape)}"
    spread = float(theirs.max() - theirs.min()) or float(theirs.abs().max())  # one number, or all the same
    worst = float((ours - theirs).abs().max())
    assert worst <= tolerance * spread, f"differs by {worst / spread:.1e} of the range {spread:.3g}"


__all__ = ["TOLERANCE", "assert_near", "draw_weights", "mobile_pair", "mobile_sam", "pixels", "segment_anything"]
