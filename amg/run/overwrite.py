"""Removing an output so that another job may have its folder."""

from __future__ import annotations

from amg.errors import OutputRefused, StorageError
from amg.run.plan import PLAN_FILE
from amg.storage.store import TRIAL
from amg.storage.url import open_store

OURS = ("data", "retries", "review", "_state", "_tmp", "_plan")
"""Shards first and the plan last: if the removal is cut short, what is left is an unfinished output of the old plan."""


def is_output(out: str) -> bool:
    """Whether there is an output to remove."""
    return open_store(out).exists(PLAN_FILE)


def refuse_foreign(out: str) -> None:
    """OutputRefused where `out` is a folder with anything in it, and no output of this program."""
    if not is_output(out) and any(entry.path != TRIAL for entry in open_store(out).list()):
        raise OutputRefused(
            f"{out} has no {PLAN_FILE}, so it is no output of this program; --overwrite removes nothing else: "
            "choose another --out, or empty the folder yourself"
        )


def remove_output(out: str) -> None:
    """Remove what this program wrote in `out`; other files in it stay. Refuses as `refuse_foreign`."""
    refuse_foreign(out)
    store = open_store(out)
    for name in OURS:
        try:
            store.remove_folder(name)
        except StorageError as error:
            raise StorageError(f"{error}; until then what is left in {out} is an unfinished output") from error
