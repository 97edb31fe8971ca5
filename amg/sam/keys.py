"""The names of a state dict's tensors: the original package's, the transformers library's, and prefixes of either.

One table serves both directions; `#` in it stands for a number. Heads of several linear layers count them through in
the original (`layers.0` to `layers.2`), and are `proj_in`, `layers.0`, `proj_out` in transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import TypeVar

T = TypeVar("T")

PARTS = ("image_encoder", "vision_encoder", "prompt_encoder", "mask_decoder", "shared_image_embedding")
ANCHOR = "mask_decoder.iou_token.weight"
"""A tensor that every SAM has under the same name in both libraries."""
POSITIONS = "shared_image_embedding.positional_embedding"
TIED_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
ONLY_ORIGINAL = (
    "image_encoder.",
    "prompt_encoder.pe_layer.",
    "prompt_encoder.point_embeddings.",
    "prompt_encoder.mask_downscaling.",
    "mask_decoder.output_upscaling.",
)
IOU_HEAD = "mask_decoder.iou_prediction_head"

PAIRS = (
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.blocks.#.norm1", "vision_encoder.layers.#.layer_norm1"),
    ("image_encoder.blocks.#.norm2", "vision_encoder.layers.#.layer_norm2"),
    ("image_encoder.blocks.#.attn", "vision_encoder.layers.#.attn"),
    ("image_encoder.blocks.#.mlp", "vision_encoder.layers.#.mlp"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("image_encoder", "vision_encoder"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", POSITIONS),
    ("prompt_encoder.point_embeddings", "prompt_encoder.point_embed"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    *(
        (f"mask_decoder.transformer.layers.#.norm{n}", f"mask_decoder.transformer.layers.#.layer_norm{n}")
        for n in range(1, 5)
    ),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
)


def is_original(state: Mapping[str, object]) -> bool:
    return any(key.startswith(ONLY_ORIGINAL) for key in state)


def to_transformers(state: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under transformers' names, whichever names they have; both names of the tied one."""
    if is_original(state):
        table = _table(_head_depth(state), original_first=True)
        state = {_renamed(key, table): value for key, value in state.items()}
    named = dict(state)
    for key, other in ((POSITIONS, TIED_POSITIONS), (TIED_POSITIONS, POSITIONS)):
        if key in named:
            named.setdefault(other, named[key])
    return named


def to_original(state: Mapping[str, T]) -> dict[str, T]:
    """The same tensors under the original package's names, whichever names they have."""
    if is_original(state):
        return dict(state)
    table = _table(_head_depth(state), original_first=False)
    named = {POSITIONS: state[TIED_POSITIONS]} if TIED_POSITIONS in state and POSITIONS not in state else {}
    return {_renamed(key, table): value for key, value in {**named, **state}.items() if key != TIED_POSITIONS}


def prefixes(state: Mapping[str, object]) -> list[str]:
    """What stands before the names of each SAM in a state dict: `['']` where they begin with the parts themselves."""
    return sorted(key.removesuffix(ANCHOR) for key in state if key == ANCHOR or key.endswith(f".{ANCHOR}"))


def _head_depth(state: Mapping[str, object]) -> int:
    return sum(key.startswith(f"{IOU_HEAD}.") and key.endswith(".weight") for key in state)


@cache
def _table(iou_depth: int, *, original_first: bool) -> tuple[tuple[re.Pattern[str], str], ...]:
    heads = (*_head("mask_decoder.output_hypernetworks_mlps.#", 3), *_head(IOU_HEAD, iou_depth))
    pairs = [*heads, *PAIRS]
    return tuple((_pattern(old), new) for old, new in (pairs if original_first else [(new, old) for old, new in pairs]))


def _head(name: str, depth: int) -> list[tuple[str, str]]:
    middle = [(f"{name}.layers.{n}", f"{name}.layers.{n - 1}") for n in range(1, depth - 1)]
    return [(f"{name}.layers.0", f"{name}.proj_in"), *middle, (f"{name}.layers.{depth - 1}", f"{name}.proj_out")]


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(r"\#", r"(\d+)") + r"(?=\.|$)")


def _renamed(key: str, table: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, new in table:
        if found := pattern.match(key):
            number = found[1] if found.groups() else ""
            return new.replace("#", number) + key[found.end() :]
    return key
