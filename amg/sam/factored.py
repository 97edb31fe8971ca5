"""The mask decoder in factors: no tensor of all image tokens and channels depends on a prompt before the upscaling.

A prompt with T tokens answers each image token with a mixture of the T values of each head. So what block 1 makes of
the image tokens lies, token by token, in the space of the image's own vector and of h*T vectors of the prompt; the
weights of a head sum to 1, so h*(T-1) and a constant are enough: F = 49 for one point. With 49 more after block 2,

    keys1 = g1 * y1 / s1 + b1,  y1 = K + F1' U1,             s1^2 = |y1|^2 / D + eps
    keys2 = g2 * y2 / s2 + b2,  y2 = X / s1 + F1' V1 + F2' U2,  s2^2 = |y2|^2 / D + eps

where K and X belong to the image, F1 and F2 are a prompt's factors (49 numbers an image token; F1 of the second line
holds 1/s1), and U1, V1, U2 are 49 vectors of the prompt. All vectors are centered over their channels, so that a layer
norm's mean is zero. Whatever is linear in the keys - scores, values, the first convolution - is then the same of the
image's part, once per image, and of 49 or 98 vectors, and the squares are those of 98 vectors, from their products.

This is `MaskDecoder.forward` up to float32 rounding in a quarter of its multiplications, and in three passes over the
image tokens that keep to the caches (`kernels/decoder.py`). It needs two blocks and a CPU; `shared.py` does the rest.

Letters as in `shared.py`, and: B prompts of a chunk, X = C + 1 coefficients of a vector, N image tokens of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from amg.kernels import decoder as kernels
from amg.kernels.simd import ROWS
from amg.sam.decoder import MaskDecoder
from amg.sam.layers import LayerNorm2d
from amg.sam.transformer import Attention, TwoWayBlock
from amg.tensors import Workspace, from_host, to_host

CHUNK = 8
"""Prompts that go over the image's tokens together, at most; a multiple of 4."""

MOST_TOKENS = 8
"""Tokens of a prompt's own, beside the decoder's five: factors grow with their number, and their squares."""


Array = NDArray[np.float32]
Sums = tuple[Array, Array, Array, Array]


@dataclass(frozen=True, slots=True, eq=False)
class FactoredImage:
    """The image's side of the decoder, and the weights in the forms that a prompt's factors are multiplied with.

    `tiles_QXN`: the rows of `kernels/decoder.py`. `k_1hIc`, `v_1hIc`: what prompt tokens of block 1 attend to.
    A prompt's vectors are `coefficients_FX @ vectors_XD`; here are the products of those X vectors with the weights
    that follow them, and with each other. E: the outputs of several weights side by side.
    """

    tiles_QXN: Tensor
    k_1hIc: Tensor
    v_1hIc: Tensor
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
    grid: int


def can_factor(decoder: MaskDecoder, features_1DGG: Tensor, tokens: int) -> bool:
    """Whether prompts of so many tokens can be decoded in factors, and with profit; `shared.py` does the others."""
    on_host = features_1DGG.device.type == "cpu" and features_1DGG.dtype == torch.float32
    blocks = _blocks(decoder)
    heads = {block.cross_attn_image_to_token.heads for block in blocks}
    widths = {block.cross_attn_image_to_token.q_proj.out_features for block in blocks}
    fits = len(blocks) == 2 and all(h % ROWS == 0 for h in heads) and all(w % (4 * max(heads)) == 0 for w in widths)
    return on_host and fits and tokens <= MOST_TOKENS and kernels.tile_size(features_1DGG.shape[-1]) > 0


def factor(decoder: MaskDecoder, features_1DGG: Tensor, position_1DGG: Tensor, no_mask_1DGG: Tensor) -> FactoredImage:
    """Everything of an image that does not depend on the prompt."""
    first, second = _blocks(decoder)
    to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    see, tell = second.cross_attn_token_to_image, second.cross_attn_image_to_token
    final = decoder.transformer.final_attn_token_to_image
    up = cast(nn.ConvTranspose2d, decoder.output_upscaling[0])
    assert up.bias is not None
    conv_UD = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels)
    g1_D, b1_D, g2_D, b2_D = first.norm4.weight, first.norm4.bias, second.norm4.weight, second.norm4.bias

    u1_XD = _centered(torch.cat([to_token.out_proj.weight.T, to_token.out_proj.bias[None]]), 1)
    v1_XD = _centered(u1_XD * g1_D, 1)
    u2_XD = _centered(torch.cat([tell.out_proj.weight.T, (tell.out_proj.bias + b1_D)[None]]), 1)
    after1_ED = torch.cat([see.k_proj.weight, see.v_proj.weight, tell.q_proj.weight]) * g1_D
    after2_ED = torch.cat([final.k_proj.weight, final.v_proj.weight, conv_UD]) * g2_D

    position_DI = position_1DGG[0].flatten(1)
    plain_DI = (features_1DGG + no_mask_1DGG)[0].flatten(1)
    placed_DI = plain_DI + position_DI
    k_DI = _centered(plain_DI, 0)
    x_DI = _centered(k_DI * g1_D[:, None], 0)
    c, u = tell.q_proj.out_features, len(conv_UD)
    cross1, constant1, key2, value2, ask2 = (torch.cat([u1_XD, after1_ED]) @ k_DI).split([c, 1, c, c, c])
    cross2, constant2, cross3, constant3, key3, value3, base = (torch.cat([v1_XD, u2_XD, after2_ED]) @ x_DI).split(
        [c, 1, c, 1, c, c, u]
    )
    place1_DI, place2_DI = position_DI + b1_D[:, None], position_DI + b2_D[:, None]
    rows = {
        kernels.ASK1: _apply(to_token.q_proj, placed_DI),
        kernels.CROSS1: cross1,
        kernels.KEY2: key2,
        kernels.PLACED_KEY2: _apply(see.k_proj, place1_DI),
        kernels.VALUE2: value2,
        kernels.ASK2: ask2,
        kernels.PLACED_ASK2: _apply(tell.q_proj, place1_DI),
        kernels.CROSS2: cross2,
        kernels.CROSS3: cross3,
        kernels.KEY3: key3,
        kernels.PLACED_KEY3: _apply(final.k_proj, place2_DI),
        kernels.VALUE3: value3,
    }
    singles = {
        kernels.SQUARE1: k_DI.square().sum(0, keepdim=True),
        kernels.CONSTANT1: constant1,
        kernels.SQUARE2: x_DI.square().sum(0, keepdim=True),
        kernels.CONSTANT2: constant2,
        kernels.CONSTANT3: constant3,
    }
    ordered = [*(rows[block] for block in range(kernels.BLOCKS)), base, *(singles[n] for n in range(kernels.SINGLES))]
    return FactoredImage(
        tiles_QXN=_tiles(torch.cat(ordered), features_1DGG.shape[-1]),
        k_1hIc=to_image.split(_apply(to_image.k_proj, placed_DI).T[None]).contiguous(),
        v_1hIc=to_image.split(_apply(to_image.v_proj, plain_DI).T[None]).contiguous(),
        u1_XE=u1_XD @ after1_ED.T,
        v1_XE=v1_XD @ after2_ED.T,
        u2_XE=u2_XD @ after2_ED.T,
        u1_u1_XX=u1_XD @ u1_XD.T,
        v1_v1_XX=v1_XD @ v1_XD.T,
        u2_v1_XX=u2_XD @ v1_XD.T,
        u2_u2_XX=u2_XD @ u2_XD.T,
        value2_C=see.v_proj(b1_D),
        value3_C=final.v_proj(b2_D),
        conv_U=conv_UD @ b2_D + up.bias.repeat(4),
        grid=features_1DGG.shape[-1],
    )


def decode_factored(
    decoder: MaskDecoder, image: FactoredImage, sparse_PKD: Tensor, workspace: Workspace, *, multimask: bool = True
) -> tuple[Tensor, Tensor]:
    """The logits (P, M, L, L) and IoU (P, M) of `MaskDecoder.forward`, without gradients.

    The logits lie in the workspace: the next call with it overwrites them.
    """
    side, m = 4 * image.grid, len(decoder.output_hypernetworks_mlps) - 1 if multimask else 1
    logits_PMLL = workspace.like(sparse_PKD, "logits", len(sparse_PKD), m, side, side)
    iou = [
        _decode(
            decoder, image, sparse_PKD[start : start + CHUNK], logits_PMLL[start : start + CHUNK], workspace, multimask
        )
        for start in range(0, len(sparse_PKD), CHUNK)
    ]
    return logits_PMLL, torch.cat(iou)


def _decode(
    decoder: MaskDecoder,
    image: FactoredImage,
    sparse_PKD: Tensor,
    logits_PMLL: Tensor,
    workspace: Workspace,
    multimask: bool,
) -> Tensor:
    """Write the logits of a chunk, return the IoU."""
    p = len(sparse_PKD)
    sparse_BKD = torch.cat([sparse_PKD, sparse_PKD[-1:].expand(-p % 4, -1, -1)])
    tokens_BTD = decoder.tokens(sparse_BKD)
    first, second = _blocks(decoder)
    room = _Room(image, tokens_BTD, first.cross_attn_image_to_token, workspace)

    queries_BTD = _first_tokens(first, image, tokens_BTD)
    told1 = _Told(first.cross_attn_image_to_token, queries_BTD, tokens_BTD)
    queries_BTD = second.attend_to_each_other(queries_BTD, tokens_BTD)
    found_BTD = _first_pass(second, image, told1, queries_BTD + tokens_BTD, room)
    queries_BTD = second.take_in(queries_BTD, found_BTD)
    told2 = _Told(second.cross_attn_image_to_token, queries_BTD, tokens_BTD)
    found_BTD = _second_pass(decoder, image, told1, told2, queries_BTD + tokens_BTD, room)
    queries_BTD = decoder.transformer.norm_final_attn(queries_BTD + found_BTD)
    weights_BMV, iou_BM = decoder.read(queries_BTD, multimask=multimask)
    _draw(decoder, image, told1, told2, weights_BMV[:p], room, logits_PMLL)
    return iou_BM[:p]


class _Told:
    """What prompt tokens tell the image tokens in one block.

    `k_hXc` scaled keys; `v_hXc` values less the last token's, and the last token's; `coefficients_BFX` the same values
    as factors F of X vectors: those of the attention's channels, and the constant.
    """

    def __init__(self, attention: Attention, queries_BTD: Tensor, tokens_BTD: Tensor) -> None:
        self.k_hXc = _by_head(attention.k_proj(queries_BTD + tokens_BTD), attention)
        v_BThc = attention.v_proj(queries_BTD).unflatten(2, (attention.heads, -1))
        last_B1hc = v_BThc[:, -1:]
        v_BThc = torch.cat([v_BThc[:, :-1] - last_B1hc, last_B1hc], dim=1)
        b, t, h, c = v_BThc.shape
        self.v_hXc = v_BThc.permute(2, 0, 1, 3).flatten(1, 2).contiguous()
        coefficients_BFX = v_BThc.new_zeros(b, h * (t - 1) + 1, h * c + 1)
        own_Bhthc = coefficients_BFX[:, :-1, :-1].unflatten(1, (h, t - 1)).unflatten(3, (h, c))
        own_Bhthc.diagonal(dim1=1, dim2=3).copy_(v_BThc[:, :-1].permute(0, 1, 3, 2))
        coefficients_BFX[:, -1, :-1] = last_B1hc.flatten(1)
        coefficients_BFX[:, -1, -1] = 1
        self.coefficients_BFX = coefficients_BFX

    def products(self, vectors_XX: Tensor, other: _Told) -> Tensor:
        """Of all this prompt's vectors with all of another's, from the products of the X vectors: (B, F, F)."""
        return self.coefficients_BFX @ vectors_XX @ other.coefficients_BFX.transpose(1, 2)


class _Room:
    """The arrays of one chunk, in a workspace."""

    def __init__(self, image: FactoredImage, tokens_BTD: Tensor, attention: Attention, workspace: Workspace) -> None:
        self.b, self.t = tokens_BTD.shape[:2]
        self.heads, self.c = attention.heads, attention.q_proj.out_features // attention.heads
        self.f = self.heads * (self.t - 1) + 1
        self.r = self.heads * self.t
        self.tiles, _, self.pitch = image.tiles_QXN.shape
        self.n = self.pitch - kernels.PAD
        self.image, self.workspace, self.like = to_host(image.tiles_QXN), workspace, tokens_BTD
        self.factors = self("factors", self.tiles, self.b, kernels.whole_rows(2 * self.f + 1), self.pitch)
        scores = self.heads, self.b * self.t, self.pitch
        self.scores1, self.scores2 = self("scores1", *scores), self("scores2", *scores)
        self.scores3, self.scores4 = self("scores3", *scores), self("scores4", *scores)
        self.weights = self("weights", self.r, self.pitch)
        self.rows = self("rows", 8, self.pitch)

    def __call__(self, name: str, *shape: int) -> Array:
        return to_host(self.workspace.like(self.like, name, *shape))

    def sums(self, columns: int) -> Sums:
        """Of an attention over all tiles: greatest scores, sums of weights, factors seen, channels seen."""
        most_BR, total_BR = self("most", self.b, self.r), self("total", self.b, self.r)
        seen_BRF = self("seen_factors", self.b, self.r, columns)
        seen_hXc = self("seen_channels", self.heads, self.b * self.t, self.c)
        for array in (total_BR, seen_BRF, seen_hXc):
            array.fill(0)
        return most_BR, total_BR, seen_BRF, seen_hXc


def _first_tokens(block: TwoWayBlock, image: FactoredImage, tokens_BTD: Tensor) -> Tensor:
    """The tokens after block 1's look at the image; those of all prompts attend to it as one long sequence."""
    queries_BTD = block.attend_to_each_other(tokens_BTD, tokens_BTD)
    attention = block.cross_attn_token_to_image
    q_1hXc = attention.split(attention.q_proj(queries_BTD + tokens_BTD).flatten(0, 1)[None])
    found_1XC = attention.join(F.scaled_dot_product_attention(q_1hXc, image.k_1hIc, image.v_1hIc))
    return block.take_in(queries_BTD, attention.out_proj(found_1XC).view_as(queries_BTD))


def _first_pass(block: TwoWayBlock, image: FactoredImage, told: _Told, queries_BTD: Tensor, room: _Room) -> Tensor:
    attention = block.cross_attn_token_to_image
    q_hXc = _by_head(attention.q_proj(queries_BTD), attention)
    key_BFC, value_BFC, _ = (told.coefficients_BFX @ image.u1_XE).chunk(3, dim=-1)
    mix_BXF = _stack(_contract(q_hXc, key_BFC), told.products(image.u1_u1_XX, told))
    sums = most_BR, total_BR, seen_BRF, seen_hXc = room.sums(kernels.whole_rows(room.f))
    y_YN = room("y", mix_BXF.shape[1], room.pitch)
    kernels.first_pass(
        room.image,
        to_host(told.k_hXc),
        to_host(told.v_hXc),
        to_host(q_hXc),
        to_host(mix_BXF),
        room.n,
        queries_BTD.shape[-1],
        np.float32(block.norm4.eps),
        room.factors,
        most_BR,
        total_BR,
        seen_BRF,
        seen_hXc,
        room.scores1,
        room.scores2,
        room.scores3,
        y_YN,
        room.weights,
        room.rows,
    )
    return attention.out_proj(_seen(sums, value_BFC, room) + image.value2_C)


def _second_pass(
    decoder: MaskDecoder, image: FactoredImage, told1: _Told, told2: _Told, queries_BTD: Tensor, room: _Room
) -> Tensor:
    attention, block = decoder.transformer.final_attn_token_to_image, _blocks(decoder)[1]
    q_hXc = _by_head(attention.q_proj(queries_BTD), attention)
    c = q_hXc.shape[0] * q_hXc.shape[2]
    ask_BFC = told1.coefficients_BFX @ image.u1_XE[:, 2 * c :]
    key1_BFC, value1_BFC = (told1.coefficients_BFX @ image.v1_XE[:, : 2 * c]).chunk(2, dim=-1)
    key2_BFC, value2_BFC = (told2.coefficients_BFX @ image.u2_XE[:, : 2 * c]).chunk(2, dim=-1)
    ask_BRF = _contract(told2.k_hXc, ask_BFC)
    mix1_BXF = _stack(
        _contract(q_hXc, key1_BFC),
        told1.products(image.v1_v1_XX, told1),
        2 * told2.products(image.u2_v1_XX, told1),
    )
    mix2_BXF = _stack(_contract(q_hXc, key2_BFC), told2.products(image.u2_u2_XX, told2))
    sums = most_BR, total_BR, seen_BRF, seen_hXc = room.sums(kernels.whole_rows(2 * room.f))
    y_YN, z_YN = room("y", mix1_BXF.shape[1], room.pitch), room("z", mix2_BXF.shape[1], room.pitch)
    kernels.second_pass(
        room.image,
        to_host(told1.v_hXc),
        to_host(told2.k_hXc),
        to_host(told2.v_hXc),
        to_host(q_hXc),
        to_host(ask_BRF.contiguous()),
        to_host(mix1_BXF),
        to_host(mix2_BXF),
        room.n,
        queries_BTD.shape[-1],
        np.float32(block.norm4.eps),
        room.factors,
        most_BR,
        total_BR,
        seen_BRF,
        seen_hXc,
        room.scores1,
        room.scores2,
        room.scores3,
        room.scores4,
        y_YN,
        z_YN,
        room.weights,
        room.rows,
    )
    return attention.out_proj(_seen(sums, torch.cat([value1_BFC, value2_BFC], dim=1), room) + image.value3_C)


def _draw(
    decoder: MaskDecoder,
    image: FactoredImage,
    told1: _Told,
    told2: _Told,
    weights_PMV: Tensor,
    room: _Room,
    logits_PMLL: Tensor,
) -> None:
    _, norm, _, up, _ = decoder.output_upscaling
    up, norm = cast(nn.ConvTranspose2d, up), cast(LayerNorm2d, norm)
    assert up.bias is not None
    u = len(image.conv_U)
    first_BFU, second_BFU = told1.coefficients_BFX @ image.v1_XE[:, -u:], told2.coefficients_BFX @ image.u2_XE[:, -u:]
    constant_B1U = image.conv_U.expand(room.b, 1, -1)
    conv_BUF = torch.cat([first_BFU, second_BFU, constant_B1U], dim=1).transpose(1, 2).contiguous()
    conv2_VU = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels)
    drawn = kernels.drawn_size(room.n, image.grid) + kernels.PAD
    kernels.draw(
        room.image,
        to_host(conv_BUF),
        to_host(norm.weight),
        to_host(norm.bias),
        np.float32(norm.eps),
        to_host(conv2_VU),
        to_host(up.bias),
        to_host(weights_PMV.contiguous()),
        room.n,
        image.grid,
        room.factors,
        to_host(logits_PMLL),
        room("y", u, drawn),
        room("z", len(conv2_VU), drawn),
        room("drawn", 16, weights_PMV.shape[1], drawn),
    )


def _seen(sums: Sums, value_BFC: Tensor, room: _Room) -> Tensor:
    """The values that tokens found in the image (B, T, C), but for the constant, from an attention's sums."""
    _, total_BR, seen_BRF, seen_hXc = (from_host(array) for array in sums)
    b, t, h, f = room.b, room.t, room.heads, value_BFC.shape[1]
    factors_BhTF = seen_BRF[..., :f].unflatten(1, (h, t))
    value_BhFc = value_BFC.unflatten(2, (h, -1)).transpose(1, 2)
    seen_BhTc = factors_BhTF @ value_BhFc + seen_hXc.unflatten(1, (b, t)).transpose(0, 1)
    return (seen_BhTc / total_BR.view(b, h, t, 1)).transpose(1, 2).flatten(2)


def _contract(q_hXc: Tensor, vectors_BFC: Tensor) -> Tensor:
    """Queries times vectors, head by head: (B, h*T, F)."""
    vectors_BhcF = vectors_BFC.unflatten(2, (len(q_hXc), -1)).permute(0, 2, 3, 1)
    q_BhTc = q_hXc.unflatten(1, (len(vectors_BFC), -1)).transpose(0, 1)
    return (q_BhTc @ vectors_BhcF).flatten(1, 2)


def _stack(*parts_BxF: Tensor) -> Tensor:
    """Rows of all parts below each other, and rows of zeros up to a number that the kernels want."""
    rows = torch.cat(parts_BxF, dim=1)
    return F.pad(rows, (0, 0, 0, kernels.whole_rows(rows.shape[1]) - rows.shape[1]))


def _by_head(x_BTC: Tensor, attention: Attention) -> Tensor:
    """Queries or keys, scaled for the scores: (h, B*T, c)."""
    x_BThc = x_BTC.unflatten(2, (attention.heads, -1))
    return (x_BThc * x_BThc.shape[-1] ** -0.5).permute(2, 0, 1, 3).flatten(1, 2).contiguous()


def _apply(linear: nn.Linear, x_DI: Tensor) -> Tensor:
    """A linear layer on tokens that lie side by side: (channels, I)."""
    return torch.addmm(linear.bias[:, None], linear.weight, x_DI)


def _tiles(rows_XI: Tensor, grid: int) -> Tensor:
    """(tiles, X, N + PAD): the tokens in tiles, with room between the rows."""
    size = kernels.tile_size(grid)
    return F.pad(rows_XI.unflatten(1, (-1, size)).transpose(0, 1), (0, kernels.PAD)).contiguous()


def _centered(x: Tensor, dim: int) -> Tensor:
    return x - x.mean(dim, keepdim=True)


def _blocks(decoder: MaskDecoder) -> list[TwoWayBlock]:
    return [cast(TwoWayBlock, block) for block in decoder.transformer.layers]
