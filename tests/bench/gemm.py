"""How fast this machine multiplies float32 matrices: the ceiling that a stage's share is of.

    python -m tests.bench.gemm [--threads N]

Square products by PyTorch over all threads, by PyTorch with one thread a core side by side, and by oneDNN; the
fastest of all is the ceiling. Each is the best of several tries: what else runs can only slow it down.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

SIDES = (768, 1024, 1536, 2048)
TRIES = 8


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    print(json.dumps(rates(parser.parse_args(arguments).threads)))
    return 0


def rates(threads: int) -> dict[str, float]:
    """GFLOP/s of the best size, by way."""
    torch.set_num_threads(threads)
    ways = {"pytorch": together}
    if torch.backends.mkldnn.is_available():
        ways["onednn"] = by_onednn
    ways["pytorch, a thread a core"] = lambda n: side_by_side(n, threads)  # last: it changes the threads of a product
    return {name: max(way(n) for n in SIDES) for name, way in ways.items()}


def together(n: int) -> float:
    a, b, c = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    return 2e-9 * n**3 / fastest(lambda: torch.mm(a, b, out=c))


def by_onednn(n: int) -> float:
    a, b = torch.rand(n, n), torch.rand(n, n)
    return 2e-9 * n**3 / fastest(lambda: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))


def side_by_side(n: int, threads: int) -> float:
    """A product of its own for each thread."""
    own = [(torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)) for _ in range(threads)]
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as lanes:
        return (
            2e-9
            * n**3
            * threads
            / fastest(lambda: list(lanes.map(lambda abc: torch.mm(abc[0], abc[1], out=abc[2]), own)))
        )


def fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several tries, after one that is not timed."""
    work()
    seconds = []
    for _ in range(TRIES):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    sys.exit(main())
