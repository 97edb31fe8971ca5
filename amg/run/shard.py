"""One shard, all stages: the one file that knows the whole order, from references to a committed Parquet file."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from amg import __version__
from amg.config import Config, fingerprint, flatten
from amg.run.ahead import decode_ahead
from amg.run.leases import Lease
from amg.run.peak import peak_memory_mb
from amg.shards import schema, writer
from amg.sources.source import Source
from amg.storage.store import Store
from amg.values import GPU_BUSY, GPU_IDLE, Failure, Image, ImageRef, MaskSet, Receipt, Status

Result = MaskSet | Failure
Label = Callable[[Iterable[Image | Failure]], Iterator[Result]]
"""The model's part: one result for each image, in order; a `Failure` passes through."""
OpenLabel = Callable[[str], Label]
"""Loads the model on a device. For workers it is pickled: a module's function, or a `partial` of one."""


@dataclass(frozen=True, slots=True)
class Job:
    """What all shards of a job share; it travels to other processes. `depends_on` is the plan's."""

    source: Source
    store: Store
    config: Config
    depends_on: Mapping[str, Any]


def label_shard(
    lease: Lease,
    job: Job,
    label: Label,
    *,
    seen: Callable[[Result], object],
    begin: Callable[[ImageRef], object] = lambda _: None,
) -> Receipt:
    """Label the images of a shard and commit one file with one row for each, in plan order.

    `seen` hears of every image when it is done. `begin`, in an isolated try, hears of it before a byte is read.
    """
    began, results = time.perf_counter(), list[Result]()
    for failure in lease.settled:
        results.append(failure)
        seen(failure)
    images = _images(lease, job, begin)
    one_by_one = (result for image in images for result in label([image]))
    for result in one_by_one if lease.isolated else label(images):
        results.append(result)
        seen(result)
    seconds = dict(total_seconds(results))
    if GPU_BUSY in seconds:
        seconds[GPU_IDLE] = max(0.0, time.perf_counter() - began - seconds[GPU_BUSY])
    return commit(lease, sorted(results, key=lambda result: result.ref.row), job, seconds)


def _images(lease: Lease, job: Job, begin: Callable[[ImageRef], object]) -> Iterator[Image | Failure]:
    def read(ref: ImageRef) -> bytes | Failure:
        if lease.isolated:
            begin(ref)
        return job.source.read(ref)

    return decoded(lease.to_label, read, job.config, one_by_one=lease.isolated)


def decoded(
    refs: Iterable[ImageRef],
    read: Callable[[ImageRef], bytes | Failure],
    config: Config,
    *,
    one_by_one: bool = False,
) -> Iterator[Image | Failure]:
    """The images in the order of `refs`, as far ahead of the model as `config` allows, or when the one before is done.

    `config` has limits of memory too. They turn an image into a failure, never into other masks, so they are not part
    of the fingerprint.
    """

    def read_if_there_is_memory(ref: ImageRef) -> bytes | Failure:
        try:
            return read(ref)
        except MemoryError:
            return Failure(ref, Status.OUT_OF_MEMORY, "there was not enough memory to read the file")

    fitting = config.memory.image_mb * 2**20 // 3
    allowed = config.decode.max_pixels
    images = decode_ahead(
        refs,
        read_if_there_is_memory,
        threads=1 if one_by_one else config.run.decode_threads,
        ahead=0 if one_by_one else config.run.decode_ahead,
        ahead_bytes=config.memory.ahead_mb * 2**20,
        max_pixels=min(fitting, allowed),
        value_range=config.decode.range,
    )
    return _blame_memory(images) if fitting < allowed else images


def _blame_memory(images: Iterator[Image | Failure]) -> Iterator[Image | Failure]:
    """Reasons that name the setting which was the limit."""
    for image in images:
        if isinstance(image, Failure) and image.status is Status.TOO_LARGE:
            image = replace(image, reason=image.reason.replace("decode.max_pixels", "memory.image_mb"))
        yield image


def commit(lease: Lease, results: Sequence[Result], job: Job, seconds: Mapping[str, float]) -> Receipt:
    """One object, built in memory and created if absent: whoever was first has won, the others throw theirs away."""
    shard, config = lease.shard, job.config
    embedded = None
    if config.output.embed_images:
        settled = {failure.ref.row for failure in lease.settled}
        contents = {ref.row: job.source.read(ref) for ref in shard.refs if ref.row not in settled}
        embedded = {row: content for row, content in contents.items() if isinstance(content, bytes)}
    table = writer.to_table(results, bbox_style=config.output.bbox_style, images=embedded)
    rows = Counter(str(r.status) if isinstance(r, Failure) else str(Status.OK) for r in results)
    masks = sum(len(r) for r in results if isinstance(r, MaskSet))
    footer = {
        "sam_amg.schema_version": str(schema.SCHEMA_VERSION),
        "sam_amg.plan": fingerprint(job.depends_on),
        "sam_amg.config": json.dumps(flatten(config), ensure_ascii=False),
        "sam_amg.model_sha256": str(job.depends_on["weights.sha256"]),
        "sam_amg.shard": str(shard.number),
        "sam_amg.stats": json.dumps({"rows": dict(rows), "masks": masks}),
        "sam_amg.code_version": __version__,
        "sam_amg.created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    content = writer.to_bytes(table, footer)
    won = job.store.create_if_absent(shard.path, content)
    return Receipt(shard.number, rows, masks, won, seconds, len(content), peak_memory_mb())


def total_seconds(results: Sequence[Result]) -> Mapping[str, float]:
    """Seconds per stage over all images."""
    total: Counter[str] = Counter()
    for result in results:
        if isinstance(result, MaskSet):
            total.update(result.seconds)
    return dict(total)
