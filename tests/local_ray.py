"""A Ray of its own on loopback, small and quiet; ends with the block."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

TOKEN = secrets.token_hex(32)
"""One for all of them: a process that has spoken to a Ray keeps its token for the next one."""


@contextmanager
def environment(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """What every Ray of the tests is started with; `folder` is for what Ray would keep in the home folder."""
    with pytest.MonkeyPatch.context() as patch:
        (folder / "token").write_text(TOKEN)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "token"))
        # Ray is a dozen processes that import the same modules: compiled once, they start in half the time.
        patch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
        patch.setenv("PYTHONPYCACHEPREFIX", os.environ.get("PYTHONPYCACHEPREFIX", str(folder.parent / "bytecode")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        yield patch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # Ray drops the processes it killed without a wait
            gc.collect()


@contextmanager
def local_ray(folder: Path, *, num_cpus: int = 2, **system: Any) -> Iterator[None]:
    """One node. `system`: settings of Ray's own, such as intervals."""
    with environment(folder):
        import ray

        ray.init(
            address="local",  # else it would join one that runs here already
            num_cpus=num_cpus,
            num_gpus=0,
            object_store_memory=100 * 2**20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address="127.0.0.1",
            _system_config=system or None,
        )
        try:
            yield
        finally:
            ray.shutdown()
