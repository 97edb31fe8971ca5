"""The two-way transformer: prompt tokens and image tokens attend to each other (paper, appendix A, figure 14).

State-dict keys are those of segment-anything's `TwoWayTransformer`. Letters: P prompts, T prompt tokens (output tokens
and the prompt's own), I = G*G image tokens, D channels, h heads, c channels of a head.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from amg.sam.layers import Mlp


class TwoWayTransformer(nn.Module):
    def __init__(self, *, depth: int, width: int, heads: int, mlp_width: int, downsample: int = 2) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, mlp_width, first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = Attention(width, heads, inner=width // downsample)
        self.norm_final_attn = nn.LayerNorm(width)

    @property
    def blocks(self) -> list[TwoWayBlock]:
        """The layers, as what they are."""
        return [cast(TwoWayBlock, layer) for layer in self.layers]

    def forward(
        self,
        tokens_PTD: Tensor,
        image_PID: Tensor,
        position_PID: Tensor,
        *,
        similarity: Tensor | None = None,
        target: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The tokens and the image tokens after all blocks; a first dimension of 1 counts for every prompt.

        For one known object (PerSAM, arXiv 2305.03048): `similarity`, which broadcasts to (P, h, T, I), is added to
        the scores of the tokens with the image in the blocks; `target`, to (P, T, D), to the tokens before each block.
        """
        if target is not None:
            tokens_PTD = tokens_PTD + target
        queries_PTD, keys_PID = tokens_PTD, image_PID
        for index, block in enumerate(self.layers):
            if target is not None and index > 0:
                queries_PTD = queries_PTD + target
            queries_PTD, keys_PID = block(queries_PTD, keys_PID, tokens_PTD, position_PID, similarity)
        found_PTD = self.final_attn_token_to_image(queries_PTD + tokens_PTD, keys_PID + position_PID, keys_PID)
        return self.norm_final_attn(queries_PTD + found_PTD), keys_PID


class TwoWayBlock(nn.Module):
    """Tokens to tokens, tokens to image, MLP, image to tokens; a residual and a layer norm behind each.

    The tokens themselves serve as their positions. In the `first` block they are nothing but positions yet, so its
    self-attention adds none and has no residual.
    """

    def __init__(self, width: int, heads: int, mlp_width: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, heads, inner=width)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, heads, inner=width // 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_width, nn.ReLU())
        self.norm3 = nn.LayerNorm(width)
        self.norm4 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, heads, inner=width // 2)

    def forward(
        self,
        queries_PTD: Tensor,
        keys_PID: Tensor,
        tokens_PTD: Tensor,
        position_PID: Tensor,
        similarity: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        queries_PTD = self.attend_to_each_other(queries_PTD, tokens_PTD)
        placed_PID = keys_PID + position_PID
        found_PTD = self.cross_attn_token_to_image(queries_PTD + tokens_PTD, placed_PID, keys_PID, similarity)
        queries_PTD = self.take_in(queries_PTD, found_PTD)
        told_PID = self.cross_attn_image_to_token(placed_PID, queries_PTD + tokens_PTD, queries_PTD)
        return queries_PTD, self.norm4(keys_PID + told_PID)

    def attend_to_each_other(self, queries_PTD: Tensor, tokens_PTD: Tensor) -> Tensor:
        if self.first:
            return self.norm1(self.self_attn(queries_PTD, queries_PTD, queries_PTD))
        placed_PTD = queries_PTD + tokens_PTD
        return self.norm1(queries_PTD + self.self_attn(placed_PTD, placed_PTD, queries_PTD))

    def look_together(self, tokens_PTD: Tensor, k_1hIc: Tensor, v_1hIc: Tensor) -> Tensor:
        """In a first block: the tokens after their look at an image that all prompts have in common.

        The image tokens come projected, and the prompts' attend to them as one long sequence.
        """
        queries_PTD = self.attend_to_each_other(tokens_PTD, tokens_PTD)
        attention = self.cross_attn_token_to_image
        q_1hXc = attention.split(attention.q_proj(queries_PTD + tokens_PTD).flatten(0, 1)[None])  # X: P*T
        found_1XC = attention.join(F.scaled_dot_product_attention(q_1hXc, k_1hIc, v_1hIc))
        return self.take_in(queries_PTD, attention.out_proj(found_1XC).view_as(queries_PTD))

    def take_in(self, queries_PTD: Tensor, found_PTD: Tensor) -> Tensor:
        """What the tokens make of what they found in the image."""
        queries_PTD = self.norm2(queries_PTD + found_PTD)
        return self.norm3(queries_PTD + self.mlp(queries_PTD))


class Attention(nn.Module):
    """Multi-head attention that may work in fewer channels (`inner`) than it is given."""

    def __init__(self, width: int, heads: int, *, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, inner)
        self.k_proj = nn.Linear(width, inner)
        self.v_proj = nn.Linear(width, inner)
        self.out_proj = nn.Linear(inner, width)

    def forward(self, q_PAD: Tensor, k_PBD: Tensor, v_PBD: Tensor, bias: Tensor | None = None) -> Tensor:
        q_PhAc = self.split(self.q_proj(q_PAD))
        k_PhBc = self.split(self.k_proj(k_PBD))
        v_PhBc = self.split(self.v_proj(v_PBD))
        return self.out_proj(self.join(F.scaled_dot_product_attention(q_PhAc, k_PhBc, v_PhBc, attn_mask=bias)))

    def split(self, x_PAC: Tensor) -> Tensor:
        """Channels to heads: (P, h, A, c)."""
        return x_PAC.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def join(self, x_PhAc: Tensor) -> Tensor:
        return x_PhAc.transpose(1, 2).flatten(2)
