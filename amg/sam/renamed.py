"""The model's modules under the names that the transformers library gives them.

Scripts for that library freeze, replace and inspect parts by name (`vision_encoder.layers.0.layer_norm1`), so the tree
itself has its names. The arithmetic stays in the modules of `vit.py`, `prompt.py` and so on; each has a twin here that
adds little but the names, and in which the original ones (`image_encoder.blocks.0.norm1`) lead to the same modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from amg.sam import vit
from amg.sam.decoder import Head, MaskDecoder
from amg.sam.prompt import PromptEncoder, RandomFourier
from amg.sam.tinyvit import TinyVit
from amg.sam.transformer import TwoWayBlock, TwoWayTransformer
from amg.sam.vision_output import VisionOutput


class Renamed(nn.Module):
    """A module whose children have other names than in the class that it shares its arithmetic with.

    Given with the subclass: for an original name the one that the child has here (both reach it), and in `sequences`,
    for a child that is a sequence, the names of its steps.
    """

    ALIASES: ClassVar[Mapping[str, str]]
    SEQUENCES: ClassVar[Mapping[str, tuple[str, ...]]]

    def __init_subclass__(cls, *, sequences: Mapping[str, tuple[str, ...]] | None = None, **aliases: str) -> None:
        cls.ALIASES, cls.SEQUENCES = aliases, sequences or {}
        for original, name in aliases.items():
            setattr(cls, original, _alias(name))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(self.ALIASES.get(name, name), value)

    def take_names(self) -> None:
        """Put the children, which have the original names yet, under those of this class."""
        held: Any
        for held in (self._modules, self._parameters, self._buffers):
            renamed = {self.ALIASES.get(name, name): value for name, value in held.items()}
            held.clear()
            held.update(renamed)
        for name, steps in self.SEQUENCES.items():
            sequence = cast(nn.Sequential, getattr(self, name))
            sequence._modules = dict(zip(steps, sequence, strict=True))


def _alias(name: str) -> property:
    return property(lambda self: getattr(self, name))


NECK = ("conv1", "layer_norm1", "conv2", "layer_norm2")
MASK_EMBED = ("conv1", "layer_norm1", "activation1", "conv2", "layer_norm2", "activation2", "conv3")


class VisionEncoder(VisionOutput, Renamed, vit.Vit, blocks="layers", sequences={"neck": NECK}):  # pyright: ignore
    pass


class PatchEmbed(Renamed, vit.PatchEmbed, proj="projection"):
    pass


class VisionLayer(Renamed, vit.Block, norm1="layer_norm1", norm2="layer_norm2"):
    """With `gradient_checkpointing` in training only its input is kept; backward computes the rest a second time."""

    gradient_checkpointing = False

    def forward(self, x_NGGC: Tensor) -> Tensor:
        if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
            return checkpoint(super().forward, x_NGGC, use_reentrant=False)
        return super().forward(x_NGGC)


class TinyVisionEncoder(VisionOutput, Renamed, TinyVit, sequences={"neck": NECK}):  # pyright: ignore
    """Its layers keep their names: transformers has none for them."""


class PositionalEmbedding(Renamed, RandomFourier, positional_encoding_gaussian_matrix="positional_embedding"):
    """The frequencies are a parameter, as in transformers; the original package has them as a buffer."""

    positional_embedding: Tensor

    def take_names(self) -> None:
        super().take_names()
        frequencies = self._buffers.pop("positional_embedding")
        self.positional_embedding = nn.Parameter(cast(Tensor, frequencies))


class RenamedPromptEncoder(
    Renamed,
    PromptEncoder,
    pe_layer="shared_embedding",
    point_embeddings="point_embed",
    mask_downscaling="mask_embed",
    sequences={"mask_embed": MASK_EMBED},
):
    pass


class RenamedTransformer(Renamed, TwoWayTransformer, norm_final_attn="layer_norm_final_attn"):
    pass


class RenamedBlock(
    Renamed,
    TwoWayBlock,
    norm1="layer_norm1",
    norm2="layer_norm2",
    norm3="layer_norm3",
    norm4="layer_norm4",
):
    pass


class RenamedMaskDecoder(Renamed, MaskDecoder):
    def take_names(self) -> None:
        upscaling = self._modules.pop("output_upscaling")
        self.upscale_conv1, self.upscale_layer_norm, _, self.upscale_conv2, _ = cast(nn.Sequential, upscaling)
        # Not a child: the same layers as one sequence, for the arithmetic.
        self.__dict__["output_upscaling"] = upscaling
        super().take_names()


class FeedForward(Renamed, Head):
    """A head whose linear layers are called `proj_in`, `layers.0` and so on, `proj_out`."""

    def take_names(self) -> None:
        first, *middle, last = cast(nn.ModuleList, self._modules.pop("layers"))
        self.proj_in, self.layers, self.proj_out = first, nn.ModuleList(middle), last
        super().take_names()

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.proj_in(x))
        for layer in self.layers:
            x = F.relu(layer(x))
        return self.proj_out(x)


TWINS: Mapping[type[nn.Module], type[Renamed]] = {
    twin.__bases__[-1]: twin
    for twin in (
        VisionEncoder,
        PatchEmbed,
        VisionLayer,
        TinyVisionEncoder,
        PositionalEmbedding,
        RenamedPromptEncoder,
        RenamedTransformer,
        RenamedBlock,
        RenamedMaskDecoder,
        FeedForward,
    )
}


def rename(part: nn.Module) -> None:
    """Turn a freshly built part of the model, and all in it, into the twins."""
    for module in list(part.modules()):
        if type(module) in TWINS:
            module.__class__ = TWINS[type(module)]
            cast(Renamed, module).take_names()
