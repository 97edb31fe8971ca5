"""Attention in square windows of a map for fused attention kernels: no matrix of biases, no product with padding.

Two facts, both exact:

1. What a token outside of the map is to its window is known: it is zero behind the layer norm, so its query, key and
   value are the biases of their layer. They are filled in, and nothing is projected for it before or after.
2. A query's score with a key is q.k + rows[y of the key] + columns[x of the key]. With the two short vectors behind
   the query's channels, and a one behind the key's at its row and one at its column, that is one product: plain
   attention over c + 2s channels.

Letters as in `vit.py`, and: R rows and L columns of windows, y x a token's place in its window, B windows, T tokens of
one, E channels that are added, A = c + E.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

from amg.sam.layers import from_windows, is_recorded

WIDTH = 16
"""Widths are multiples of it, as tensor cores read them. Heads of 64 and of 80 channels with windows of 14 become 96
and 112 wide, which fused kernels take as they are; 128 would be an eighth more to read and write."""

HALVES = (torch.float16, torch.bfloat16)


def attend_in_windows(qkv_NHW3hc: Tensor, outside_3hc: Tensor, rel_pos_h: Tensor, rel_pos_w: Tensor) -> Tensor:
    """What each token (N, H, W, C) finds in its window, heads one after the other in C.

    outside: query, key and value of a token outside of the map. rel_pos: as in `vit.relative_positions`; they have the
    windows' side.
    """
    n, h, w, _, _, c = qkv_NHW3hc.shape
    side = (len(rel_pos_h) + 1) // 2
    added = -(c + 2 * side) % WIDTH + 2 * side
    where_yxE, ones_yxE = _places(qkv_NHW3hc, side, added)
    qkv_NRyLx3hc = _fill_up(qkv_NHW3hc, outside_3hc, side).unflatten(2, (-1, side)).unflatten(1, (-1, side))
    q_NRLhyxc, k_NRLhyxc, v_NRLhyxc = qkv_NRyLx3hc.permute(5, 0, 1, 3, 6, 2, 4, 7)
    shape_NRLhyxE = (*q_NRLhyxc.shape[:-1], added)
    # The factor lies in the short table: q would have to be rounded again to carry it.
    by_distance_NRLhyxF = F.linear(q_NRLhyxc, _table(rel_pos_h, rel_pos_w, factor=c**0.5).to(q_NRLhyxc.dtype))
    rows_and_columns_NRLhyxE = by_distance_NRLhyxF.gather(-1, where_yxE.expand(shape_NRLhyxE))
    q_BhTA = _squares(torch.cat([q_NRLhyxc, rows_and_columns_NRLhyxE], -1))
    k_BhTA = _squares(torch.cat([k_NRLhyxc, ones_yxE.expand(shape_NRLhyxE)], -1))
    if v_NRLhyxc.dtype in HALVES:  # the kernel for them is FlashAttention, and it wants one width of all
        v_NRLhyxc = F.pad(v_NRLhyxc, (0, added))
    y_BhTA = F.scaled_dot_product_attention(q_BhTA, k_BhTA, _squares(v_NRLhyxc), scale=c**-0.5)
    return from_windows(y_BhTA[..., :c].transpose(1, 2).unflatten(1, (side, side)), n, h, w)


def _fill_up(x_NHW3hc: Tensor, outside_3hc: Tensor, side: int) -> Tensor:
    """The map to the end of its last windows."""
    n, h, w = x_NHW3hc.shape[:3]
    below, beside = -h % side, -w % side
    if not (below or beside):
        return x_NHW3hc
    full = x_NHW3hc.new_empty(n, h + below, w + beside, *x_NHW3hc.shape[3:])
    full[:, :h, :w] = x_NHW3hc
    full[:, h:] = outside_3hc
    full[:, :h, w:] = outside_3hc
    return full


def _squares(x_NRLhyxA: Tensor) -> Tensor:
    """(B, h, T, A)."""
    return x_NRLhyxA.flatten(4, 5).flatten(0, 2)


def _table(rel_pos_h: Tensor, rel_pos_w: Tensor, *, factor: float) -> Tensor:
    """What a query is multiplied with: a vector for each row distance, each column distance, then zeros, at least one.

    One product with all distances, and then the right ones are taken: 2s products with s distances each would be too
    small to be fast.
    """
    vectors_Fc = torch.cat([rel_pos_h, rel_pos_w]) * factor
    return F.pad(vectors_Fc, (0, 0, 0, WIDTH - len(vectors_Fc) % WIDTH))


def _places(like: Tensor, side: int, added: int) -> tuple[Tensor, Tensor]:
    """For each place of a window: where in `_table` what belongs behind its query is, and what belongs behind its key.

    Both (s, s, E): rows of the window, columns, and then nothing. Kept from one block to the next, unless PyTorch
    records: what it makes then belongs to the record.
    """
    make = _make_places if is_recorded(like) else _kept_places
    return make(side, added, like.dtype, like.device)


@cache
def _kept_places(side: int, added: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # training may need them next
        where_yxE, ones_yxE = _make_places(side, added, dtype, torch.device("cpu"))
        return where_yxE.to(device), ones_yxE.to(device)  # the host waits: the next user may be on another stream


def _make_places(side: int, added: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    at = torch.arange(side, device=device)
    distance_ss = at[:, None] - at[None, :] + side - 1
    shape_yxs, rest = (side, side, side), (0, added - 2 * side)
    where_yxE = torch.cat(
        [distance_ss[:, None].expand(shape_yxs), distance_ss[None].expand(shape_yxs) + 2 * side - 1], -1
    )
    one_ss = torch.eye(side, dtype=dtype, device=device)
    ones_yxE = torch.cat([one_ss[:, None].expand(shape_yxs), one_ss[None].expand(shape_yxs)], -1)
    return F.pad(where_yxE, rest, value=2 * (2 * side - 1)), F.pad(ones_yxE, rest)
