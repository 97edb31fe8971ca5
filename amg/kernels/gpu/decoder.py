"""What the mask decoder's kernels work on, and the plan: image tokens made again tile by tile, and never stored.

After block 1 and block 2 of the two-way transformer every prompt has 4096 image tokens of 256 channels of its own: 4 MB
in float32, three times, which a GPU would mostly wait for. But all that a prompt adds to the image's shared tokens is
R = 56 rows a block, which fit beside the arithmetic. So there are three passes over the image tokens, and each makes
the tokens (`keys.py`) from the shared ones and from the rows:

    1  `look.py`, one block     keys1 = norm(base + shares1 @ told1), and what the prompt tokens see in keys1
    2  `look.py`, two blocks    keys2 = norm(keys1 + bias + shares2 @ told2), and what they see in keys2
    3  `upscale.py`             keys2 once more, upscaled, times the masks' weights: the logits

with shares = softmax over the tokens of a head of an image token's scores with the rows. Between passes there is only
the prompt tokens' arithmetic, a few rows each (`sam/fused.py`).

A program works for one prompt. Those that run at the same time have neighbouring prompts and the same image tokens,
which therefore come from the L2 cache. In `look` it goes over a span of tokens tile by tile, and in two bytes a
prompt's rows stay in shared memory meanwhile. What it has seen so far, 64 rows x 256 in float32, are 64 registers of
each of 256 threads, and the tokens of a tile of 32 are 32 more. Those of 64 would be 128: a product whose result goes
on to another one has all its columns in one group of four warps, and both groups then hold the tile, and spill. The
last pass has nothing to carry, and takes 128 tokens, to read the upscaling's weights less often. As Triton 3.6 compiles
the three passes for an H100 in bfloat16, they take 96, 160 and 64 KB of shared memory and spill 0, 0 and 0.6 KB of a
thread's registers.

Counted for one point at the published sizes, R padded to 64, in two bytes (nothing here is measured):

                          pass 1   pass 2   pass 3
    GFLOP    keys1          0.20     0.20     0.20   scores 128 x 64 and answers 64 x 256 for each image token
             keys2             -     0.27     0.27   scores 256 x 64 and answers 64 x 256
             seen           0.27     0.27        -   scores and sums, 64 x 256 each
             upscaling         -        -     0.87   256 x 256, four times 64 x 128 and 128 x 16
             sum            0.47     0.74     1.34   2.55; the plain decoder has 3.6, `sam/shared.py` 1.7
    MB from the L2           5.5      5.7     12.8   24; of them 16 the image's tokens, 5 the weights
    MB from or to memory     0.5      0.6      0.9   2; rows, sums of 4 spans, three maps of logits

To store keys2 in pass 2 would save pass 3 0.47 GFLOP and cost 4 MB of traffic, and 2 GB for 1024 prompts: about the
same time by these counts, so the way without memory was chosen; so it is with the shares.

float32 operands are three products of parts ("tf32x3") or scalar code ("ieee", which spills tens of KB a thread: for
comparisons). They are twice as large, so rows are read again for each tile, 137 MB from the L2 a point, and spill 2 to
5 KB a thread.

Letters: P prompts, T tokens of a prompt, R = T*h rows of a prompt (row t*h + head), I image tokens, N image tokens of a
tile, D channels, C channels inside an attention, S spans of image tokens. Kernels' pointers are named by the shape that
they point to.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Norm:
    """A layer norm over the last axis: `weight` and `bias` float32."""

    weight: Tensor
    bias: Tensor
    eps: float


@dataclass(frozen=True, slots=True, eq=False)
class Told1:
    """What each prompt tells the image tokens in block 1: scaled keys `k_PTC`, rows `told_PRD`, then the norm."""

    k_PTC: Tensor
    told_PRD: Tensor
    norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class Told2:
    """The same in block 2: `ask_PRD` and `bias_PR` make the scores; `out_D` is the output's bias."""

    ask_PRD: Tensor
    bias_PR: Tensor
    told_PRD: Tensor
    out_D: Tensor
    norm: Norm


@dataclass(frozen=True, slots=True, eq=False)
class ImageTokens:
    """What all prompts share, in the type of the products: block 1's queries, the tokens with its bias, positions."""

    ask_IC: Tensor
    base_ID: Tensor
    position_ID: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Convolutions:
    """Both convolutions as linear layers; weights in the type of the products, biases and norm float32."""

    weight1_DX: Tensor
    bias1_U: Tensor
    norm: Norm
    weight2_UV: Tensor
    bias2_V: Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """Of a square of `grid` tokens a side, the first `lines` and in each the first `columns` are drawn."""

    grid: int
    lines: int
    columns: int


@dataclass(frozen=True, slots=True)
class Launch:
    """How the passes are cut: image tokens of a tile, tokens of a program's `span` in `look`, and `warps`.

    `held`: whether a prompt's rows stay in shared memory from tile to tile. `products` of float32 operands: "tf32x3"
    or "ieee"; those of two bytes ignore it.
    """

    look_tile: int
    draw_tile: int
    span: int
    warps: int
    held: bool
    products: str

    def __post_init__(self) -> None:
        assert self.span % self.look_tile == 0, f"a span of {self.span} tokens, wanted whole tiles of {self.look_tile}"
