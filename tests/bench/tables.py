"""The tables of docs/performance.md, docs/gpu.md and of the README, from the measured numbers.

    python -m tests.bench.tables [--check]

A table stands between `<!-- measured: NAME -->` and `<!-- end -->`; what is between them is made from
docs/performance.json and docs/gpu.json. With --check nothing is written: exit status 1 where a page does not say what
the files say.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.bench import on_gpu_tables
from tests.bench.markdown import megabytes, seconds, table
from tests.bench.results import read

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "docs" / "performance.json"
ON_GPU = ROOT / "docs" / "gpu.json"
PAGES = (ROOT / "docs" / "performance.md", ROOT / "docs" / "gpu.md", ROOT / "README.md")
PLACE = re.compile(r"(<!-- measured: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = dict[str, Any]
Rows = Mapping[str, Row]

CASES = {
    "reference": "MobileSAM, reference generator at its defaults",
    "tuned": "the same, reference at its best batch size with a tuned allocator",
    "sa1b": "the same photo, 21 crops and 3072 points, both at their defaults",
    "pipeline": "ViT-B, transformers' mask-generation pipeline",
}

AGAINST = {
    "reference": "the original generator",
    "tuned": "the original generator at its best batch size, with a tuned allocator",
    "sa1b": "the original generator, both with 21 crops and 3072 points",
    "pipeline": "the mask-generation pipeline of transformers, ViT-B",
}


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments not in ([], ["--check"]):
        print(__doc__, file=sys.stderr)
        return 2
    stale = [page for page in PAGES if filled(page.read_text(), results()) != page.read_text()]
    for page in stale:
        if arguments:
            numbers = f"{RESULTS.name} and {ON_GPU.name}"
            print(f"{page.name} does not say what {numbers} say; run: make bench-tables", file=sys.stderr)
        else:
            page.write_text(filled(page.read_text(), results()))
    return 1 if arguments and stale else 0


def results() -> Rows:
    """Those of the GPU under `gpu NAME`."""
    on_gpu = read(ON_GPU) if ON_GPU.exists() else {}
    return (read(RESULTS) if RESULTS.exists() else {}) | {f"gpu {name}": row for name, row in on_gpu.items()}


def filled(page: str, rows: Rows) -> str:
    """A page with each of its tables made anew."""
    return PLACE.sub(lambda found: f"{found[1]}{TABLES[found[2]](rows)}\n{found[3]}", page)


def generator(rows: Rows) -> str:
    """The four rows that hold a whole generator against another."""
    lines = []
    for name, case in CASES.items():
        if name not in rows:
            lines.append([case, *["not measured"] * 6])
            continue
        row = rows[name]
        theirs = row.get("reference") or row["pipeline"]
        ours = row["ours_before"], row["ours_after"]
        lines.append(
            [
                case,
                " / ".join(seconds(each["seconds"][0]) for each in ours),
                seconds(theirs["seconds"][0]),
                f"{row['speedup']:.1f}x",
                f"{row['bar']:.0f}x",
                f"{megabytes(max(each['peak_mb'] for each in ours))} / {megabytes(theirs['peak_mb'])}",
                masks(row, theirs),
            ]
        )
    head = ["against", "ours, before / after", "theirs", "ratio", "bar", "peak, ours / theirs", "masks"]
    return "\n\n".join(part for part in (table(head, lines), settings_of_tuned(rows), origin(rows, *CASES)) if part)


def masks(row: Row, theirs: Row) -> str:
    count = f"{row['ours_before']['masks']} / {theirs['masks']}"
    if "parity" in row:
        same = "; ".join(row["parity_problems"]) or f"the same, {row['parity']['identical_share']:.0%} to the pixel"
        return f"{count}: {same}"
    return f"{count}: F1 {row['agreement']['f1']:.3f} at IoU 0.9"


def settings_of_tuned(rows: Rows) -> str:
    if "tuned" not in rows:
        return ""
    row = rows["tuned"]
    tried = ", ".join(f"{batch}: {seconds(float(s))}" for batch, s in numbered(row["search_seconds"]))
    environment = " ".join(f"`{name}={value}`" for name, value in row["reference_environment"].items())
    grid = row["search_grid"]
    return (
        f"The best batch size is {row['best_batch']}: the fastest on the same photo with a grid of {grid} x {grid} "
        f"({tried}). Allocator: {environment}."
    )


def numbered(by_number: Mapping[Any, Any]) -> list[tuple[int, Any]]:
    """In the order of the numbers, which JSON keeps as text."""
    return sorted((int(number), value) for number, value in by_number.items())


def memory(row: Row) -> str:
    lines = [
        [
            f"{number} megapixels ({' x '.join(str(side) for side in image['size'])})",
            f"{image['peak_gb']:.2f} GB",
            f"{row['bars_gb'][str(number)]} GB",
            f"{image['masks']} masks" if image["ok"] else "failed",
        ]
        for number, image in numbered(row["images"])
    ]
    return table(["image", "peak", "bar", ""], lines)


def ceiling(row: Row) -> str:
    lines = [
        [
            name,
            f"{stage['seconds']:.3f} s",
            f"{stage['gflop']:.0f}" if stage.get("gflop") else "",
            f"{stage['gigabytes']:.1f}" if "gigabytes" in stage else "",
            f"{stage['share']:.0%}" if stage.get("gflop") else "",
        ]
        for name, stage in row["stages"].items()
    ]
    lines.append(["none", f"{row['outside_stages_seconds']:.3f} s", "", "", ""])
    lines.append(["**whole image**", f"{row['seconds']:.2f} s", f"{row['gflop']:.0f}", "", f"{row['share']:.0%}"])
    rates = ", ".join(f"{name} {rate:.0f}" for name, rate in row["rates_gflops"].items())
    point = row["counted"]["point"] / 1e9, row["counted"]["plain_point"] / 1e9
    notes = (
        f"Ceiling: {row['ceiling_gflops']:.0f} GFLOP/s, the fastest float32 matrix products of this machine ({rates}). "
        f"A point is {point[0]:.2f} GFLOP in the factored decoder, {point[1]:.2f} in the published one. Goal: "
        f"{row['goal']:.0%}."
    )
    return table(["stage", "seconds", "GFLOP", "GB", "of the ceiling"], lines) + "\n\n" + notes


def cores(row: Row) -> str:
    line = [
        f"{row['photos']} photos, {row['failed']} failed",
        f"{row['utilisation']:.1%}",
        f"{row['bar']:.0%}",
        f"{row['seconds_an_image']:.2f} s an image",
        f"{row['peak_mb']:.0f} MB",
    ]
    return table(["folder", "of all cores", "bar", "speed", "peak"], [line])


def parity(row: Row) -> str:
    lines = [
        ["photos with the same number of masks", f"{row['same_count']} of {row['photos']}", "all"],
        ["worst IoU of a matched pair", f"{row['worst_iou']:.6f}", f">= {row['bar_iou']}"],
        [
            f"identical run lengths, of {row['masks']} masks",
            f"{row['identical']:.1%}",
            f">= {row['bar_identical']:.0%}",
        ],
    ]
    problems = [f"{name}: {'; '.join(found)}." for name, found in row["problems"].items()]
    return "\n\n".join((table(["", "measured", "bar"], lines), *problems))


def itself(row: Row) -> str:
    lines = [
        [
            name,
            f"{found['matched']} of {found['reference']}",
            f"{found['min_iou']:.6f}",
            f"{found['identical_share']:.1%}",
        ]
        for name, found in (
            ("ours, the reference", row["ours"]),
            (f"the reference with {row['other_batch']} points a batch, itself with 64", row["itself"]),
        )
    ]
    return table(["one against the other", "matched masks", "worst IoU", "identical"], lines)


def precision(row: Row) -> str:
    encoder, whole = row["encoder_seconds"], row["seconds"]
    photos = len(row["photos"])
    lines = [
        [f"F1 of masks matched at IoU 0.9, {photos} photos", f"{row['f1']:.4f}", f">= {row['bar']}"],
        ["the same on the worst photo", f"{row['worst_f1']:.4f}", ""],
        ["masks, `fast` and `parity`", f"{row['agreement']['ours']} and {row['agreement']['theirs']}", ""],
        ["encoder, seconds a photo", f"{encoder['fast'] / photos:.2f} and {encoder['parity'] / photos:.2f}", ""],
        ["all, seconds a photo", f"{whole['fast'] / photos:.2f} and {whole['parity'] / photos:.2f}", ""],
    ]
    arithmetic = "\n".join(f"- `{name}`: {words}" for name, words in row["arithmetic"].items())
    return "\n\n".join((table(["", "measured", "bar"], lines), arithmetic))


def library(row: Row) -> str:
    names = {"encoder": "encoder, one image", "masks": f"{row['points']} points to masks, one image"}
    lines = [
        [
            names[call],
            f"{each['our_seconds']:.3f} s",
            f"{each['their_seconds']:.3f} s",
            f"{each['speedup']:.2f}x",
            f"{each['bar']}x",
            f"{each['difference']:.0e} of the range",
        ]
        for call, each in row["calls"].items()
    ]
    head = ["ViT-B, float32", "ours", "transformers", "ratio", "bar", "outputs differ by"]
    return table(head, lines)


def summary(rows: Rows) -> str:
    """What the README tells: each claim in a line, as far as it is measured."""
    lines = [[f"against {AGAINST[name]}", f"{rows[name]['speedup']:.0f}x as fast"] for name in CASES if name in rows]
    if "memory" in rows:
        lines += [
            [f"peak memory of the process, image of {number} megapixels", f"{image['peak_gb']:.1f} GB"]
            for number, image in numbered(rows["memory"]["images"])
        ]
    if not lines:
        return "Not measured yet: `make bench`."
    return table(["one photo of 1200 x 1800" if usual(rows) else "one photo", "measured"], lines)


def usual(rows: Rows) -> bool:
    return all(rows[name]["size"] == [1800, 1200] for name in CASES if name in rows)


def of_row(name: str, body: Callable[[Row], str]) -> Callable[[Rows], str]:
    """A table of what one row says, and where that was measured."""

    def text(rows: Rows) -> str:
        if name in rows:
            return body(rows[name]) + "\n\n" + origin(rows, name)
        command = "make bench-library" if name == "library" else f"make bench ARGS='--rows {name}'"
        return f"Not measured yet: `{command}`."

    return text


def origin(rows: Rows, *names: str) -> str:
    """When and on what, once for each machine and day among the rows."""
    said = {}
    for name in names:
        if name in rows:
            said.setdefault(machine(rows[name]), []).append(name)
    return "\n".join(f"*{', '.join(found)}: {where}.*" for where, found in said.items())


def machine(row: Row) -> str:
    there = row["machine"]
    versions = there["versions"]
    photo = f"{row['photo']}, " if "photo" in row else ""
    given = row.get("settings")
    changed = "".join(f"{name}={value}, " for name, value in given.items()) if given and row["row"] != "sa1b" else ""
    return (
        f"{photo}{changed}{row['day']}, {there['processor']}, {there['threads']} threads of {there['cores']} cores, "
        f"{there['libc']}, Python {versions['python']}, torch {versions['torch']}, transformers "
        f"{versions['transformers']}, mobilesam-mirror {versions['mobilesam-mirror']}"
    )


OF_ROWS = {
    "memory": memory,
    "ceiling": ceiling,
    "cores": cores,
    "parity": parity,
    "itself": itself,
    "precision": precision,
    "library": library,
}
TABLES: Mapping[str, Callable[[Rows], str]] = {
    "generator": generator,
    "summary": summary,
    **{name: of_row(name, body) for name, body in OF_ROWS.items()},
    **on_gpu_tables.TABLES,
}

if __name__ == "__main__":
    sys.exit(main())
