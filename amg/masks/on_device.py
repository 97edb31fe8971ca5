"""What works on masks where their logits are: PyTorch's operators, or kernels of ours in Triton."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from amg.kernels import torch_resample, torch_runs


@dataclass(frozen=True, slots=True)
class DeviceKernels:
    """`score` as `torch_resample.score`, `run_lengths` as `torch_runs.run_lengths`."""

    score: Callable[..., tuple[Tensor, Tensor]]
    run_lengths: Callable[..., tuple[Tensor, Tensor]]


def device_kernels(name: str) -> DeviceKernels:
    """`torch`, or `triton`, which needs that package."""
    if name == "triton":
        from amg.kernels.gpu import draw, score

        return DeviceKernels(score.score, draw.run_lengths)
    return DeviceKernels(torch_resample.score, torch_runs.run_lengths)
