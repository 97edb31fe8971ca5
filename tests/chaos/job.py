"""`python -m tests.chaos.job run IN --out OUT ...`: `sam-amg` with the stand-in for `amg.run.local`."""

from __future__ import annotations

import sys
from types import ModuleType

from tests.chaos import standin


def main() -> int:
    module = ModuleType("amg.run.local")
    module.run_local = standin.run_local  # type: ignore[attr-defined]
    sys.modules["amg.run.local"] = module
    from amg.cli.main import main as sam_amg

    return sam_amg()


if __name__ == "__main__":
    sys.exit(main())
