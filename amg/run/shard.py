"""One shard, all stages: the one file that knows the whole order, from references to a committed Parquet file."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from amg import __version__
from amg.config import Config, flatten
from amg.decode import decode_ahead
from amg.generate import generate_masks
from amg.run.plan import Plan, Shard
from amg.sam.model import Sam
from amg.shards import schema, writer
from amg.sources.source import Source
from amg.storage import Store
from amg.values import Failure, MaskSet, Receipt, Status

Result = MaskSet | Failure


def label_shard(
    shard: Shard, source: Source, sam: Sam, config: Config, plan: Plan, store: Store, *, seen: Callable[[Result], None]
) -> Receipt:
    """Label the images of a shard and commit one file with one row for each, in plan order; `seen` hears of every image."""
    images = decode_ahead(
        shard.refs,
        source.read,
        threads=config.run.decode_threads,
        ahead=config.run.decode_ahead,
        max_pixels=config.decode.max_pixels,
        value_range=config.decode.range,
    )
    results = []
    for result in generate_masks(images, sam, config.generate, candidates_mb=config.memory.candidates_mb):
        results.append(result)
        seen(result)
    return commit(shard, results, source, config, plan, store)


def commit(
    shard: Shard, results: Sequence[Result], source: Source, config: Config, plan: Plan, store: Store
) -> Receipt:
    """One object, built in memory and created if absent: whoever was first has won, the others throw theirs away."""
    embedded = None
    if config.output.embed_images:
        contents = {ref.row: source.read(ref) for ref in shard.refs}
        embedded = {row: content for row, content in contents.items() if isinstance(content, bytes)}
    table = writer.to_table(results, bbox_style=config.output.bbox_style, images=embedded)
    rows = Counter(str(r.status) if isinstance(r, Failure) else str(Status.OK) for r in results)
    masks = sum(len(r) for r in results if isinstance(r, MaskSet))
    seconds = total_seconds(results)
    footer = {
        "sam_amg.schema_version": str(schema.SCHEMA_VERSION),
        "sam_amg.plan": plan.fingerprint,
        "sam_amg.config": json.dumps(flatten(config), ensure_ascii=False),
        "sam_amg.model_sha256": str(plan.depends_on["weights.sha256"]),
        "sam_amg.shard": str(shard.number),
        "sam_amg.stats": json.dumps({"rows": dict(rows), "masks": masks}),
        "sam_amg.code_version": __version__,
        "sam_amg.created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    won = store.create_if_absent(shard.path, writer.to_bytes(table, footer))
    return Receipt(shard.number, rows, masks, won, seconds)


def total_seconds(results: Sequence[Result]) -> Mapping[str, float]:
    """Seconds per stage over all images."""
    total: Counter[str] = Counter()
    for result in results:
        if isinstance(result, MaskSet):
            total.update(result.seconds)
    return dict(total)
