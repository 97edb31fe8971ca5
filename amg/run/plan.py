"""What a job will do, written down before it does it: the plan never changes, it only grows.

`_plan/plan.json`                what the masks depend on, and the fingerprint of it
`_plan/manifest-NNNNN.parquet`   the images of one listing: row, key, uri, member, size, tag, shard
`_plan/skipped-NNNNN.parquet`    what the same listing left out, and why

All of them are created if absent. A later run on more files adds a manifest; shards never span two of them.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from amg.config import fingerprint
from amg.errors import FormatError, OutputRefused
from amg.sources.source import Skipped
from amg.storage import Store
from amg.values import ImageRef

PLAN_VERSION = 1
PLAN_FILE = "_plan/plan.json"
MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("member", pa.string()),
        pa.field("size_bytes", pa.int64()),
        pa.field("tag", pa.string()),
        pa.field("shard", pa.int64(), nullable=False),
    ]
)
SKIPPED_SCHEMA = pa.schema(
    [pa.field("path", pa.string(), nullable=False), pa.field("reason", pa.string(), nullable=False)]
)


@dataclass(frozen=True, slots=True)
class Shard:
    """`number` names the file `data/part-NNNNNN.parquet`; `refs` are its images, in plan order."""

    number: int
    refs: tuple[ImageRef, ...]

    @property
    def path(self) -> str:
        return shard_path(self.number)


def shard_path(number: int) -> str:
    """Where a shard lies below the output folder."""
    return f"data/part-{number:06d}.parquet"


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """`manifest` has the columns of MANIFEST_SCHEMA, in row order; `depends_on` is what the fingerprint is made of."""

    depends_on: Mapping[str, Any]
    manifest: pa.Table

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.depends_on)

    @property
    def n_images(self) -> int:
        return self.manifest.num_rows

    def shards(self) -> Iterator[Shard]:
        """Every shard, in order."""
        columns = ("row", "key", "uri", "member", "size_bytes", "tag")
        refs: list[ImageRef] = []
        current = None
        for batch in self.manifest.to_batches(max_chunksize=4096):
            rows = zip(*(batch.column(name).to_pylist() for name in columns), strict=True)
            for number, row in zip(batch.column("shard").to_pylist(), rows, strict=True):
                if current is not None and number != current:
                    yield Shard(current, tuple(refs))
                    refs = []
                current = number
                refs.append(ImageRef(*row))
        if current is not None:
            yield Shard(current, tuple(refs))


def read_plan(store: Store) -> Plan | None:
    """The plan of an output folder, or None when there is none yet."""
    if not store.exists(PLAN_FILE):
        return None
    try:
        content = json.loads(store.read(PLAN_FILE))
        version, depends_on, said = content["version"], content["depends_on"], content["fingerprint"]
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} is not a plan ({error!r}); use another --out, or remove the folder"
        ) from error
    if version != PLAN_VERSION:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} has version {version}, this program reads {PLAN_VERSION}; use the version that made it, or another --out"
        )
    if fingerprint(depends_on) != said:
        raise FormatError(
            f"{store.url}/{PLAN_FILE} was edited: its fingerprint is {said[:12]}, its settings give {fingerprint(depends_on)[:12]}"
        )
    parts = sorted(path for path in _names(store, "_plan") if path.startswith("_plan/manifest-"))
    tables = [pq.read_table(io.BytesIO(store.read(path)), schema=MANIFEST_SCHEMA) for path in parts]
    return Plan(depends_on, pa.concat_tables(tables) if tables else MANIFEST_SCHEMA.empty_table())


def create_plan(store: Store, depends_on: Mapping[str, Any]) -> Plan:
    """A plan without images, or the one that is there; OutputRefused when that is for other settings."""
    content = {"version": PLAN_VERSION, "fingerprint": fingerprint(depends_on), "depends_on": dict(depends_on)}
    store.create_if_absent(PLAN_FILE, json.dumps(content, indent=2).encode())
    plan = read_plan(store)
    assert plan is not None
    refuse_other_settings(plan, depends_on, store.url)
    return plan


def refuse_other_settings(plan: Plan, depends_on: Mapping[str, Any], url: str) -> None:
    """Raise OutputRefused that names every setting that differs, with its value there and here."""
    there, here = dict(plan.depends_on), dict(json.loads(json.dumps(dict(depends_on))))
    names = [name for name in {**there, **here} if there.get(name) != here.get(name)]
    if names:
        lines = [f"  {name}: there {there.get(name)!r}, now {here.get(name)!r}" for name in names]
        raise OutputRefused(
            f"{url} was made with other settings; use another --out, or the same settings:\n" + "\n".join(lines)
        )


def grow(
    store: Store, plan: Plan, refs: Sequence[ImageRef], skipped: Sequence[Skipped], *, images_per_shard: int
) -> Plan:
    """The plan with the images of a new listing that it did not have; those it has stay as they are."""
    known = set(plan.manifest.column("key").to_pylist())
    fresh = [ref for ref in refs if ref.key not in known]
    if not fresh:
        return plan
    first_row = plan.n_images
    first_shard = 0 if not first_row else plan.manifest.column("shard")[-1].as_py() + 1
    table = pa.table(
        {
            "row": pa.array(range(first_row, first_row + len(fresh)), pa.int64()),
            **{name: [getattr(ref, name) for ref in fresh] for name in ("key", "uri", "member", "size_bytes", "tag")},
            "shard": pa.array((first_shard + i // images_per_shard for i in range(len(fresh))), pa.int64()),
        },
        schema=MANIFEST_SCHEMA,
    )
    part = sum(path.startswith("_plan/manifest-") for path in _names(store, "_plan"))
    if not store.create_if_absent(f"_plan/manifest-{part:05d}.parquet", _parquet(table)):
        again = read_plan(store)
        assert again is not None
        return grow(store, again, refs, skipped, images_per_shard=images_per_shard)
    left_out = pa.table([[s.path for s in skipped], [s.reason for s in skipped]], schema=SKIPPED_SCHEMA)
    store.create_if_absent(f"_plan/skipped-{part:05d}.parquet", _parquet(left_out))
    return Plan(plan.depends_on, pa.concat_tables([plan.manifest, table]))


def finished_shards(store: Store) -> set[int]:
    """The numbers of the shards whose file exists: done means that, and nothing else."""
    names = (path.removeprefix("data/part-").removesuffix(".parquet") for path in _names(store, "data"))
    return {int(name) for name in names if name.isdigit()}


def images_per_shard(seconds_per_image: float, *, target_seconds: float = 120.0, most: int = 512) -> int:
    """How many images a worker labels in about two minutes."""
    return max(1, min(most, int(target_seconds / max(seconds_per_image, 1e-6))))


def _names(store: Store, folder: str) -> list[str]:
    return [entry.path for entry in store.list(folder)]


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
