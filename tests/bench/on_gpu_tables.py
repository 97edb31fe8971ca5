"""The tables of docs/gpu.md, from the rows of docs/gpu.json (`gpu NAME` each)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tests.bench.markdown import megabytes, seconds, table

Row = dict[str, Any]
Rows = Mapping[str, Row]

MODELS = {"vit_h": "ViT-H", "vit_l": "ViT-L", "vit_b": "ViT-B", "vit_t": "MobileSAM"}


def speed(row: Row) -> str:
    """A line a model, a size and a precision."""
    lines = [
        [
            MODELS.get(case["model"], case["model"]),
            case["size"],
            precision,
            f"{found['images_per_second']:.2f}",
            f"{found['times_reference']:.1f}x",
            "" if found["times_pipeline"] is None else f"{found['times_pipeline']:.1f}x",
            f"{found['share_of_limit']:.0%} of {found['limit_images_per_second']:.1f}",
            " / ".join(f"{found['part_ms'][part]:.1f}" for part in ("encode", "prepare", "decode", "rest")),
            f"{megabytes(found['device_mb'])} / {megabytes(case['reference']['device_mb'])}",
            f"{found['agreement']['f1']:.4f}",
        ]
        for case in row["cases"]
        for precision, found in case["ours"].items()
    ]
    head = [
        "model", "photo", "precision", "images/s", "the original", "transformers", "limit, images/s",
        "ms: encode / prepare / decode / rest", "memory, ours / theirs", "F1 with theirs",
    ]  # fmt: skip
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in row["rates"].items())
    return table(head, lines) + f"\n\nThe device's rates, TFLOP/s: {rates}."


def cold(row: Row) -> str:
    lines = [
        [
            MODELS.get(model, model),
            seconds(case["empty"]["first_image_seconds"]),
            seconds(case["full"]["first_image_seconds"]),
            seconds(case["full"]["second_image_seconds"]),
        ]
        for model, case in row["cases"].items()
    ]
    return table(["model", "first image, empty caches", "first image, full caches", "second image"], lines)


def idle(row: Row) -> str:
    lines = [
        [
            MODELS.get(model, model),
            f"{case['images']}",
            f"{case['images'] / case['wall_seconds']:.2f}",
            f"{case['idle_share']:.1%}",
            megabytes(case["device_mb"]),
        ]
        for model, case in row["cases"].items()
    ]
    return table(["model", "photos", "images/s", "no kernel for", "memory"], lines)


def agreement(row: Row) -> str:
    lines = [
        [
            precision,
            f"{case['same_count']} of {case['images']}",
            f"{case['mean_iou']:.7f}",
            f"{case['f1']:.4f}",
        ]
        for precision, case in row["cases"].items()
    ]
    return table(["precision", "photos with the same number of masks", "mean IoU", "F1 at IoU 0.9"], lines)


def rounding(row: Row) -> str:
    """The one row that is of a CPU."""
    lines = [
        [
            name,
            f"{each['f1']:.4f}",
            f"{each['worst_f1']:.4f}",
            f"{each['agreement']['ours']} for {each['agreement']['theirs']}",
            f"{each['same_count']} of {len(each['photos'])}",
        ]
        for name, each in row["variants"].items()
    ]
    head = ["rounded", "F1 at IoU 0.9", "worst photo", "masks, for float32's", "photos with the same number"]
    grid = row["settings"]["points_per_side"]
    return table(head, lines) + f"\n\nMobileSAM, a grid of {grid} x {grid}, the photos of `tests/photos`."


def of_row(name: str, body: Callable[[Row], str], command: str) -> Callable[[Rows], str]:
    """A table of what one row says, and where that was measured."""

    def text(rows: Rows) -> str:
        row = rows.get(f"gpu {name}")
        return f"Not measured yet: `{command}`." if row is None else f"{body(row)}\n\n{origin(row)}"

    return text


def origin(row: Row) -> str:
    machine = row["machine"]
    device = row.get("device", {"name": machine["processor"]})
    toolkit = f", CUDA {device['cuda']}" if "cuda" in device else ""
    versions = machine["versions"]
    return f"*{row['day']}, {device['name']}{toolkit}, Python {versions['python']}, torch {versions['torch']}.*"


BENCH = "make bench-gpu ARGS='--save docs/gpu.json --rows {}'"
ROUNDING = "python -m tests.bench.rounding --save docs/gpu.json"

TABLES: Mapping[str, Callable[[Rows], str]] = {
    **{
        f"gpu-{name}": of_row(name, body, BENCH.format(name))
        for name, body in {
            "default": speed,
            "sa1b": speed,
            "cold": cold,
            "idle": idle,
            "agreement": agreement,
        }.items()
    },
    "gpu-rounding": of_row("rounding", rounding, ROUNDING),
}
