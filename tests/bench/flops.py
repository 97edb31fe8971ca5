"""The floating-point operations of one image, from the definition of the model: a multiplication and an addition are 2.

Where PyTorch does the arithmetic it counts itself (`torch.utils.flop_counter`, on tensors without memory where that is
possible). The three compiled passes of the factored decoder it does not see; their matrix products are counted here
from the shapes in `amg/kernels/decoder.py` and `upscale.py`. What is left out because it is padding is not counted.
Exponentials, GELU, norms and resampling are not counted: there is no ceiling for them among matrix products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from amg.config import default_points_per_batch
from amg.geometry import Box, Crop, Size, fit_longest_side
from amg.kernels.tiles import BLOCKS, SINGLES, drawn_size, tile_size, whole_rows
from amg.masks.score import Lens
from amg.sam.config import ARCHITECTURES, Architecture
from amg.sam.factored_image import FactoredImage, factor
from amg.sam.load import Uninitialised
from amg.sam.model import Sam, build_sam
from amg.sam.tinyvit import TinyVit
from amg.tensors import Embedding, Points

POINT_TOKENS = 2  # a point, and the padding behind it


@dataclass(frozen=True, slots=True)
class Counted:
    """Of one crop with its encoder, of what its prompts share, and of one point."""

    encode: int
    share: int
    point: int
    plain_point: int  # what the decoder as published does for a point
    tile_bytes: int  # what a chunk of points reads of the image
    factor_bytes: int  # of a point: written by the first two passes, read by those after them
    logit_bytes: int  # of a point: three masks


def count(kind: str | Architecture, image: Size | None = None) -> Counted:
    """Of an architecture, or one of `amg.sam.config` by name, for an image of this size; without one, for a square."""
    architecture = ARCHITECTURES[kind] if isinstance(kind, str) else kind
    with torch.device("meta"):
        sam = build_sam(architecture)
    image = image or Size(sam.side, sam.side)
    crop = Crop(Box(0, 0, image.width, image.height), layer=0, index=0)
    resized = fit_longest_side(image, sam.side)
    shape = FactorShape.of(sam, Lens.on(crop, resized, image).needed)
    pixels_13SS = torch.zeros(1, 3, sam.side, sam.side, device="meta")
    covered = [resized] if isinstance(sam.image_encoder, TinyVit) else []
    return Counted(
        encode=counted(lambda: sam.image_encoder(pixels_13SS, *covered)),
        share=counted(lambda: factor(sam.mask_decoder, *([map_of(sam)] * 3))),
        point=token_flops(architecture) + shape.flops(),
        plain_point=counted(lambda: plain(sam)),
        tile_bytes=4 * shape.places * (BLOCKS * shape.channels + shape.upscaled + SINGLES),
        factor_bytes=4 * shape.places * whole_rows(2 * shape.factors + 1),
        logit_bytes=4 * 3 * 16 * shape.places,
    )


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def map_of(sam: Sam) -> torch.Tensor:
    grid = sam.prompt_encoder.grid
    return torch.zeros(1, sam.mask_decoder.iou_token.embedding_dim, grid, grid, device="meta")


def plain(sam: Sam) -> object:
    image = map_of(sam)
    sparse_12D = torch.zeros(1, POINT_TOKENS, image.shape[1], device="meta")
    return sam.mask_decoder(image, image, sparse_12D, image, multimask=True)


def token_flops(architecture: Architecture) -> int:
    """What the factored decoder does with a point's tokens, in PyTorch: counted on a chunk that is really decoded."""
    points = default_points_per_batch("cpu")
    with Uninitialised():
        sam = build_sam(architecture)
    grid, side = sam.prompt_encoder.grid, Size(sam.side, sam.side)
    whole = Crop(Box(0, 0, sam.side, sam.side), layer=0, index=0)
    features_1DGG = torch.zeros(1, sam.mask_decoder.iou_token.embedding_dim, grid, grid)
    prepared = sam.prepare(Embedding(features_1DGG, (whole,), (side,)))
    assert isinstance(prepared, FactoredImage), "this processor decodes without factors: there is nothing to count"
    xy_P2 = torch.zeros(points, 2, dtype=torch.float64)
    prompts = Points(xy_P2, xy_P2, torch.arange(points, dtype=torch.int32))
    return counted(lambda: sam.decode(prepared, prompts)) // points


@dataclass(frozen=True, slots=True)
class FactorShape:
    """The sizes that the three passes over an image's places work with."""

    places: int
    drawn: int  # those of which logits are made
    heads: int
    tokens: int
    channels: int  # of an attention
    upscaled: int  # what the first transposed convolution makes of a place
    inner: int  # its channels
    outer: int  # the second one's channels
    masks: int = 3

    @classmethod
    def of(cls, sam: Sam, needed: Size | None = None) -> FactorShape:
        decoder, grid = sam.mask_decoder, sam.prompt_encoder.grid
        step = int(drawn_size(tile_size(grid), grid))
        lines = factor(decoder, *([map_of(sam)] * 3), needed).lines
        attention = decoder.transformer.blocks[1].cross_attn_image_to_token
        first, second = decoder.output_upscaling[0], decoder.output_upscaling[3]
        return cls(
            places=grid**2,
            drawn=-(-lines * grid // step) * step,
            heads=attention.heads,
            tokens=len(decoder.output_hypernetworks_mlps) + 1 + POINT_TOKENS,
            channels=attention.q_proj.out_features,
            upscaled=4 * first.out_channels,
            inner=first.out_channels,
            outer=second.out_channels,
        )

    @property
    def factors(self) -> int:
        return self.heads * (self.tokens - 1) + 1

    def flops(self) -> int:
        """Of the passes, for one point."""
        rows, f, by_head = self.heads * self.tokens, self.factors, self.tokens * self.channels
        first = 5 * by_head + (rows + f) * f + rows * f
        second = 7 * by_head + rows * f + (rows + 2 * f) * f + (rows + f) * f + rows * 2 * f
        draw = self.upscaled * (2 * f + 1) + 4 * 4 * self.outer * self.inner + 16 * self.outer * self.masks
        return 2 * (self.places * (first + second) + self.drawn * draw)
