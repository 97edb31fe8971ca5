"""A GPU for every test of this folder; without one they fail, they are not skipped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.gpu.__main__ import no_gpu


@pytest.fixture(autouse=True)
def cuda() -> Iterator[torch.device]:
    """The first GPU, with nothing of other tests in its memory and no bound on it."""
    if missing := no_gpu():
        pytest.fail(f"{missing}; this folder's tests need one: make test-gpu")
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield device
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    torch.cuda.empty_cache()
