"""What the factored decoder computes once for an image; `factored.py` says what it is for, and decodes the prompts.

Letters as there: X = C + 1 coefficients of a vector, N image tokens of a tile, Q rows of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.geometry import Size
from amg.kernels import tiles
from amg.kernels.simd import ROWS
from amg.sam.decoder import MaskDecoder
from amg.sam.transformer import TwoWayTransformer

MOST_TOKENS = 8
"""Tokens of a prompt's own, beside the decoder's five: factors grow with their number, and their squares."""

DRAWN_SIDE = 4
"""A token becomes so many rows and columns of logits."""

Rows = dict[np.int_, Tensor]
"""By their number in `kernels/tiles.py`, (rows, I)."""


@dataclass(frozen=True, slots=True, eq=False)
class FactoredImage:
    """The image's side of the decoder, and the weights in the forms that a prompt's factors are multiplied with.

    `tiles_QXN`: the rows of `kernels/tiles.py`. `k_1hIc`, `v_1hIc`: what prompt tokens of block 1 attend to. The tokens
    lie row by row, or `by_columns`; logits are drawn of the first `lines` of the grid's lines.
    """

    tiles_QXN: Tensor
    k_1hIc: Tensor
    v_1hIc: Tensor
    weights: FactoredWeights
    grid: int
    by_columns: bool
    lines: int


@dataclass(frozen=True, slots=True, eq=False)
class FactoredWeights:
    """A prompt's vectors are `coefficients_FX @ vectors_XD`; these are products of those X vectors.

    With the weights that follow them (E: the outputs of several weights side by side), and with each other. `value2_C`,
    `value3_C`, `conv_U`: what the norms' biases become in values and in the first convolution.
    """

    u1_XE: Tensor
    v1_XE: Tensor
    u2_XE: Tensor
    u1_u1_XX: Tensor
    v1_v1_XX: Tensor
    u2_v1_XX: Tensor
    u2_u2_XX: Tensor
    value2_C: Tensor
    value3_C: Tensor
    conv_U: Tensor


def can_factor(decoder: MaskDecoder, features_1DGG: Tensor, tokens: int) -> bool:
    """Whether prompts of so many tokens can be decoded in factors, and with profit; `shared.py` does the others."""
    on_host = features_1DGG.device.type == "cpu" and features_1DGG.dtype == torch.float32
    blocks = decoder.transformer.blocks
    heads = {block.cross_attn_image_to_token.heads for block in blocks}
    widths = {block.cross_attn_image_to_token.q_proj.out_features for block in blocks}
    fits = len(blocks) == 2 and all(h % ROWS == 0 for h in heads) and all(w % (4 * max(heads)) == 0 for w in widths)
    return on_host and fits and tokens <= MOST_TOKENS and tiles.tile_size(features_1DGG.shape[-1]) > 0


def factor(
    decoder: MaskDecoder,
    features_1DGG: Tensor,
    position_1DGG: Tensor,
    no_mask_1DGG: Tensor,
    needed: Size | None = None,
) -> FactoredImage:
    """Everything of an image that does not depend on the prompt.

    `needed`: rows and columns of logits that somebody will look at; the others need not be drawn. The tokens are put in
    such an order that the padding of the image, be it below or on the right, comes last.
    """
    grid = features_1DGG.shape[-1]
    needed = needed or Size(grid * DRAWN_SIDE, grid * DRAWN_SIDE)
    rows, columns = (min(grid, -(-side // DRAWN_SIDE)) for side in (needed.height, needed.width))
    by_columns = columns < rows
    if by_columns:
        features_1DGG, position_1DGG, no_mask_1DGG = (
            map_1DGG.transpose(2, 3) for map_1DGG in (features_1DGG, position_1DGG, no_mask_1DGG)
        )
    vectors = _vectors(decoder)
    position_DI = position_1DGG[0].flatten(1)
    plain_DI = (features_1DGG + no_mask_1DGG)[0].flatten(1)
    placed_DI = plain_DI + position_DI
    attention = decoder.transformer.blocks[0].cross_attn_token_to_image
    return FactoredImage(
        tiles_QXN=_in_tiles(_rows(decoder, vectors, plain_DI, placed_DI, position_DI), grid),
        k_1hIc=attention.split(_apply(attention.k_proj, placed_DI).T[None]).contiguous(),
        v_1hIc=attention.split(_apply(attention.v_proj, plain_DI).T[None]).contiguous(),
        weights=_weights(decoder, vectors),
        grid=grid,
        by_columns=by_columns,
        lines=min(rows, columns),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Vectors:
    """The vectors u1, v1, u2 that answers are made of, and what follows the first and the second block's norm."""

    u1_XD: Tensor
    v1_XD: Tensor
    u2_XD: Tensor
    after1_ED: Tensor
    after2_ED: Tensor


def _vectors(decoder: MaskDecoder) -> _Vectors:
    first, second = decoder.transformer.blocks
    told, tell = first.cross_attn_image_to_token.out_proj, second.cross_attn_image_to_token
    see, final = second.cross_attn_token_to_image, decoder.transformer.final_attn_token_to_image
    u1_XD = _centered(torch.cat([told.weight.T, told.bias[None]]), 1)
    u2_XD = torch.cat([tell.out_proj.weight.T, (tell.out_proj.bias + first.norm4.bias)[None]])
    after1_ED = torch.cat([see.k_proj.weight, see.v_proj.weight, tell.q_proj.weight])
    after2_ED = torch.cat([final.k_proj.weight, final.v_proj.weight, _convolution(decoder)])
    return _Vectors(
        u1_XD=u1_XD,
        v1_XD=_centered(u1_XD * first.norm4.weight, 1),
        u2_XD=_centered(u2_XD, 1),
        after1_ED=after1_ED * first.norm4.weight,
        after2_ED=after2_ED * second.norm4.weight,
    )


def _weights(decoder: MaskDecoder, vectors: _Vectors) -> FactoredWeights:
    first, second = decoder.transformer.blocks
    see, final = second.cross_attn_token_to_image, decoder.transformer.final_attn_token_to_image
    up = cast(nn.ConvTranspose2d, decoder.output_upscaling[0])
    assert up.bias is not None
    u1_XD, v1_XD, u2_XD = vectors.u1_XD, vectors.v1_XD, vectors.u2_XD
    return FactoredWeights(
        u1_XE=u1_XD @ vectors.after1_ED.T,
        v1_XE=v1_XD @ vectors.after2_ED.T,
        u2_XE=u2_XD @ vectors.after2_ED.T,
        u1_u1_XX=u1_XD @ u1_XD.T,
        v1_v1_XX=v1_XD @ v1_XD.T,
        u2_v1_XX=u2_XD @ v1_XD.T,
        u2_u2_XX=u2_XD @ u2_XD.T,
        value2_C=see.v_proj(first.norm4.bias),
        value3_C=final.v_proj(second.norm4.bias),
        conv_U=_convolution(decoder) @ second.norm4.bias + up.bias.repeat(4),
    )


def _rows(decoder: MaskDecoder, vectors: _Vectors, plain_DI: Tensor, placed_DI: Tensor, position_DI: Tensor) -> Tensor:
    """All rows of the tiles, in their order."""
    transformer = decoder.transformer
    norm, c = transformer.blocks[0].norm4, transformer.blocks[1].cross_attn_image_to_token.q_proj.out_features
    k_DI = _centered(plain_DI, 0)
    x_DI = _centered(k_DI * norm.weight[:, None], 0)
    blocks1, singles1 = _rows_of_k(vectors, k_DI, c)
    blocks2, singles2, base_UI = _rows_of_x(vectors, x_DI, c)
    blocks = blocks1 | blocks2 | _rows_of_places(transformer, placed_DI, position_DI)
    singles = singles1 | singles2
    ordered = [*(blocks[n] for n in np.arange(tiles.BLOCKS)), base_UI, *(singles[n] for n in np.arange(tiles.SINGLES))]
    return torch.cat(ordered)


def _rows_of_k(vectors: _Vectors, k_DI: Tensor, c: int) -> tuple[Rows, Rows]:
    """What the image's part of the keys after block 1 becomes: blocks of rows, and single ones."""
    products_EI = torch.cat([vectors.u1_XD, vectors.after1_ED]) @ k_DI
    cross1, constant1, key2, value2, ask2 = products_EI.split([c, 1, c, c, c])
    blocks = {tiles.CROSS1: cross1, tiles.KEY2: key2, tiles.VALUE2: value2, tiles.ASK2: ask2}
    return blocks, {tiles.SQUARE1: k_DI.square().sum(0, keepdim=True), tiles.CONSTANT1: constant1}


def _rows_of_x(vectors: _Vectors, x_DI: Tensor, c: int) -> tuple[Rows, Rows, Tensor]:
    """The same for the keys after block 2, and what becomes the first convolution's output."""
    products_EI = torch.cat([vectors.v1_XD, vectors.u2_XD, vectors.after2_ED]) @ x_DI
    cross2, constant2, cross3, constant3, key3, value3, base_UI = products_EI.split(
        [c, 1, c, 1, c, c, len(vectors.after2_ED) - 2 * c]
    )
    blocks = {tiles.CROSS2: cross2, tiles.CROSS3: cross3, tiles.KEY3: key3, tiles.VALUE3: value3}
    singles = {
        tiles.SQUARE2: x_DI.square().sum(0, keepdim=True),
        tiles.CONSTANT2: constant2,
        tiles.CONSTANT3: constant3,
    }
    return blocks, singles, base_UI


def _rows_of_places(transformer: TwoWayTransformer, placed_DI: Tensor, position_DI: Tensor) -> Rows:
    """What is projected of the image tokens' places, with the norms' biases; in block 1 of the tokens themselves."""
    first, second = transformer.blocks
    place1_DI, place2_DI = position_DI + first.norm4.bias[:, None], position_DI + second.norm4.bias[:, None]
    return {
        tiles.ASK1: _apply(first.cross_attn_image_to_token.q_proj, placed_DI),
        tiles.PLACED_KEY2: _apply(second.cross_attn_token_to_image.k_proj, place1_DI),
        tiles.PLACED_ASK2: _apply(second.cross_attn_image_to_token.q_proj, place1_DI),
        tiles.PLACED_KEY3: _apply(transformer.final_attn_token_to_image.k_proj, place2_DI),
    }


def _convolution(decoder: MaskDecoder) -> Tensor:
    """The first transposed convolution as a linear layer whose four places lie below each other: (4U, D)."""
    up = cast(nn.ConvTranspose2d, decoder.output_upscaling[0])
    return up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels)


def _apply(linear: nn.Linear, x_DI: Tensor) -> Tensor:
    """A linear layer on tokens that lie side by side: (channels, I)."""
    return torch.addmm(linear.bias[:, None], linear.weight, x_DI)


def _in_tiles(rows_XI: Tensor, grid: int) -> Tensor:
    """(tiles, X, N + PAD): the tokens in tiles, with room between the rows."""
    size = tiles.tile_size(grid)
    return F.pad(rows_XI.unflatten(1, (-1, size)).transpose(0, 1), (0, tiles.PAD)).contiguous()


def _centered(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)
