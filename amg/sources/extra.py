"""What a manifest says of an image beside its path, as a JSON object in text: keys sorted, no spaces."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_ESCAPED_IN_JSON = r'["\\\x00-\x1f]'


def canonical(extra: Mapping[str, Any]) -> str | None:
    """The columns of one row; None where there are none."""
    if not extra:
        return None
    return json.dumps(_plain(extra), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def as_json(columns: pa.RecordBatch) -> pa.Array:
    """The same for every row of a batch, where it can without a Python object for each."""
    if not columns.num_columns:
        return pa.nulls(columns.num_rows, pa.string())
    pieces: list[Any] = []
    for place, name in enumerate(sorted(columns.schema.names)):
        values = _values(columns.column(name))
        if values is None:
            return pa.array([canonical(row) for row in columns.to_pylist()], pa.string())
        key = json.dumps(_plain(name), ensure_ascii=False)
        pieces += [pa.scalar(("," if place else "{") + key + ":"), values]
    return pc.call_function("binary_join_element_wise", [*pieces, pa.scalar("}"), pa.scalar("")])


def _values(column: pa.Array) -> pa.Array | None:
    """A column of whole numbers, truth values or simple text as JSON; None for any other."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return column.cast(pa.string()).fill_null("null")
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        return None
    column = column.cast(pa.string())
    if pc.call_function("any", [_matches(column)]).as_py():
        return None
    quoted = pc.call_function("binary_join_element_wise", [pa.scalar('"'), column, pa.scalar('"'), pa.scalar("")])
    return quoted.fill_null("null")


def _matches(column: pa.Array) -> pa.Array:
    return pc.call_function("match_substring_regex", [column], pc.MatchSubstringOptions(_ESCAPED_IN_JSON))


def _plain(value: Any) -> Any:
    """As JSON has it: no NaN, times as ISO 8601, text that is UTF-8 (a byte that was none becomes U+FFFD)."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_plain(str(name)): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
