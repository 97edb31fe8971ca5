"""An output with its retries, written anew as one clean folder: larger files, every image once, its newest row.

First comes the note of what it is made from, then the plan, then the shards. All are created if absent, so that a
compaction that was killed goes on, and two at once make one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from amg import __version__
from amg.errors import FormatError, OutputRefused, UnfinishedError
from amg.run.generations import read_generations
from amg.run.origin_note import NOTE_FILE, OriginNote, write_note
from amg.run.plan import finished_shards, shard_path
from amg.run.regroup import Origin, read_origin, regroup, write_plan
from amg.shards import schema, shard_file, writer
from amg.shards.footers import read_footers
from amg.shards.overlay import COUNTED, FOLDER
from amg.shards.reader import Snapshot, footer_in
from amg.storage.store import Store
from amg.storage.url import open_store
from amg.values import Status

ROWS_COUNTED_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction came to. `files_before` are those of `data/` and `retries/`, `written` those of this run.

    `rows` by status and `masks` are those of all its files; `left` are planned images that have no row yet.
    """

    out: str
    files_before: int
    files: int
    written: int
    images: int
    left: int
    rows: Mapping[str, int]
    masks: int


def compact(
    folder: str,
    out: str,
    *,
    target_bytes: int,
    partial: bool = False,
    start: Callable[[int], object] = lambda _: None,
    made: Callable[[int], object] = lambda _: None,
) -> Compacted:
    """Write `folder` anew to `out`, in files of about `target_bytes`.

    `start` hears how many images there are, `made` after each file how many it has. Raises UnfinishedError where
    images have no row yet or a retry is not finished, unless `partial`: then what is missing stays planned in `out`.
    OutputRefused where `out` holds anything else, or what was begun from another state of `folder`.
    """
    origin = read_origin(open_store(folder))
    if not partial:
        _refuse_unfinished(origin, folder)
    number_S = regroup(origin, target_bytes)
    images = origin.images(number_S)
    left_out = tuple(sorted(set(number_S[~origin.is_there_S].tolist())))
    numbers = sorted(images.keys() - set(left_out))
    store = open_store(out, create=True)
    store.sweep()
    _begin(store, origin, OriginNote(origin.store.url, origin.state, target_bytes, len(images), left_out), folder)
    write_plan(store, origin, number_S)
    start(sum(images[number] for number in numbers))
    there, written = finished_shards(store), 0
    for number in numbers:
        if number not in there:
            written += _write(store, origin, number_S, number)
        made(images[number])
    return _compacted(store, origin, out, numbers, written)


def _refuse_unfinished(origin: Origin, folder: str) -> None:
    sizes = origin.plan.layout.stop_S - origin.plan.layout.start_S
    missing = int(sizes[~origin.is_there_S].sum())
    lines = [f"{missing} of its {origin.plan.n_images} images have no row yet: finish `sam-amg run`"] if missing else []
    for generation in read_generations(origin.store, origin.plan):
        if left := generation.left.n_images:
            again = f"finish `sam-amg retry {folder} --status {','.join(generation.statuses)}`"
            lines.append(f"retry g{generation.number} has {left} images left: {again}")
    if lines:
        raise UnfinishedError(
            f"{folder} is not finished; with --partial what is there is taken, and the rest stays to be done:\n"
            + "\n".join(f"  {line}" for line in lines)
        )


def _begin(store: Store, origin: Origin, wanted: OriginNote, folder: str) -> None:
    """Write down what this is made from, or see that it is the same; OutputRefused otherwise."""
    foreign = [entry.path for name in ("_plan", "data", FOLDER) for entry in store.list(name)]
    if foreign and not store.exists(NOTE_FILE):
        raise OutputRefused(f"{store.url} holds {foreign[0]}, which is of no compaction; give another --out")
    there = write_note(store, wanted)
    if (there.state, there.target_bytes) != (wanted.state, wanted.target_bytes):
        other_state = there.state != wanted.state
        why = f"from another state of {folder}" if other_state else f"with --target-mb {there.target_bytes / 1e6:g}"
        raise OutputRefused(
            f"{store.url} was begun {why}, its files and the new ones would not fit together; "
            f"give another --out, or remove what is there and compact again"
        )


def _write(store: Store, origin: Origin, number_S: NDArray[np.int64], number: int) -> bool:
    """One file, a row group of it uncompressed in memory at a time; whether it was not there."""
    shards = np.flatnonzero(number_S == number)
    layout = origin.plan.layout
    paths = tuple(shard_path(n) for n in layout.number_S[shards].tolist())
    snapshot = Snapshot(origin.store, paths, origin.overlay)
    stats = _counted(snapshot, range(layout.start_S[shards[0]], layout.stop_S[shards[-1]]))
    footer = {key: value for key, value in footer_in(origin.store, paths[0]).items() if key in schema.FOOTER_KEYS}
    footer |= {
        "sam_amg.shard": str(number),
        "sam_amg.stats": json.dumps(stats),
        "sam_amg.code_version": __version__,
        "sam_amg.created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with shard_file.opened(origin.store, paths[0]) as file:
        columns = file.schema_arrow
    try:
        content = writer.encode(snapshot.batches(), columns, footer)
    except pa.ArrowInvalid as error:
        raise FormatError(
            f"{origin.store.url}: {paths[0]} to {paths[-1]}, or retries of their images, have other columns than the "
            f"first of them ({error}); look what `sam-amg verify` says"
        ) from error
    return store.create_if_absent(shard_path(number), content)


def _counted(snapshot: Snapshot, image_ids: range) -> Mapping[str, Any]:
    """The footer's counts of what is about to be written, which must be these images, in order."""
    rows: Counter[str] = Counter()
    masks, ids = 0, [np.empty(0, np.int64)]
    for batch in snapshot.batches(COUNTED, rows_at_once=ROWS_COUNTED_AT_ONCE):
        ids.append(np.asarray(batch.column("image_id")))
        rows.update(batch.column("status").to_pylist())
        masks += sum(count or 0 for count in batch.column("num_masks").to_pylist())
    if not np.array_equal(np.concatenate(ids), np.array(image_ids)):
        raise FormatError(
            f"{snapshot.store.url}: {snapshot.paths[0]} to {snapshot.paths[-1]} do not have the images "
            f"{image_ids.start} to {image_ids.stop - 1} once each and in order; look what `sam-amg verify` says"
        )
    return {"rows": dict(rows), "masks": masks}


def _compacted(store: Store, origin: Origin, out: str, numbers: list[int], written: int) -> Compacted:
    rows: Counter[str] = Counter()
    masks = 0
    for footer in read_footers(store, [shard_path(number) for number in numbers]):
        if isinstance(footer, FormatError):
            raise footer
        rows.update(footer.stats["rows"])
        masks += footer.stats["masks"]
    counted = {str(status): rows[status] for status in Status if rows[status]}
    images = sum(counted.values())
    left = origin.plan.n_images - images
    return Compacted(out, len(origin.size_bytes), len(numbers), written, images, left, counted, masks)
