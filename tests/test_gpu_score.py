"""The kernels behind the decoder, in Triton's interpreter (or on a GPU, where there is one), against their twins."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from amg.geometry import Size, fit_longest_side
from amg.kernels import resample, torch_resample, torch_runs
from amg.kernels.resample import Axis
from tests import reference

pytest.importorskip("triton", reason="Triton is for Linux")

import triton
import triton.language as tl

from amg.kernels.gpu import draw, score

DEVICE = "cpu" if triton.knobs.runtime.interpret else "cuda"


def axes_of(height: int, width: int) -> tuple[Axis, Axis]:
    resized = fit_longest_side(Size(height, width), 1024)
    return resample.plan_axis(width, resized.width), resample.plan_axis(height, resized.height)


def check_scores(
    logits: Tensor, height: int, width: int, *, low: float = -1, middle: float = 0, high: float = 1
) -> None:
    x, y = axes_of(height, width)
    count, box = score.score(logits.to(DEVICE), x, y, low=low, middle=middle, high=high)
    wanted = resample.score(logits.numpy(), np.arange(len(logits)), x, y, low=low, middle=middle, high=high)
    assert count.dtype == box.dtype == torch.int64
    np.testing.assert_array_equal(count.cpu().numpy(), wanted.count_K3)
    np.testing.assert_array_equal(box.cpu().numpy(), wanted.box_K4)


@pytest.mark.parametrize(("height", "width"), [(20, 33), (1, 1), (300, 5), (3, 280)])
def test_scores_equal_those_on_the_host(height: int, width: int) -> None:
    check_scores(reference.smooth_logits(np.random.default_rng(height), 1, noise=0.1), height, width)


def test_blocks_of_several_pixels_are_evaluated_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more masks than share a list, and lists longer than a program takes at a time."""
    monkeypatch.setattr(score, "MASKS_AT_ONCE", 2)
    column, row = torch.arange(256.0), torch.arange(256.0)[:, None]
    discs = [9 - torch.hypot(column - cx, row - cy) for cx, cy in ((100, 60), (250, 3), (128, 90))]
    check_scores(torch.stack(discs), 300, 520)


def test_masks_of_all_pixels_of_none_and_on_a_threshold_are_scored_alike() -> None:
    flat = torch.tensor([-5.0, 5.0, 0.0, 1.0]).view(4, 1, 1).expand(4, 256, 256)
    check_scores(flat, 1, 6)


def test_other_thresholds_are_taken_as_float32() -> None:
    whole = torch.from_numpy(np.random.default_rng(3).integers(-2, 3, (1, 256, 256)).astype(np.float32)) / 3
    check_scores(whole, 3, 7, low=-1 / 3, middle=0.1, high=1 / 3)


def test_no_masks_have_no_scores_and_no_runs() -> None:
    x, y = axes_of(30, 40)
    nothing = torch.zeros(0, 256, 256, device=DEVICE)
    count, box = score.score(nothing, x, y, low=-1, middle=0, high=1)
    assert count.shape == (0, 3) and box.shape == (0, 4)
    runs_R, offsets = draw.run_lengths(nothing, box, x, y, threshold=0, corner=(0, 0), image=(30, 40))
    assert len(runs_R) == 0 and offsets.tolist() == [0]


@pytest.mark.parametrize(
    ("height", "width", "corner", "more"),
    [
        (5, 7, (0, 0), (0, 0)),
        (5, 7, (5, 0), (0, 9)),
        (5, 7, (7, 2), (9, 8)),
        (1, 1, (0, 0), (0, 0)),
        (2, 260, (0, 0), (0, 0)),
    ],
)
def test_run_lengths_equal_their_twin(height: int, width: int, corner: tuple[int, int], more: tuple[int, int]) -> None:
    """Of a mask that runs through every edge, of all pixels, of none; where columns go on in the next one, and not."""
    x, y = axes_of(height, width)
    blob = reference.smooth_logits(np.random.default_rng(6), 1)
    logits = torch.cat([blob, blob.abs() + 2, -blob.abs() - 2])
    _, box = torch_resample.score(logits, x, y, low=-1, middle=0, high=1)
    image = (height + more[0], width + more[1])
    wanted, wanted_offsets = torch_runs.run_lengths(logits, box, x, y, threshold=0, corner=corner, image=image)
    given = logits.to(DEVICE), box.to(DEVICE)
    found, offsets = draw.run_lengths(*given, x, y, threshold=0, corner=corner, image=image)
    assert offsets.tolist() == wanted_offsets.tolist()
    assert found.tolist() == wanted.tolist()


def test_a_box_of_several_programs_is_drawn_in_order() -> None:
    x, y = axes_of(3, 100)
    stripes = (torch.arange(256) // 5 % 2 * 4.0 - 2).expand(1, 256, 256)
    box = torch.tensor([[1, 0, 99, 3]])
    wanted = torch_runs.run_lengths(stripes, box, x, y, threshold=0, corner=(2, 1), image=(5, 103))
    found = draw.run_lengths(stripes.to(DEVICE), box.to(DEVICE), x, y, threshold=0, corner=(2, 1), image=(5, 103))
    assert len(wanted[0]) > 2 * draw.LANES
    assert [f.tolist() for f in found] == [w.tolist() for w in wanted]


@triton.jit
def _fma(w0, a, w1, b, out, N: tl.constexpr):
    i = tl.arange(0, N)
    tl.store(out + i, tl.fma(tl.load(w0 + i), tl.load(a + i), tl.load(w1 + i) * tl.load(b + i)))


def test_a_fused_multiplication_rounds_once_here_as_on_the_host() -> None:
    """Where an interpreter rounds twice (Triton 3.6's does), equal scores would not show that they always are."""
    rng = np.random.default_rng(7)
    w0, a, w1, b = (rng.standard_normal(1024).astype(np.float32) for _ in range(4))
    w0[:4] = np.float32(2**-12 * (1 + 2**-23)) * np.array([1, -1, 1, -1], np.float32)
    a[:4] = np.float32(2**-12 * (1 - 2**-23)) * np.array([1, 1, -1, -1], np.float32)
    w1[:4], b[:4] = [1, -1, 1, -1], np.float32(1 + 2**-23) * np.array([1, 1, -1, -1], np.float32)
    out = torch.empty(1024, device=DEVICE)
    _fma[1,](*(torch.from_numpy(v).to(DEVICE) for v in (w0, a, w1, b)), out, N=1024)
    wanted = [resample._mix(*values) for values in zip(w0, a, w1, b, strict=True)]
    np.testing.assert_array_equal(out.cpu().numpy(), np.array(wanted, np.float32))


COMPILE = """
import torch
from amg.kernels import resample
from amg.kernels.gpu import draw, score
from tests.hopper import Compiled

class Marked(Compiled):
    def launch(self, *arguments, **named):
        super().launch(*arguments, **named)
        arguments[-1].fill_(1)  # so that there is something to write

score._sort_blocks, score._evaluate_blocks = map(Compiled, (score._sort_blocks, score._evaluate_blocks))
draw._walk = Marked(draw._walk)
x, y = resample.plan_axis(1800, 1024), resample.plan_axis(1200, 683)
logits, box = torch.zeros(2, 256, 256), torch.zeros(2, 4, dtype=torch.int64)
score.score(logits, x, y, low=-1, middle=0, high=1)
draw.run_lengths(logits, box, x, y, threshold=0, corner=(0, 0), image=(1200, 1800))
for kernel in (score._sort_blocks, score._evaluate_blocks, draw._walk):
    for built in kernel.built:
        assembly = built.asm["ptx"]
        print(built.metadata.shared, assembly.count("fma.rn.f32"), assembly.count("ftz"), len(built.asm["cubin"]))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_hopper(tmp_path: Path) -> None:
    """With as many fused multiplications for a pixel as the reference has, none of which flushes small numbers to 0."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-W", "ignore", "-c", COMPILE]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert len(built) == 4
    assert [fused for _, fused, _, _ in built[1:]] == [13, 26, 26]
    assert all(shared <= 48 * 1024 and flushing == 0 and size > 0 for shared, _, flushing, size in built)
