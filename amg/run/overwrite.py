"""Removing an output so that another job may have its folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from amg.errors import OutputRefused, StorageError
from amg.run.plan import PLAN_FILE

OURS = ("data", "retries", "review", "_state", "_tmp", "_plan")
"""Shards first and the plan last: if the removal is cut short, what is left is an unfinished output of the old plan."""


def is_output(out: str) -> bool:
    """Whether there is an output to remove; False where the folder is missing or empty.

    Raises OutputRefused for a folder that holds anything else.
    """
    folder = Path(out)
    if os.path.isfile(folder / PLAN_FILE):
        return True
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputRefused(
            f"{out} has no {PLAN_FILE}, so it is no output of this program; --overwrite removes nothing else: "
            "choose another --out, or empty the folder yourself"
        )
    return False


def remove_output(out: str) -> None:
    """Remove what this program wrote in `out`; other files in it stay."""
    for name in OURS:
        try:
            shutil.rmtree(Path(out) / name)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(
                f"cannot remove {Path(out) / name}: {error.strerror or error}; what is left is an unfinished output: "
                "see to the folder, then run the same command again"
            ) from error
