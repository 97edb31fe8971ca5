"""`python -m tests.chaos.job run IN --out OUT ...`: `sam-amg` with stand-ins for what labels: here, on Ray, again."""

from __future__ import annotations

import sys
from types import ModuleType

from amg.run import local
from tests.chaos import standin
from tests.chaos.again import without_network


def main() -> int:
    local.run_local = standin.run_local
    on_ray = ModuleType("amg.run.on_ray")
    on_ray.run_on_ray = standin.run_on_ray  # type: ignore[attr-defined]
    sys.modules[on_ray.__name__] = on_ray
    without_network(setattr)
    from amg.cli.main import main as sam_amg

    return sam_amg()


if __name__ == "__main__":
    sys.exit(main())
