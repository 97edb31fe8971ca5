"""What deaths have shown, kept in the output: files `_state/attempts/NNNNNN-KKKKK.json`, created if absent.

A job that is killed with its worker (a machine out of memory takes both) starts its next run in isolation where it
died, and does not pay again for images that are settled. Nothing here says that a shard is done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from amg.run.leases import Death, History, Suspicion
from amg.storage.store import Store
from amg.values import Status

FOLDER = "_state/attempts"


def read_attempts(store: Store) -> dict[int, History]:
    """The last known history of each shard that a worker died of. Files that cannot be read count as not there."""
    newest: dict[int, str] = {}
    for entry in store.list(FOLDER):
        number = entry.path.removeprefix(f"{FOLDER}/").partition("-")[0]
        if number.isdigit():
            newest[int(number)] = entry.path
    read = {number: _from_json(store.read(path)) for number, path in newest.items()}
    return {number: history for number, history in read.items() if history is not None}


def record(store: Store, shard: int, history: History) -> None:
    """Write down what a shard's tries have shown by now, beside what was known earlier."""
    attempt = history.deaths
    while not store.create_if_absent(f"{FOLDER}/{shard:06d}-{attempt:05d}.json", _to_json(history)):
        attempt += 1


def _to_json(history: History) -> bytes:
    content = {
        "deaths": history.deaths,
        "suspects": {row: asdict(suspicion) for row, suspicion in history.suspects.items()},
        "settled": {row: asdict(suspicion) for row, suspicion in history.settled.items()},
    }
    return json.dumps(content, indent=2).encode()


def _from_json(data: bytes) -> History | None:
    try:
        content = json.loads(data)
        return History(content["deaths"], _suspicions(content["suspects"]), _suspicions(content["settled"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _suspicions(by_row: Mapping[str, Any]) -> dict[int, Suspicion]:
    return {int(row): Suspicion(**(seen | {"last": _death(**seen["last"])})) for row, seen in by_row.items()}


def _death(status: str, reason: str, in_doubt: bool) -> Death:
    return Death(Status(status), reason, in_doubt)
