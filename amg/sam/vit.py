"""The image encoder of SAM: a plain vision transformer with windows and decomposed relative positions (ViTDet).

State-dict keys are those of segment-anything's `ImageEncoderViT`. Letters: N images, G the grid side, C the encoder's
width, h heads, c channels of a head, T tokens of an attention (G*G, or the window's).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amg.kernels import attention as kernel
from amg.lanes import Lanes
from amg.sam.config import VitConfig
from amg.sam.layers import Mlp, from_windows, is_recorded, neck, to_windows
from amg.sam.windows import attend_in_windows
from amg.tensors import Workspace, to_host

BIAS_BYTES = 2**30
"""What the biases of the scores of one attention may take at once; queries beyond that wait for the next band."""

AttendSquare = Callable[..., Tensor]
"""`attend(q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs, *, scale)`: what `attend_in_bands` gives."""


class Vit(nn.Module):
    def __init__(self, config: VitConfig, *, side: int, channels: int) -> None:
        super().__init__()
        grid = side // config.patch
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, config.width))
        self.blocks = nn.ModuleList(
            Block(config, grid, window=0 if i in config.global_blocks else config.window) for i in range(config.depth)
        )
        self.neck = neck(config.width, channels)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        """Features (N, D, G, G) of normalised pixels."""
        x_NGGC = self.patch_embed(pixels_N3SS) + self.pos_embed
        for block in self.blocks:
            x_NGGC = block(x_NGGC)
        return self.neck(x_NGGC.permute(0, 3, 1, 2))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, pixels_N3SS: Tensor) -> Tensor:
        return self.proj(pixels_N3SS).permute(0, 2, 3, 1)


class Block(nn.Module):
    """Attention and MLP, each behind a layer norm and beside a residual; `window` 0 attends to the whole grid.

    Without gradients the MLP goes over the grid in bands of rows on a CPU: what it widens the whole grid to would be
    taken from the system and given back in every block.
    """

    BAND = 16

    def __init__(self, config: VitConfig, grid: int, *, window: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(config.width, eps=1e-6)
        self.attn = Attention(config.width, config.heads, side=window or grid)
        self.norm2 = nn.LayerNorm(config.width, eps=1e-6)
        self.mlp = Mlp(config.width, config.width * config.mlp_ratio, nn.GELU())

    def forward(self, x_NGGC: Tensor) -> Tensor:
        y_NGGC = self.norm1(x_NGGC)
        if self.window and on_host(x_NGGC):
            n, g = y_NGGC.shape[:2]
            y_NGGC = from_windows(self.attn(to_windows(y_NGGC, self.window)), n, g, g)
        else:
            y_NGGC = self.attn(y_NGGC)
        x_NGGC = x_NGGC + y_NGGC
        if torch.is_grad_enabled() or not on_host(x_NGGC):
            return x_NGGC + self.mlp(self.norm2(x_NGGC))
        for band in x_NGGC.split(self.BAND, dim=1):
            band += self.mlp(self.norm2(band))
        return x_NGGC


class Attention(nn.Module):
    """Multi-head attention over a square, with a learned bias for the row distance and one for the column distance.

    Over a larger map it goes in windows of that square. `kernel`: who attends to a square where there are no
    gradients, in the place of PyTorch (`faster.use_triton`).
    """

    def __init__(self, width: int, heads: int, *, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.side = side
        self.kernel: AttendSquare | None = None
        self.qkv = nn.Linear(width, width * 3)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x_NHWC: Tensor) -> Tensor:
        n, h, w, width = x_NHWC.shape
        qkv_NHW3hc = self.qkv(x_NHWC).view(n, h, w, 3, self.heads, -1)
        if (h, w) == (self.side, self.side):
            y_NHWC = self._attend(qkv_NHW3hc.flatten(1, 2)).reshape(n, h, w, width)
        else:
            outside_3hc = self.qkv.bias.view(3, self.heads, -1)
            y_NHWC = attend_in_windows(qkv_NHW3hc, outside_3hc, self.rel_pos_h, self.rel_pos_w)
        return self.proj(y_NHWC)

    def _attend(self, qkv_BT3hc: Tensor) -> Tensor:
        """(B, T, h, c), each square as a whole."""
        q_BhTc, k_BhTc, v_BhTc = qkv_BT3hc.permute(2, 0, 3, 1, 4)
        rows_BhTs, columns_BhTs = relative_positions(q_BhTc, self.rel_pos_h, self.rel_pos_w)
        if _has_host_kernel(qkv_BT3hc, self.side):
            return _attend_on_host(qkv_BT3hc, rows_BhTs, columns_BhTs)
        attend = attend_in_bands if self.kernel is None or torch.is_grad_enabled() else self.kernel
        return attend(q_BhTc, k_BhTc, v_BhTc, rows_BhTs, columns_BhTs, scale=q_BhTc.shape[-1] ** -0.5)


def on_host(x: Tensor) -> bool:
    """Whether the ways of a CPU are taken: its own kernel, windows with their padding, the MLP in bands of rows."""
    return x.device.type == "cpu"


def _has_host_kernel(qkv_BT3hc: Tensor, side: int) -> bool:
    """Whether `kernels/attention.py` does it: on a CPU, without gradients, not while PyTorch records what is done."""
    plain = on_host(qkv_BT3hc) and not torch.is_grad_enabled() and not is_recorded(qkv_BT3hc)
    return plain and qkv_BT3hc.dtype == torch.float32 and kernel.fits(side, qkv_BT3hc.shape[-1])


def _attend_on_host(qkv_BT3hc: Tensor, rows_BhTs: Tensor, columns_BhTs: Tensor) -> Tensor:
    """Attention as (B, T, h, c), heads side by side on the cores."""
    b, t, _, heads, c = qkv_BT3hc.shape
    keys_BhcT = qkv_BT3hc.new_empty(b, heads, c, t + kernel.PAD)
    keys_BhcT[..., :t] = qkv_BT3hc[:, :, 1].permute(0, 2, 3, 1)
    out_BThc = qkv_BT3hc.new_empty(b, t, heads, c)
    arrays = [to_host(x.contiguous()) for x in (qkv_BT3hc, keys_BhcT, rows_BhTs, columns_BhTs, out_BThc)]
    qkv, keys, rows, columns, out = arrays

    def attend(job: tuple[int, int], _: Workspace) -> None:
        n, head = job
        kernel.attend(qkv[n], head, keys[n, head], rows[n, head], columns[n, head], out[n])

    with Lanes(torch.get_num_threads()) as lanes:
        list(lanes.map(attend, [(n, head) for n in range(b) for head in range(heads)]))
    return out_BThc


def relative_positions(q_BhTc: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> tuple[Tensor, Tensor]:
    """What a query adds to its score with the keys of each row, and of each column: q . vector of their distance.

    Twice (B, h, T, s), T = s*s, row by row; `rel_pos_*` (2s-1, c) start at the distance -(s-1). The query is not scaled
    here. Source: `add_decomposed_rel_pos` of segment-anything, after MViTv2.
    """
    b, heads, _, c = q_BhTc.shape
    s = (len(rel_pos_h) + 1) // 2
    at = torch.arange(s, device=q_BhTc.device)
    distance_ss = at[:, None] - at[None, :] + s - 1
    q_Bhyxc = q_BhTc.reshape(b, heads, s, s, c)
    rows_Bhyxs = q_Bhyxc @ rel_pos_h[distance_ss].transpose(1, 2)
    columns_Bhxys = q_Bhyxc.transpose(2, 3) @ rel_pos_w[distance_ss].transpose(1, 2)
    columns_Bhyxs = columns_Bhxys.transpose(2, 3)
    return rows_Bhyxs.flatten(2, 3), columns_Bhyxs.flatten(2, 3)


def relative_position_bias(rows_BhTs: Tensor, columns_BhTs: Tensor) -> Tensor:
    """What a query adds to its score with each key, (B, h, T, T)."""
    return (rows_BhTs[..., :, None] + columns_BhTs[..., None, :]).flatten(3)


def attend_in_bands(
    q_BhTc: Tensor, k_BhTc: Tensor, v_BhTc: Tensor, rows_BhTs: Tensor, columns_BhTs: Tensor, *, scale: float
) -> Tensor:
    """softmax(scale q k + bias) v as (B, T, h, c), with the bias of so many queries at once as fit into `BIAS_BYTES`.

    Of all at once with gradients, as the way back needs it anyway, and for an export, which may serve any B.
    """
    b, heads, tokens, _ = q_BhTc.shape
    at_once = torch.is_grad_enabled() or torch.compiler.is_exporting()
    band = tokens if at_once else BIAS_BYTES // (b * heads * tokens * q_BhTc.element_size())
    parts = zip(*(x.split(max(1, band), 2) for x in (q_BhTc, rows_BhTs, columns_BhTs)), strict=True)
    found = [
        F.scaled_dot_product_attention(
            q_Bhtc, k_BhTc, v_BhTc, attn_mask=relative_position_bias(rows_Bhts, columns_Bhts), scale=scale
        ).transpose(1, 2)
        for q_Bhtc, rows_Bhts, columns_Bhts in parts
    ]
    return found[0] if len(found) == 1 else torch.cat(found, 1)
