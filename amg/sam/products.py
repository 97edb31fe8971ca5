"""Which library multiplies the image encoder's matrices on this CPU: measured, not guessed.

PyTorch gives float32 products to MKL, which takes a slow path on processors of other makers; oneDNN's was 2.1 times as
fast on a Zen 5 and 0.9 times on an Emerald Rapids. So both are timed on one product when a model is loaded.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MARGIN = 1.5
"""How many times as fast oneDNN has to be, far from 1 so that every process on a machine chooses the same one: the two
round differently, and rows must not depend on who made them."""

_SHAPE = 1024, 768, 768  # tokens, inputs, outputs: a quarter of a ViT-B's projection, a few milliseconds
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Products:
    """Rates in GF/s on one core, `onednn` 0 where PyTorch was built without it."""

    mkl: float
    onednn: float

    @property
    def by_onednn(self) -> bool:
        return self.onednn > MARGIN * self.mkl

    def __str__(self) -> str:
        chosen, other = ("oneDNN", "MKL") if self.by_onednn else ("MKL", "oneDNN")
        rates = {"MKL": self.mkl, "oneDNN": self.onednn}
        return f"products by {chosen}: {rates[chosen]:.0f} GF/s on one core, {other} {rates[other]:.0f}"


class OneDnnLinear(nn.Linear):
    """`nn.Linear`, multiplied by oneDNN where nothing but the numbers is wanted."""

    def forward(self, input: Tensor) -> Tensor:  # the name is nn.Linear's
        recorded = torch.is_grad_enabled() or torch.compiler.is_compiling() or torch._C._get_tracing_state()
        if recorded or input.dtype != torch.float32 or input.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        return _by_onednn(input, self.weight, self.bias)


def use_fastest_products(encoder: nn.Module) -> str:
    """Let the faster library multiply for the linear layers of an encoder on a CPU; returns the choice in words."""
    products = measure_products()
    for module in encoder.modules():
        if products.by_onednn and type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    _log.info("%s", products)
    return str(products)


@cache
def measure_products() -> Products:
    """Time one product in both libraries in turn, the best of eight; some 0.1 s, once a process.

    On one core: with more, a busy neighbour halves one of the rates now and then, and the choice would be another.
    """
    n, inputs, outputs = _SHAPE
    x, weight, bias = torch.ones(n, inputs), torch.ones(outputs, inputs), torch.ones(outputs)
    flops = 2e-9 * n * inputs * outputs
    mkl = onednn = float("inf")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for _ in range(8):
                mkl = min(mkl, _seconds(lambda: F.linear(x, weight, bias)))
                if torch.backends.mkldnn.is_available():
                    onednn = min(onednn, _seconds(lambda: _by_onednn(x, weight, bias)))
    finally:
        torch.set_num_threads(threads)
    return Products(flops / mkl, flops / onednn)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _seconds(work: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
