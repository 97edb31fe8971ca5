"""`python -m tests.chaos.job run IN --out OUT ...`: `sam-amg` with stand-ins for what labels, here and on Ray."""

from __future__ import annotations

import sys

from amg.run import local
from amg.sources import inputs
from tests.chaos import standin


def main() -> int:
    local.Local = standin.StandIn  # type: ignore[misc,assignment]
    inputs.open_source = standin.open_poisonous  # type: ignore[assignment]
    if "ray" in sys.argv:
        from amg.run import on_ray

        on_ray.on_ray = standin.on_ray  # type: ignore[assignment]
    from amg.cli.main import main as sam_amg

    return sam_amg()


if __name__ == "__main__":
    sys.exit(main())
