"""Many single-point prompts on one image: what they share is computed once, and few tokens make cheap attention.

The results are those of `MaskDecoder` up to float32 rounding; three facts save two thirds of its time.

1. Before the first block's last step the image tokens do not depend on the prompt: their projections for that block
   are made once per image (`share`), and the tokens of all prompts attend to them as one long sequence.
2. A prompt has T = 7 tokens, in 8 heads 56 rows, fewer than the 128 channels that an attention projects each of the
   4096 image tokens to. So the projection is moved to the token's side, (Wq t) . (Wk i) = (Wk' Wq t) . i, and the
   image tokens are only ever multiplied by 56 rows. A key's bias adds the same to all scores of a row, which softmax
   ignores; a value's bias passes through, as the weights sum to 1.
3. A transposed convolution of kernel 2 and stride 2 is a linear layer whose outputs lie side by side; they are put in
   their places at the end, when only the masks are left.

All large tensors of a chunk live in a `Workspace` that the next chunk uses again: to get memory from the system and to
give it back costs more than the arithmetic, and between small allocations that stay it leaves the heap in pieces.

Letters as in `transformer.py`, and: C channels inside an attention, R = T*h rows of a prompt, U channels that the
weights of a mask combine.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from amg.sam.decoder import MaskDecoder
from amg.sam.layers import LayerNorm2d, gelu
from amg.sam.transformer import Attention, TwoWayBlock
from amg.tensors import Workspace

Scratch = Callable[..., Tensor]
"""`work(name, *shape)`: a tensor of the workspace, of the image's type and device."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedImage:
    """The image's side of the decoder for prompts without a mask, for one crop.

    `position_1ID` is where the image tokens are. For the first block: `k_1hIc` and `v_1hIc` what prompt tokens attend
    to, `q_IC` what the image tokens ask them, `base_1ID` what the answer is added to.
    """

    position_1ID: Tensor
    k_1hIc: Tensor
    v_1hIc: Tensor
    q_IC: Tensor
    base_1ID: Tensor

    @property
    def grid(self) -> int:
        return round(self.q_IC.shape[0] ** 0.5)


def share(decoder: MaskDecoder, features_1DGG: Tensor, position_1DGG: Tensor, no_mask_1DGG: Tensor) -> SharedImage:
    """Everything of an image that does not depend on the prompt."""
    first = decoder.transformer.blocks[0]
    keys_1ID = (features_1DGG + no_mask_1DGG).flatten(2).transpose(1, 2).contiguous()
    position_1ID = position_1DGG.flatten(2).transpose(1, 2).contiguous()
    placed_1ID = keys_1ID + position_1ID
    to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    return SharedImage(
        position_1ID=position_1ID,
        k_1hIc=to_image.split(to_image.k_proj(placed_1ID)).contiguous(),
        v_1hIc=to_image.split(to_image.v_proj(keys_1ID)).contiguous(),
        q_IC=to_token.q_proj(placed_1ID)[0],
        base_1ID=keys_1ID + to_token.out_proj.bias,
    )


def decode_shared(
    decoder: MaskDecoder, image: SharedImage, sparse_PKD: Tensor, workspace: Workspace, *, multimask: bool = True
) -> tuple[Tensor, Tensor]:
    """The logits (P, M, L, L) and IoU (P, M) of `MaskDecoder.forward`, without gradients.

    The logits lie in the workspace: the next call with it overwrites them.
    """
    tokens_PTD = decoder.tokens(sparse_PKD)
    first, *later = decoder.transformer.blocks
    work = partial(workspace.like, image.base_1ID)
    queries_PTD, keys_PID = _first_block(first, image, tokens_PTD, work)
    for block in later:
        queries_PTD, keys_PID = _block(block, queries_PTD, keys_PID, tokens_PTD, image, work)
    final = decoder.transformer.final_attn_token_to_image
    placed_PID = torch.add(keys_PID, image.position_1ID, out=work("placed", *keys_PID.shape))
    found_PTD = tokens_ask_image(final, queries_PTD + tokens_PTD, placed_PID, keys_PID, work)
    queries_PTD = decoder.transformer.norm_final_attn(queries_PTD + found_PTD)
    weights_PMU, iou_PM = decoder.read(queries_PTD, multimask=multimask)
    return draw(decoder.output_upscaling, keys_PID, weights_PMU, image.grid, work), iou_PM


def _first_block(block: TwoWayBlock, image: SharedImage, tokens_PTD: Tensor, work: Scratch) -> tuple[Tensor, Tensor]:
    """`TwoWayBlock.forward` for a first block, with the image's side already projected."""
    queries_PTD = block.look_together(tokens_PTD, image.k_1hIc, image.v_1hIc)
    attention = block.cross_attn_image_to_token
    k_PThc = keys_that_tell(attention, queries_PTD + tokens_PTD)
    p, t, h, c = k_PThc.shape
    eye_hh1 = torch.eye(h, dtype=k_PThc.dtype, device=k_PThc.device)[:, :, None]
    rows_XC = (k_PThc[:, :, :, None, :] * eye_hh1).view(p * t * h, h * c)  # X: prompts and their rows
    scores_XI = torch.mm(rows_XC, image.q_IC.T, out=work("scores", p * t * h, len(image.q_IC)))
    scores_PRI = scores_XI.view(p, t * h, -1)
    return queries_PTD, take_in_tokens(block, scores_PRI, queries_PTD, image.base_1ID, work)


def _block(
    block: TwoWayBlock,
    queries_PTD: Tensor,
    keys_PID: Tensor,
    tokens_PTD: Tensor,
    image: SharedImage,
    work: Scratch,
) -> tuple[Tensor, Tensor]:
    """`TwoWayBlock.forward` for a later block, with the projections on the token's side."""
    queries_PTD = block.attend_to_each_other(queries_PTD, tokens_PTD)
    placed_PID = torch.add(keys_PID, image.position_1ID, out=work("placed", *keys_PID.shape))
    found_PTD = tokens_ask_image(block.cross_attn_token_to_image, queries_PTD + tokens_PTD, placed_PID, keys_PID, work)
    queries_PTD = block.take_in(queries_PTD, found_PTD)

    attention = block.cross_attn_image_to_token
    rows_PRD, bias_PR = rows_that_tell(attention, queries_PTD + tokens_PTD)
    scores_PRI = work("scores", *bias_PR.shape, keys_PID.shape[1])
    torch.baddbmm(bias_PR[..., None], rows_PRD, placed_PID.transpose(1, 2), out=scores_PRI)
    base_PID = torch.add(keys_PID, attention.out_proj.bias, out=placed_PID)
    return queries_PTD, take_in_tokens(block, scores_PRI, queries_PTD, base_PID, work)


def tokens_ask_image(
    attention: Attention, queries_PTD: Tensor, placed_PID: Tensor, keys_PID: Tensor, work: Scratch
) -> Tensor:
    """`attention(queries, placed, keys)` for few queries on many keys."""
    rows_PRD = rows_that_ask(attention, queries_PTD)
    scores_PRI = work("scores", *rows_PRD.shape[:2], keys_PID.shape[1])
    torch.bmm(rows_PRD, placed_PID.transpose(1, 2), out=scores_PRI)
    shares_PRI = torch.softmax(scores_PRI, -1, out=work("shares", *scores_PRI.shape))
    return what_rows_saw(attention, torch.bmm(shares_PRI, keys_PID))


def rows_that_ask(attention: Attention, queries_PTD: Tensor) -> Tensor:
    """Rows (P, R, D) whose products with the image tokens are the scores of `attention(queries, ...)`."""
    q_PThc = attention.q_proj(queries_PTD).unflatten(2, (attention.heads, -1))
    return _through(q_PThc * q_PThc.shape[-1] ** -0.5, attention.k_proj)


def what_rows_saw(attention: Attention, seen_PRD: Tensor) -> Tensor:
    """The attention's answer (P, T, D) from the mixture of image tokens that each row saw."""
    h = attention.heads
    seen_PThD = seen_PRD.unflatten(1, (-1, h))
    weight_hcD = attention.v_proj.weight.unflatten(0, (h, -1))
    found_PThc = torch.einsum("pthd,hcd->pthc", seen_PThD, weight_hcD) + attention.v_proj.bias.view(h, -1)
    return attention.out_proj(found_PThc.flatten(2))


def rows_that_tell(attention: Attention, placed_PTD: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (P, R, D) and what is added to their products: the scores of image tokens that ask `attention`."""
    k_PThc = keys_that_tell(attention, placed_PTD)
    bias_PR = (k_PThc * attention.q_proj.bias.view(k_PThc.shape[2:])).sum(-1).flatten(1)
    return _through(k_PThc, attention.q_proj), bias_PR


def keys_that_tell(attention: Attention, placed_PTD: Tensor) -> Tensor:
    """The tokens' keys (P, T, h, c), scaled for the scores."""
    k_PThc = attention.k_proj(placed_PTD).unflatten(2, (attention.heads, -1))
    return k_PThc * k_PThc.shape[-1] ** -0.5


def rows_told(attention: Attention, queries_PTD: Tensor) -> Tensor:
    """Rows (P, R, D) whose mixture is the attention's answer to an image token, but for the output's bias."""
    v_PThc = attention.v_proj(queries_PTD).unflatten(2, (attention.heads, -1))
    weight_Dhc = attention.out_proj.weight.unflatten(1, v_PThc.shape[2:])
    return torch.einsum("pthc,dhc->pthd", v_PThc, weight_Dhc).flatten(1, 2)


def take_in_tokens(
    block: TwoWayBlock, scores_PRI: Tensor, queries_PTD: Tensor, base_PID: Tensor, work: Scratch
) -> Tensor:
    """`norm4(image + attention(image, ..., queries))` from the scores of all rows (T, h).

    `base` is the image with the output's bias.
    """
    p, t = queries_PTD.shape[:2]
    scores_PTX = scores_PRI.view(p, t, -1)  # X: head and image token; memory in long runs
    shares_PTX = torch.softmax(scores_PTX, 1, out=work("shares", *scores_PTX.shape))
    rows_PRD = rows_told(block.cross_attn_image_to_token, queries_PTD)
    shares_PIR = shares_PTX.view_as(scores_PRI).transpose(1, 2)
    told_PID = work("told", p, *base_PID.shape[1:])
    torch.baddbmm(base_PID.expand(p, -1, -1), shares_PIR, rows_PRD, out=told_PID)
    return _layer_norm(told_PID, block.norm4, work("keys", *told_PID.shape))


def draw(upscaling: nn.Sequential, keys_PID: Tensor, weights_PMU: Tensor, grid: int, work: Scratch) -> Tensor:
    """Logits (P, M, 4G, 4G): the upscaled image tokens times the masks' weights; pixels move to their places last."""
    up1, norm, _, up2, _ = upscaling
    p, m, u = weights_PMU.shape
    x = _upscale(up1, keys_PID, work, "told")
    x = gelu(_layer_norm(x, cast(LayerNorm2d, norm), work("placed", *x.shape)))
    x = gelu(_upscale(up2, x, work, "large")).view(p, -1, u)
    logits_PMX = torch.bmm(weights_PMU, x.transpose(1, 2), out=work("shares", p, m, x.shape[1]))
    logits_PMGGabcd = logits_PMX.view(p, m, grid, grid, 2, 2, 2, 2)
    out_PMLL = work("logits", p, m, 4 * grid, 4 * grid)
    out_PMLL.view(p, m, grid, 2, 2, grid, 2, 2).copy_(logits_PMGGabcd.permute(0, 1, 2, 4, 6, 3, 5, 7))
    return out_PMLL


def _upscale(up: nn.Module, x: Tensor, work: Scratch, name: str) -> Tensor:
    """A transposed convolution (kernel 2, stride 2) on (..., channels): (..., 4, fewer), the four by row and column."""
    weight, bias = side_by_side(up)
    rows = x.reshape(-1, len(weight))
    out = work(name, len(rows), len(bias))
    torch.addmm(bias, rows, weight, out=out)
    return out.view(*x.shape[:-1], 4, -1)


def side_by_side(up: nn.Module) -> tuple[Tensor, Tensor]:
    """A transposed convolution as a linear layer's weight (channels, 4 * fewer) and bias."""
    up = cast(nn.ConvTranspose2d, up)
    assert up.bias is not None
    return up.weight.permute(0, 2, 3, 1).reshape(up.in_channels, 4 * up.out_channels), up.bias.repeat(4)


def _layer_norm(x: Tensor, norm: nn.LayerNorm | LayerNorm2d, out: Tensor) -> Tensor:
    mean, rstd = x.new_empty(0), x.new_empty(0)
    shape = norm.weight.shape
    torch.ops.aten.native_layer_norm.out(x, shape, norm.weight, norm.bias, norm.eps, out0=out, out1=mean, out2=rstd)
    return out


def _through(x_PThc: Tensor, projection: nn.Linear) -> Tensor:
    """Vectors of the heads as vectors of the channels before `projection`: (P, R, D)."""
    h, c = x_PThc.shape[2:]
    return torch.einsum("pthc,hcd->pthd", x_PThc, projection.weight.view(h, c, -1)).flatten(1, 2)
