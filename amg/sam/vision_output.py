"""What can be seen of an image encoder from outside: its layers' states and attention weights.

Letters as in `vit.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from amg.errors import ConfigError
from amg.sam import vit
from amg.sam.layers import to_windows
from amg.sam.outputs import SamVisionEncoderOutput


class VisionOutput(nn.Module):
    """An encoder that is called as transformers' `vision_encoder` is, and returns what that returns."""

    layers: nn.ModuleList
    neck: nn.Sequential

    def forward(
        self,
        pixel_values: Tensor,
        *,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        return_dict: bool = True,
    ) -> SamVisionEncoderOutput | tuple[Any, ...]:
        """Of normalised pixels (N, 3, S, S). Attention weights are computed anew from the states: slow."""
        with recorded_states(self.layers, wanted=output_hidden_states or output_attentions) as states:
            features_NDGG = super().forward(pixel_values.to(next(self.neck.parameters()).dtype))
        output = SamVisionEncoderOutput(
            last_hidden_state=features_NDGG,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=attention_weights(self.layers, states) if output_attentions else None,
        )
        return output if return_dict else output.to_tuple()


@contextmanager
def recorded_states(layers: nn.ModuleList, *, wanted: bool) -> Iterator[list[Tensor]]:
    """Collects what enters the first layer and what leaves each, as (N, G, G, C) whatever the layers work in."""
    states: list[Tensor] = []
    if not wanted:
        yield states
        return

    def keep(x: Tensor) -> None:
        states.append(x if isinstance(layers[0], vit.Block) else x.permute(0, 2, 3, 1))

    def keep_input(_layer: nn.Module, args: tuple[Any, ...]) -> None:
        keep(args[0])

    def keep_output(_layer: nn.Module, _args: tuple[Any, ...], out: Any) -> None:
        keep(out)

    hooks = [layers[0].register_forward_pre_hook(keep_input)]
    hooks += [layer.register_forward_hook(keep_output) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def attention_weights(layers: nn.ModuleList, states: list[Tensor]) -> tuple[Tensor, ...]:
    """(N * windows * heads, T, T) for each layer, from what entered it. Rows sum to 1."""
    if not isinstance(layers[0], vit.Block):
        raise ConfigError("output_attentions=True: MobileSAM's encoder has no such output; leave it out")
    return tuple(_weights(layer, x_NGGC) for layer, x_NGGC in zip(layers, states, strict=False))


def _weights(block: Any, x_NGGC: Tensor) -> Tensor:
    x_NGGC = block.norm1(x_NGGC)
    x_BssC = to_windows(x_NGGC, block.window) if block.window else x_NGGC
    attention = block.attn
    b, s, _, _ = x_BssC.shape
    q_BThc, k_BThc, _ = attention.qkv(x_BssC).view(b, s * s, 3, attention.heads, -1).unbind(2)
    q_XTc, k_XTc = (x_BThc.transpose(1, 2).flatten(0, 1) for x_BThc in (q_BThc, k_BThc))
    at = torch.arange(s, device=x_BssC.device)
    distance_ss = at[:, None] - at[None, :] + s - 1
    q_Xyxc = q_XTc.unflatten(1, (s, s))
    rows_Xyxs = torch.einsum("nyxc,ykc->nyxk", q_Xyxc, attention.rel_pos_h[distance_ss])
    columns_Xyxs = torch.einsum("nyxc,xkc->nyxk", q_Xyxc, attention.rel_pos_w[distance_ss])
    bias_XTT = (rows_Xyxs[..., :, None] + columns_Xyxs[..., None, :]).reshape(len(q_XTc), s * s, s * s)
    scores_XTT = q_XTc @ k_XTc.transpose(1, 2) * q_XTc.shape[-1] ** -0.5 + bias_XTT
    return scores_XTT.softmax(-1, dtype=torch.float32).to(x_BssC.dtype)
