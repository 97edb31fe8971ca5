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

from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.kernels import tiles
from amg.kernels.decoder import Array, Scratch, Sums, first_pass, second_pass
from amg.kernels.upscale import Canvas, Upscaling, draw
from amg.sam.decoder import MaskDecoder
from amg.sam.factored_image import FactoredImage
from amg.sam.layers import LayerNorm2d
from amg.sam.transformer import Attention, TwoWayBlock
from amg.tensors import Workspace, from_host, to_host

CHUNK = 16
"""Prompts that go over the image's tokens together, at most; a multiple of 4."""


def decode_factored(
    decoder: MaskDecoder, image: FactoredImage, sparse_PKD: Tensor, workspace: Workspace, *, multimask: bool = True
) -> tuple[Tensor, Tensor]:
    """The logits (P, M, L, L) and IoU (P, M) of `MaskDecoder.forward`, without gradients.

    The logits lie in the workspace: the next call with it overwrites them. What `factor` was told nobody needs stays as
    it was there.
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
    first, second = decoder.transformer.blocks
    room = _Room(image, tokens_BTD, first.cross_attn_image_to_token, workspace)

    queries_BTD = first.look_together(tokens_BTD, image.k_1hIc, image.v_1hIc)
    told1 = _Told(first.cross_attn_image_to_token, queries_BTD, tokens_BTD)
    queries_BTD = second.attend_to_each_other(queries_BTD, tokens_BTD)
    found_BTD = _look_once(second, image, told1, queries_BTD + tokens_BTD, room)
    queries_BTD = second.take_in(queries_BTD, found_BTD)
    told2 = _Told(second.cross_attn_image_to_token, queries_BTD, tokens_BTD)
    found_BTD = _look_twice(decoder, image, told1, told2, queries_BTD + tokens_BTD, room)
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
        count, _, self.pitch = image.tiles_QXN.shape
        self.n = self.pitch - tiles.PAD
        self.image, self.workspace, self.like = to_host(image.tiles_QXN), workspace, tokens_BTD
        self.factors = self("factors", count, self.b, tiles.whole_rows(2 * self.f + 1), self.pitch)
        a, b, c, d = (self(f"scores{n}", self.heads, self.b * self.t, self.pitch) for n in range(4))
        self.scratch = Scratch(a, b, c, d, self("weights", self.r, self.pitch), self("rows", 3, self.pitch))

    def __call__(self, name: str, *shape: int) -> Array:
        return to_host(self.workspace.like(self.like, name, *shape))

    def sums(self, columns: int) -> Sums:
        sums = Sums(
            most_BR=self("most", self.b, self.r),
            total_BR=self("total", self.b, self.r),
            seen_BRF=self("seen_factors", self.b, self.r, columns),
            seen_hXc=self("seen_channels", self.heads, self.b * self.t, self.c),
        )
        for array in (sums.total_BR, sums.seen_BRF, sums.seen_hXc):
            array.fill(0)
        return sums


def _look_once(block: TwoWayBlock, image: FactoredImage, told: _Told, queries_BTD: Tensor, room: _Room) -> Tensor:
    """What the tokens find in the image as block 1 left it: (B, T, D)."""
    attention, weights = block.cross_attn_token_to_image, image.weights
    q_hXc = _by_head(attention.q_proj(queries_BTD), attention)
    key_BFC, value_BFC, _ = (told.coefficients_BFX @ weights.u1_XE).chunk(3, dim=-1)
    mix_BXF = _stack(_contract(q_hXc, key_BFC), told.products(weights.u1_u1_XX, told))
    sums = room.sums(tiles.whole_rows(room.f))
    k1, v1, q2, mix = (to_host(given) for given in (told.k_hXc, told.v_hXc, q_hXc, mix_BXF))
    width, eps = queries_BTD.shape[-1], np.float32(block.norm4.eps)
    mixed = room("y", len(mix[0]), room.pitch)
    first_pass(room.image, k1, v1, q2, mix, room.n, width, eps, room.factors, sums, room.scratch, mixed)
    return attention.out_proj(_seen(sums, value_BFC, room) + weights.value2_C)


def _look_twice(
    decoder: MaskDecoder, image: FactoredImage, told1: _Told, told2: _Told, queries_BTD: Tensor, room: _Room
) -> Tensor:
    """What the tokens find in the image as block 2 left it: (B, T, D)."""
    transformer, weights = decoder.transformer, image.weights
    attention = transformer.final_attn_token_to_image
    q_hXc = _by_head(attention.q_proj(queries_BTD), attention)
    c = attention.q_proj.out_features
    ask_BFC = told1.coefficients_BFX @ weights.u1_XE[:, 2 * c :]
    key1_BFC, value1_BFC = (told1.coefficients_BFX @ weights.v1_XE[:, : 2 * c]).chunk(2, dim=-1)
    key2_BFC, value2_BFC = (told2.coefficients_BFX @ weights.u2_XE[:, : 2 * c]).chunk(2, dim=-1)
    ask_BRF = _contract(told2.k_hXc, ask_BFC).contiguous()
    squares1, squares2 = told1.products(weights.v1_v1_XX, told1), told2.products(weights.u2_u2_XX, told2)
    mix1_BXF = _stack(_contract(q_hXc, key1_BFC), squares1, 2 * told2.products(weights.u2_v1_XX, told1))
    mix2_BXF = _stack(_contract(q_hXc, key2_BFC), squares2)
    sums = room.sums(tiles.whole_rows(2 * room.f))
    k2, v1, v2, q3 = (to_host(given) for given in (told2.k_hXc, told1.v_hXc, told2.v_hXc, q_hXc))
    ask, mix1, mix2 = (to_host(given) for given in (ask_BRF, mix1_BXF, mix2_BXF))
    width, eps = queries_BTD.shape[-1], np.float32(transformer.blocks[1].norm4.eps)
    mixed = room("y", len(mix1[0]), room.pitch), room("z", len(mix2[0]), room.pitch)
    second_pass(
        room.image, v1, k2, v2, q3, ask, mix1, mix2, room.n, width, eps, room.factors, sums, room.scratch, *mixed
    )
    return attention.out_proj(_seen(sums, torch.cat([value1_BFC, value2_BFC], dim=1), room) + weights.value3_C)


def _draw(
    decoder: MaskDecoder,
    image: FactoredImage,
    told1: _Told,
    told2: _Told,
    weights_PMV: Tensor,
    room: _Room,
    logits_PMLL: Tensor,
) -> None:
    weights, u = image.weights, len(image.weights.conv_U)
    first_BFU = told1.coefficients_BFX @ weights.v1_XE[:, -u:]
    second_BFU = told2.coefficients_BFX @ weights.u2_XE[:, -u:]
    constant_B1U = weights.conv_U.expand(room.b, 1, -1)
    conv_BUF = torch.cat([first_BFU, second_BFU, constant_B1U], dim=1).transpose(1, 2).contiguous()
    upscaling = _upscaling(decoder)
    drawn = tiles.drawn_size(room.n, image.grid) + tiles.PAD
    canvas = Canvas(
        room("y", u, drawn),
        room("z", len(upscaling.conv_XU), drawn),
        room("drawn", 16, weights_PMV.shape[1], drawn),
    )
    masks = to_host(weights_PMV.contiguous())
    order = image.grid, image.by_columns, image.lines
    draw(room.image, to_host(conv_BUF), upscaling, masks, room.n, *order, room.factors, to_host(logits_PMLL), canvas)


def _upscaling(decoder: MaskDecoder) -> Upscaling:
    _, norm, _, up, _ = decoder.output_upscaling
    up, norm = cast(nn.ConvTranspose2d, up), cast(LayerNorm2d, norm)
    assert up.bias is not None
    conv_XU = up.weight.permute(2, 3, 1, 0).reshape(-1, up.in_channels)
    return Upscaling(to_host(norm.weight), to_host(norm.bias), np.float32(norm.eps), to_host(conv_XU), to_host(up.bias))


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
    return F.pad(rows, (0, 0, 0, tiles.whole_rows(rows.shape[1]) - rows.shape[1]))


def _by_head(x_BTC: Tensor, attention: Attention) -> Tensor:
    """Queries or keys, scaled for the scores: (h, B*T, c)."""
    x_BThc = x_BTC.unflatten(2, (attention.heads, -1))
    return (x_BThc * x_BThc.shape[-1] ** -0.5).permute(2, 0, 1, 3).flatten(1, 2).contiguous()
