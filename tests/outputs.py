"""Whole outputs of a job that never ran: a plan, its shards, and ways to damage them."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from amg import rle
from amg.config import Config, flatten, load_config, masks_depend_on
from amg.geometry import Size, plan_crops
from amg.run import generations
from amg.run import plan as planning
from amg.run.generations import Generation
from amg.run.growth import grow
from amg.run.plan import Plan
from amg.run.status import planned
from amg.shards import schema, writer
from amg.storage.url import open_store
from amg.values import Failure, Funnel, ImageRef, MaskSet, Status

SIZE = Size(30, 40)
DIGEST = "d" * 64


def mask_set(ref: ImageRef, k: int) -> MaskSet:
    """Discs of any size, the first one empty and the second one full when there are more than two."""
    rng = np.random.default_rng(ref.row)
    y, x = np.mgrid[: SIZE.height, : SIZE.width]
    discs = [np.hypot(y - rng.integers(30), x - rng.integers(40)) < rng.integers(2, 25) for _ in range(k)]
    if k > 2:
        discs[0], discs[1] = np.zeros_like(discs[0]), np.ones_like(discs[0])
    runs = [rle.from_mask(disc) for disc in discs]
    return MaskSet(
        ref=ref,
        size=SIZE,
        original=SIZE,
        orientation=1,
        crops=tuple(plan_crops(SIZE, n_layers=0, overlap_ratio=0.3)),
        runs_R=np.concatenate([np.empty(0, np.uint32), *runs]),
        offsets_K1=np.cumsum([0, *map(len, runs)]).astype(np.int64),
        box_K4=np.array([rle.box(each, SIZE.height) for each in runs], np.int32).reshape(k, 4),
        area_K=np.array([disc.sum() for disc in discs], np.int64),
        predicted_iou_K=rng.random(k, np.float32),
        stability_K=rng.random(k, np.float32),
        point_K2=rng.integers(0, 300, (k, 2)) / 8,
        crop_K=np.zeros(k, np.int32),
        point_index_K=np.arange(k, dtype=np.int32),
        mask_index_K=np.zeros(k, np.int8),
        changed_K=np.zeros(k, np.bool_),
        funnel=Funnel(candidates=3 * k, dropped_stability=2 * k, kept=k),
        seconds={"encode": 0.1},
    )


def result(ref: ImageRef) -> MaskSet | Failure:
    """Every fifth image is broken; the others have up to five masks."""
    if ref.row % 5 == 3:
        return Failure(ref, Status.DECODE_ERROR if ref.row % 10 == 3 else Status.MISSING, f"it is broken: {ref.key}")
    return mask_set(ref, ref.row % 6)


def make_output(
    folder: Path, keys: list[str], *, images_per_shard: int = 2, shards: range | None = None, **settings: Any
) -> Plan:
    """Plans `keys` and writes the shards (all, or those of a range); `settings` as `generate__points_per_side=4`."""
    config = load_config(overrides={name.replace("__", "."): value for name, value in settings.items()})
    store = open_store(folder, create=True)
    plan = planning.create_plan(store, masks_depend_on(config, weights_digest=DIGEST, schema=schema.SCHEMA_VERSION))
    refs = [ImageRef(row, key, f"/photos/{key}", None, 10, "tag") for row, key in enumerate(keys)]
    plan = grow(store, plan, refs, [], images_per_shard=images_per_shard)
    for shard in plan.shards():
        if shards is None or shard.number in shards:
            store.create_if_absent(shard.path, shard_bytes(shard, plan, config))
    return plan


def retry_output(
    folder: Path,
    statuses: Sequence[str],
    *,
    images_per_shard: int = 1,
    shards: range | None = None,
    become: Callable[[ImageRef], MaskSet | Failure] = lambda ref: mask_set(ref, 4),
) -> Generation:
    """Plans a retry and writes its shards (all, or those of a range) with what its images become."""
    store = open_store(folder)
    plan, wanted = planned(store), generations.failures_named(statuses)
    todo = generations.look(store, plan, wanted)
    generation = generations.begin(store, plan, wanted, todo, images_per_shard=images_per_shard)
    assert generation is not None, f"no image is {statuses}"
    for shard in generation.plan.shards():
        if shards is None or shard.number in shards:
            generation.store.create_if_absent(shard.path, shard_bytes(shard, plan, load_config(), become=become))
    return generation


def shard_bytes(
    shard: planning.Shard,
    plan: Plan,
    config: Config,
    *,
    become: Callable[[ImageRef], MaskSet | Failure] = result,
) -> bytes:
    results = [become(ref) for ref in shard.refs]
    rows = Counter(str(r.status) if isinstance(r, Failure) else "ok" for r in results)
    masks = sum(len(r) for r in results if isinstance(r, MaskSet))
    footer = {
        "sam_amg.plan": plan.fingerprint,
        "sam_amg.config": json.dumps(flatten(config)),
        "sam_amg.model_sha256": DIGEST,
        "sam_amg.shard": str(shard.number),
        "sam_amg.stats": json.dumps({"rows": rows, "masks": masks}),
        "sam_amg.code_version": "0",
        "sam_amg.created": "2026-01-01T00:00:00+00:00",
    }
    return writer.to_bytes(writer.to_table(results, bbox_style=config.output.bbox_style), footer)


def rewrite(
    path: Path,
    rows: Callable[[list[dict[str, Any]]], Any] = lambda _: None,
    footer: Callable[[dict[str, str]], Any] = lambda _: None,
) -> None:
    """The shard again with rows and footer changed in place, as a program that knows Parquet would write it."""
    table = pq.read_table(path)
    content = table.to_pylist()
    rows(content)
    values = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    footer(values)
    changed = pa.Table.from_pylist(content, schema=table.schema).replace_schema_metadata(values)
    sink = io.BytesIO()
    pq.write_table(changed, sink, compression="zstd", write_page_checksum=True)
    path.write_bytes(sink.getvalue())


def stands_for_published(weights: ModuleType, file: str | Path) -> None:
    """Make `amg.sam.weights` take the file for the default weights, whatever is in it. Needs no torch."""
    known = replace(weights.KNOWN[weights.DEFAULT], sha256=weights.digest(Path(file)))
    weights.KNOWN[weights.DEFAULT] = known
    weights.resolve = lambda _: Path(file)  # type: ignore[method-assign]
