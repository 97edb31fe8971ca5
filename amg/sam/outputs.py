"""What the model returns: attributes that can also be had by name or place, without those that are None."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor


@dataclass
class ModelOutput:
    """Source of the interface: `ModelOutput` of transformers."""

    def keys(self) -> tuple[str, ...]:
        return tuple(field.name for field in fields(self) if getattr(self, field.name) is not None)

    def values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.keys())

    def items(self) -> tuple[tuple[str, Any], ...]:
        return tuple(zip(self.keys(), self.values(), strict=True))

    def to_tuple(self) -> tuple[Any, ...]:
        return self.values()

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name) if name in self.keys() else default

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self.values()[key]
        if key not in self.keys():
            raise KeyError(f"{key!r}; there are {', '.join(self.keys())}")
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys()


@dataclass(eq=False)
class SamVisionEncoderOutput(ModelOutput):
    """`last_hidden_state` (N, D, G, G) is the image embedding.

    `hidden_states`: what enters the first layer and what leaves each, (N, G, G, C), C the encoder's width.
    `attentions`: the weights of each layer, (N * windows * heads, T, T).
    """

    last_hidden_state: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass(eq=False)
class SamImageSegmentationOutput(ModelOutput):
    """`iou_scores` (N, P, M), `pred_masks` (N, P, M, L, L): logits over the padded square, for N images.

    `mask_decoder_attentions`: what the image tokens took from the prompt's in each block, (N * P, 1, G * G, D).
    """

    iou_scores: Tensor | None = None
    pred_masks: Tensor | None = None
    vision_hidden_states: tuple[Tensor, ...] | None = None
    vision_attentions: tuple[Tensor, ...] | None = None
    mask_decoder_attentions: tuple[Tensor, ...] | None = None
