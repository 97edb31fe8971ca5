"""`_plan/compacted.json`: what a compacted output was made from, so that a compaction that was killed goes on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from amg.errors import FormatError
from amg.run.plan import shard_path
from amg.storage.store import Store

NOTE_FILE = "_plan/compacted.json"
VERSION = 1


@dataclass(frozen=True, slots=True)
class OriginNote:
    """`state` is a digest of the files that it is made from. Of its `shards` it makes all but `left_out`."""

    origin: str
    state: str
    target_bytes: int
    shards: int
    left_out: tuple[int, ...]

    @property
    def made(self) -> frozenset[str]:
        """The paths of the shards that the compaction writes."""
        return frozenset(shard_path(number) for number in range(self.shards) if number not in set(self.left_out))


def write_note(store: Store, note: OriginNote) -> OriginNote:
    """The note that is there now: this one, or an earlier one."""
    store.create_if_absent(NOTE_FILE, json.dumps({"version": VERSION, **asdict(note)}, indent=2).encode())
    there = read_note(store)
    assert there is not None
    return there


def read_note(store: Store) -> OriginNote | None:
    """None where the output is not a compacted one."""
    if not store.exists(NOTE_FILE):
        return None
    try:
        said = json.loads(store.read(NOTE_FILE))
        version, left_out = said.pop("version"), tuple(said.pop("left_out"))
        note = OriginNote(left_out=left_out, **said)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(
            f"{store.url}/{NOTE_FILE} is not what this program writes ({error!r}); use another --out"
        ) from error
    if version != VERSION:
        raise FormatError(
            f"{store.url}/{NOTE_FILE} has version {version}, this program reads {VERSION}; "
            "use the version that made it, or another --out"
        )
    return note
