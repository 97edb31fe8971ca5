"""The shared decoder on a GPU: three kernels go over the image tokens, PyTorch does the prompt tokens between them.

The algebra is that of `shared.py`, and so are the results; but the image tokens of a prompt, three tensors of 4 MB
there, exist only tile by tile in the kernels' registers (`kernels/gpu/decoder.py` has the plan), so that memory holds
nothing of a prompt but rows and logits.

The type of the `SharedImage` is that of the products' operands: float32, bfloat16 or float16. Sums, layer norms,
softmax and logits are float32 with each, and the prompt tokens are in the type of the decoder's weights. Nothing waits
for the device, and a prompt's numbers in the kernels do not depend on how many come with it.

Under Triton's interpreter they equal their twin, and they compile for an H100; they were never run on a GPU.

Letters as in `shared.py` and in the kernels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, cast

import torch
from torch import Tensor, nn

from amg.geometry import Size
from amg.kernels.gpu.decoder import Convolutions, Drawn, ImageTokens, Launch, Norm, Told1, Told2
from amg.sam.decoder import MaskDecoder
from amg.sam.factored_image import DRAWN_SIDE
from amg.sam.layers import LayerNorm2d
from amg.sam.shared import (
    SharedImage,
    decode_shared,
    keys_that_tell,
    rows_that_ask,
    rows_that_tell,
    rows_told,
    side_by_side,
    what_rows_saw,
)
from amg.sam.transformer import Attention
from amg.tensors import Workspace

Products = Literal["tf32x3", "ieee"]
"""How float32 operands are multiplied: as three products of 10-bit parts on tensor cores, or as they are (slow)."""

MOST_ROWS = 64
"""Rows of a prompt, padded, that a kernel has room for: those of 8 tokens in 8 heads."""

WIDTHS = 64, 128, 256
"""Channels D for which every product in the kernels has the size that tensor cores want, and a tile its room."""


def can_fuse(decoder: MaskDecoder, tokens: int) -> bool:
    """Whether the kernels have room for prompts of so many tokens of their own; `shared.py` does the others."""
    blocks, width = decoder.transformer.blocks, decoder.iou_token.weight.shape[1]
    heads = blocks[0].cross_attn_image_to_token.heads
    rows = heads * _power_of_two(1 + len(decoder.output_hypernetworks_mlps) + tokens)
    return len(blocks) == 2 and width in WIDTHS and heads == _power_of_two(heads) and 16 <= rows <= MOST_ROWS


@dataclass(frozen=True, slots=True, eq=False)
class FusedImage:
    """One crop's side of the decoder. `needed`: rows and columns of logits that will be looked at, None for all."""

    shared: SharedImage
    needed: Size | None


def in_type(image: SharedImage, dtype: torch.dtype) -> SharedImage:
    """The same image for products in another type."""
    return SharedImage(**{f.name: getattr(image, f.name).to(dtype) for f in fields(image)})


def decode_fused(
    decoder: MaskDecoder,
    image: SharedImage,
    sparse_PKD: Tensor,
    workspace: Workspace,
    *,
    multimask: bool = True,
    needed: Size | None = None,
    products: Products = "tf32x3",
    launch: Launch | None = None,
) -> tuple[Tensor, Tensor]:
    """The logits (P, M, L, L), float32, and IoU (P, M) of `MaskDecoder.forward`, without gradients.

    The logits lie in the workspace: the next call with it overwrites them. `needed`: rows and columns of them that
    will be looked at; the others may stay as they were there. `launch`: how the kernels are cut, if not as usual.
    """
    if not can_fuse(decoder, sparse_PKD.shape[1]):
        image = in_type(image, sparse_PKD.dtype)
        logits_PMLL, iou_PM = decode_shared(decoder, image, sparse_PKD, workspace, multimask=multimask)
        return logits_PMLL.float(), iou_PM
    fused = _Fused(decoder, image, workspace, launch or usual_launch(image.base_1ID.dtype, products))
    return fused.decode(sparse_PKD, needed, multimask)


def usual_launch(dtype: torch.dtype, products: Products = "tf32x3") -> Launch:
    """Sizes for which a compiled kernel fits in registers and shared memory; which are fastest nobody has measured."""
    if dtype == torch.float32:
        return Launch(look_tile=32, draw_tile=32, span=1024, warps=8, held=False, products=products)
    return Launch(look_tile=32, draw_tile=128, span=1024, warps=8, held=True, products=products)


class _Fused:
    """One image's decoder: hands the kernels what they take, in the types that they take it in."""

    def __init__(self, decoder: MaskDecoder, image: SharedImage, workspace: Workspace, launch: Launch) -> None:
        self.decoder, self.image, self.workspace, self.launch = decoder, image, workspace, launch
        self.dtype, self.grid = image.base_1ID.dtype, image.grid
        self.heads = decoder.transformer.blocks[0].cross_attn_image_to_token.heads
        self.tokens = ImageTokens(
            image.q_IC.contiguous(), image.base_1ID[0].contiguous(), image.position_1ID[0].contiguous()
        )

    def decode(self, sparse_PKD: Tensor, needed: Size | None, multimask: bool) -> tuple[Tensor, Tensor]:
        tokens_PTD = self.decoder.tokens(sparse_PKD)
        first, second = self.decoder.transformer.blocks
        final = self.decoder.transformer.final_attn_token_to_image
        shared = (held.to(tokens_PTD.dtype) for held in (self.image.k_1hIc, self.image.v_1hIc))

        queries_PTD = first.look_together(tokens_PTD, *shared)
        told1 = self.told1(queries_PTD, tokens_PTD)
        queries_PTD = second.attend_to_each_other(queries_PTD, tokens_PTD)
        found_PTD = self.look(second.cross_attn_token_to_image, queries_PTD + tokens_PTD, told1, None)
        queries_PTD = second.take_in(queries_PTD, found_PTD)
        told2 = self.told2(queries_PTD, tokens_PTD)
        found_PTD = self.look(final, queries_PTD + tokens_PTD, told1, told2)
        queries_PTD = self.decoder.transformer.norm_final_attn(queries_PTD + found_PTD)
        weights_PMU, iou_PM = self.decoder.read(queries_PTD, multimask=multimask)
        return self.draw(told1, told2, weights_PMU, needed), iou_PM

    def told1(self, queries_PTD: Tensor, tokens_PTD: Tensor) -> Told1:
        block = self.decoder.transformer.blocks[0]
        attention = block.cross_attn_image_to_token
        k_PThc = keys_that_tell(attention, queries_PTD + tokens_PTD)
        told_PRD = rows_told(attention, queries_PTD)
        return Told1(self.operand(k_PThc.flatten(2)), self.operand(told_PRD), self.norm(block.norm4))

    def told2(self, queries_PTD: Tensor, tokens_PTD: Tensor) -> Told2:
        block = self.decoder.transformer.blocks[1]
        attention = block.cross_attn_image_to_token
        ask_PRD, bias_PR = rows_that_tell(attention, queries_PTD + tokens_PTD)
        return Told2(
            ask_PRD=self.operand(ask_PRD),
            bias_PR=_exact(bias_PR),
            told_PRD=self.operand(rows_told(attention, queries_PTD)),
            out_D=_exact(attention.out_proj.bias),
            norm=self.norm(block.norm4),
        )

    def look(self, attention: Attention, queries_PTD: Tensor, told1: Told1, told2: Told2 | None) -> Tensor:
        """What the tokens find in the image after block 1, with `told2` after block 2: (P, T, D)."""
        from amg.kernels.gpu.look import look  # Triton is not for every system

        rows_PRD = self.operand(rows_that_ask(attention, queries_PTD))
        p, r, d = rows_PRD.shape
        spans = -(-len(self.image.q_IC) // self.launch.span)
        most_PRS, total_PRS = self.float32("most", p, r, spans), self.float32("total", p, r, spans)
        seen_PRSD = self.float32("seen", p, r, spans, d)
        look(
            self.tokens,
            told1,
            told2,
            rows_PRD,
            self.heads,
            self.launch,
            most_PRS=most_PRS,
            total_PRS=total_PRS,
            seen_PRSD=seen_PRSD,
        )
        return what_rows_saw(attention, _joined(most_PRS, total_PRS, seen_PRSD).to(queries_PTD.dtype))

    def draw(self, told1: Told1, told2: Told2, weights_PMU: Tensor, needed: Size | None) -> Tensor:
        from amg.kernels.gpu.upscale import draw

        p, m = weights_PMU.shape[:2]
        side = DRAWN_SIDE * self.grid
        needed = needed or Size(side, side)
        lines, columns = (min(self.grid, -(-size // DRAWN_SIDE)) for size in (needed.height, needed.width))
        logits_PMLL = self.float32("logits", p, m, side, side)
        draw(
            self.tokens,
            told1,
            told2,
            self.upscaling(),
            self.operand(weights_PMU),
            self.heads,
            self.launch,
            Drawn(self.grid, lines, columns),
            logits_PMLL=logits_PMLL,
        )
        return logits_PMLL

    def upscaling(self) -> Convolutions:
        up1, norm, _, up2, _ = self.decoder.output_upscaling
        weight1_DX, bias1_X = side_by_side(up1)
        weight2_UV, bias2_V = side_by_side(up2)
        bias1_U = bias1_X[: len(weight2_UV)]  # the same four times
        return Convolutions(
            self.operand(weight1_DX),
            _exact(bias1_U),
            self.norm(cast(LayerNorm2d, norm)),
            self.operand(weight2_UV),
            _exact(bias2_V),
        )

    def norm(self, norm: nn.LayerNorm | LayerNorm2d) -> Norm:
        return Norm(_exact(norm.weight), _exact(norm.bias), norm.eps)

    def operand(self, x: Tensor) -> Tensor:
        """A tensor for the kernels' products."""
        return x.to(self.dtype).contiguous()

    def float32(self, name: str, *shape: int) -> Tensor:
        """A tensor of the workspace for what the kernels write."""
        return self.workspace.like(self.image.base_1ID.new_empty(0, dtype=torch.float32), name, *shape)


def _joined(most_PRS: Tensor, total_PRS: Tensor, seen_PRSD: Tensor) -> Tensor:
    """What the rows saw in all spans together: (P, R, D)."""
    weight_PRS = torch.exp(most_PRS - most_PRS.amax(-1, keepdim=True))
    weight_PRS = weight_PRS / (weight_PRS * total_PRS).sum(-1, keepdim=True)
    return (weight_PRS[:, :, None] @ seen_PRSD)[:, :, 0]


def _exact(x: Tensor) -> Tensor:
    """What the kernels add or scale with, in float32."""
    return x.float().contiguous()


def _power_of_two(number: int) -> int:
    """The lowest that is not under `number`."""
    return 1 << (number - 1).bit_length()
