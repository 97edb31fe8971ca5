"""`amg.run.retry` with the stand-in for the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from amg.config import Config, masks_depend_on
from amg.run import retry
from amg.run.local import Settled
from amg.run.plan import Plan
from amg.run.shard import Label
from tests.chaos import standin


def without_network(replace: Callable[[object, str, object], object]) -> None:
    """Makes `retry_local` label as `standin.run_local` does; `replace` is `setattr`, or one that is undone."""
    replace(retry, "settle", settle)
    replace(retry, "open_label", open_label)
    replace(retry.weights, "checked_file", lambda _: (Path("no-weights"), standin.DIGEST))


def settle(config: Config, plan: Plan | None, *, devices: Sequence[str] | None = None) -> Settled:
    depends_on = masks_depend_on(config, weights_digest=standin.DIGEST, standin=1)
    devices = devices or ["cpu"] * (config.run.workers or 1)
    return Settled(config, devices, depends_on, config.shards.images_per_shard or 2, 0.02)


def open_label(checkpoint: Path, config: Config, device: str) -> Label:
    return standin.stand_in()(device)
