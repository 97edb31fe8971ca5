"""One shard against its part of the plan: footer, rows, and every run length of every mask."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from amg import rle
from amg.errors import FormatError, StorageError
from amg.geometry import Size
from amg.shards import schema
from amg.shards.footers import NOT_WHOLE, Footer, one_line, parse_footer
from amg.shards.measure import measure
from amg.storage.store import Store
from amg.values import Status

REMAKE = "remove the file and run the same command again: it is made anew"
SHOWN_OF_A_KIND = 3  # in one shard; a wrong setting would otherwise give a line for every mask
ROWS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: where it is, what is there, what should be there, and what to do. `kind` is one word for programs."""

    kind: str
    where: str
    came: str
    wanted: str
    advice: str = REMAKE

    def __str__(self) -> str:
        return f"{self.where}: {self.came}, wanted {self.wanted}; {self.advice}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the plan says of a shard. `depends_on` is what its fingerprint is made of."""

    path: str
    number: int
    fingerprint: str
    depends_on: Mapping[str, Any]
    image_ids: Sequence[int]
    keys: Sequence[str]


@dataclass(slots=True)
class Checked:
    """What was looked at in a shard, and what was found."""

    rows: Counter[str] = field(default_factory=Counter)
    masks: int = 0
    image_ids: list[int] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def check_shard(store: Store, wanted: Wanted) -> Checked:
    """Reads a shard from end to end; its findings, at most a few of a kind."""
    checked = Checked()
    checked.findings = list(_capped(_faults(store, wanted, checked), wanted.path))
    return checked


def _capped(findings: Iterable[Finding], path: str) -> Iterator[Finding]:
    seen: Counter[str] = Counter()
    for finding in findings:
        seen[finding.kind] += 1
        if seen[finding.kind] <= SHOWN_OF_A_KIND:
            yield finding
    for kind, count in seen.items():
        if count > SHOWN_OF_A_KIND:
            yield Finding(kind, path, f"{count - SHOWN_OF_A_KIND} more faults of this kind ({kind})", "none")


def _faults(store: Store, wanted: Wanted, checked: Checked) -> Iterator[Finding]:
    path = wanted.path
    try:
        footer = parse_footer(store, path)
        yield from _footer_faults(footer, wanted)
        if footer.version != str(schema.SCHEMA_VERSION):
            return
        with store.open(path) as stream:
            file = pq.ParquetFile(stream, page_checksum_verification=True)
            wrong = list(_column_faults(file.schema_arrow, path))
            yield from wrong
            if wrong:
                return
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                yield from _batch_faults(batch, _bbox_style(footer), path, checked)
    except NOT_WHOLE as error:
        yield Finding("damaged", path, f"a file that cannot be read ({one_line(error)})", "a whole shard")
        return
    except StorageError as error:
        yield Finding(
            "unreadable", path, f"an error of the disk ({error})", "a file that can be read", "see to that disk"
        )
        return
    yield from _row_faults(wanted, checked)
    yield from _stats_faults(footer, checked)


def _footer_faults(footer: Footer, wanted: Wanted) -> Iterator[Finding]:
    path, values = footer.path, footer.values
    said = (
        (
            "schema_version",
            schema.VERSION_KEY,
            str(schema.SCHEMA_VERSION),
            "use the release that wrote it, or a newer one",
        ),
        ("fingerprint", "sam_amg.plan", wanted.fingerprint, f"it belongs to another job: {REMAKE}"),
        ("shard_number", "sam_amg.shard", str(wanted.number), f"it was renamed: {REMAKE}"),
        ("weights", "sam_amg.model_sha256", str(wanted.depends_on.get("weights.sha256")), REMAKE),
    )
    for kind, key, value, advice in said:
        if values.get(key) != value:
            came = f"{key} is {_short(values[key])}" if key in values else f"no {key} in the footer"
            yield Finding(kind, path, came, _short(value), advice)
    settings = _parsed(values.get("sam_amg.config"))
    if not isinstance(settings, dict):
        yield Finding("settings", path, "no readable sam_amg.config in the footer", "all settings as JSON")
    else:
        for name in sorted(settings.keys() & wanted.depends_on.keys()):
            if settings[name] != wanted.depends_on[name]:
                came, there = f"sam_amg.config has {name} = {settings[name]!r}", repr(wanted.depends_on[name])
                yield Finding("settings", path, came, f"{there} as in the plan")


def _column_faults(columns: pa.Schema, path: str) -> Iterator[Finding]:
    for each in schema.COLUMNS:
        if each.name not in columns.names:
            yield Finding("columns", path, f"no column {each.name}", str(each.type))
        elif columns.field(each.name).type != each.type:
            yield Finding("columns", path, f"column {each.name} is {columns.field(each.name).type}", str(each.type))
    shown = _parsed((columns.metadata or {}).get(schema.HUGGINGFACE_KEY.encode()))
    try:
        described = set(shown["info"]["features"])
    except (TypeError, KeyError):
        yield Finding(
            "huggingface", path, f"no readable {schema.HUGGINGFACE_KEY} in the footer", "the features for `datasets`"
        )
        return
    if described != set(columns.names):
        different = ", ".join(sorted(described ^ set(columns.names)))
        yield Finding("huggingface", path, f"{schema.HUGGINGFACE_KEY} disagrees on {different}", "the file's columns")


def _bbox_style(footer: Footer) -> str:
    settings = _parsed(footer.values.get("sam_amg.config"))
    style = settings.get("output.bbox_style") if isinstance(settings, dict) else None
    return style if style in rle.BBOX_STYLES else "exact"


def _batch_faults(batch: pa.RecordBatch, bbox_style: str, path: str, checked: Checked) -> Iterator[Finding]:
    """What is wrong inside the rows of a batch; their ids, keys and statuses are noted in `checked`."""
    scalars = ("image_id", "key", "width", "height", "status", "error", "num_masks")
    columns = {name: batch.column(name).to_pylist() for name in scalars}
    kept = [each and each["kept"] for each in batch.column("funnel").to_pylist()]
    lengths = batch.column("annotations").value_lengths().to_pylist()
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for row, masks, funnel_kept in zip(rows, lengths, kept, strict=True):
        checked.rows[row["status"]] += 1
        checked.masks += masks or 0
        checked.image_ids.append(row["image_id"])
        checked.keys.append(row["key"])
        yield from _one_row_faults(row, masks, funnel_kept, f"{path}: image {row['image_id']} ({row['key']})")
    yield from _mask_faults(batch.column("annotations"), rows, [n or 0 for n in lengths], bbox_style, path)


def _one_row_faults(row: Mapping[str, Any], masks: int | None, kept: int | None, where: str) -> Iterator[Finding]:
    status, said = row["status"], row["num_masks"]
    if status not in set(Status):
        yield Finding("status", where, f"status {status!r}", f"one of {', '.join(Status)}")
    elif status != Status.OK:
        if masks is not None or said is not None or not row["error"]:
            came = f"status {status}, {masks} masks, num_masks {said}, error {row['error']!r}"
            yield Finding("failure", where, came, "a reason and neither masks nor their number")
    elif masks is None or not row["width"] or not row["height"]:
        came = f"status ok, width {row['width']}, height {row['height']}, annotations {masks}"
        yield Finding("no_masks", where, came, "a size, and a list of masks that may be empty")
    else:
        if said != masks:
            yield Finding("num_masks", where, f"num_masks is {said}", f"{masks}, the length of annotations")
        if kept != masks:
            yield Finding("funnel", where, f"funnel.kept is {kept}", f"{masks}, the length of annotations")


def _mask_faults(
    annotations: pa.Array, rows: Sequence[Mapping[str, Any]], lengths: Sequence[int], bbox_style: str, path: str
) -> Iterator[Finding]:
    """Ids, sizes, strings, pixels, areas and boxes of all masks of a batch."""
    masks = annotations.flatten()
    if not len(masks):
        return
    row_K = np.repeat(np.arange(len(rows)), lengths)
    place_K = np.arange(len(masks)) - np.repeat(np.cumsum([0, *lengths])[:-1], lengths)
    id_K = _numbers(masks, "id")
    wanted_id_K = np.array([row["image_id"] for row in rows], np.int64)[row_K] << schema.MASKS_PER_IMAGE_BITS | place_K
    size_K2 = _numbers(masks, "segmentation", "size").reshape(-1, 2)
    image_K2 = np.array([(row["height"] or 0, row["width"] or 0) for row in rows], np.int64)[row_K]
    strings = masks.field("segmentation").field("counts")
    measured = measure(*_characters(strings), image_K2[:, 0])
    wanted_box_K4 = rle.xywh(measured.box_K4.astype(np.int32), bbox_style=bbox_style)
    box_K4, area_K, pixels_K = _numbers(masks, "bbox").reshape(-1, 4), _numbers(masks, "area"), measured.pixels_K
    whole_K = measured.valid_K & (pixels_K == image_K2.prod(axis=1))

    def say(
        kind: str, wrong_K: NDArray[np.bool_], came: Callable[[int], str], wanted: Callable[[int], str]
    ) -> Iterator[Finding]:
        for n in np.flatnonzero(wrong_K).tolist():
            row = rows[row_K[n]]
            where = f"{path}: image {row['image_id']} ({row['key']}), mask {place_K[n]}"
            yield Finding(kind, where, came(n), wanted(n))

    yield from say("id", id_K != wanted_id_K, lambda n: f"id {id_K[n]}", lambda n: f"{wanted_id_K[n]}")
    yield from say(
        "size",
        (size_K2 != image_K2).any(axis=1),
        lambda n: f"segmentation.size {size_K2[n].tolist()}",
        lambda n: f"{image_K2[n].tolist()}, height and width of the image",
    )
    yield from say(
        "run_lengths",
        ~whole_K,
        lambda n: _why(strings[n].as_py(), image_K2[n].tolist()),
        lambda n: f"a string that covers the image's {image_K2[n].prod()} pixels",
    )
    yield from say(
        "area", whole_K & (area_K != measured.area_K), lambda n: f"area {area_K[n]}", lambda n: f"{measured.area_K[n]}"
    )
    yield from say(
        "bbox",
        whole_K & (box_K4 != wanted_box_K4).any(axis=1),
        lambda n: f"bbox {box_K4[n].tolist()}",
        lambda n: f"{wanted_box_K4[n].tolist()} (bbox_style {bbox_style})",
    )


def _row_faults(wanted: Wanted, checked: Checked) -> Iterator[Finding]:
    """Each planned image once, in order."""
    path = wanted.path
    if len(checked.image_ids) != len(wanted.image_ids):
        came = f"{len(checked.image_ids)} rows"
        yield Finding("row_count", path, came, f"{len(wanted.image_ids)}, one for each planned image")
    for image_id, count in Counter(checked.image_ids).items():
        if count > 1:
            yield Finding("duplicate", path, f"image {image_id} in {count} rows", "one")
    there = zip(checked.image_ids, checked.keys, strict=True)
    planned = zip(wanted.image_ids, wanted.keys, strict=True)
    for row, (came, should) in enumerate(zip_longest(there, planned)):
        if came != should:  # what follows is shifted, so that one line says it
            yield Finding("rows", f"{path}: row {row}", _named(came), _named(should))
            return


def _stats_faults(footer: Footer, checked: Checked) -> Iterator[Finding]:
    counted = {"rows": dict(checked.rows), "masks": checked.masks}
    try:
        said = dict(footer.stats)
    except FormatError:
        said = None
    if said != counted:
        came = f"sam_amg.stats {footer.values.get('sam_amg.stats')!r}"
        yield Finding("stats", footer.path, came, f"{json.dumps(counted)} as its rows say")


def _numbers(masks: pa.Array, *names: str) -> NDArray[Any]:
    values = masks
    for name in names:
        values = values.field(name)
    while pa.types.is_fixed_size_list(values.type):
        values = values.flatten()
    return values.to_numpy(zero_copy_only=False)


def _characters(strings: pa.Array) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The bytes of all strings end to end, and the offsets that tell them apart."""
    binary = strings.cast(pa.large_binary())
    _, offsets, data = binary.buffers()
    offsets_K1 = np.frombuffer(offsets, np.int64)[binary.offset : binary.offset + len(binary) + 1]
    characters = np.frombuffer(data or b"", np.uint8)[offsets_K1[0] : offsets_K1[-1]]
    return characters, offsets_K1 - offsets_K1[0]


def _why(text: str, size: Sequence[int]) -> str:
    """What is wrong with a run-length string, in words."""
    try:
        rle.decode(text, size=Size(*size) if all(size) else None)
    except FormatError as error:
        return str(error).split(", wanted")[0].split(":")[0]
    return "run lengths that do not fit"


def _parsed(text: str | bytes | None) -> Any:
    try:
        return json.loads(text or "")
    except ValueError:
        return None


def _named(row: tuple[int, str] | None) -> str:
    return "no row" if row is None else f"image {row[0]} ({row[1]})"


def _short(value: str) -> str:
    return value if len(value) < 24 else value[:12]
