"""The row of peak memory: `sam-amg run` on one large image, the whole process from its start to its end.

The images are the photo, resampled to 12 and 100 megapixels. With one worker the command is a single process; its
`VmHWM` is read when it is done.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from amg.config import GenerateSettings
from amg.shards.reader import read_shards
from tests.bench.children import ROOT
from tests.bench.options import Options

BARS_GB = {12: 1.5, 100: 2.0}
"""Megapixels of the image and the most memory, in units of 10^9 bytes."""

Row = dict[str, Any]


def row(options: Options) -> Row:
    images = {str(megapixels): peak(options, megapixels) for megapixels in BARS_GB}
    return {
        "photo": options.photo.name,
        "settings": options.settings,
        "images": images,
        "bars_gb": {str(megapixels): bar for megapixels, bar in BARS_GB.items()},
        "passed": all(images[str(m)]["peak_gb"] <= bar and images[str(m)]["ok"] for m, bar in BARS_GB.items()),
    }


def peak(options: Options, megapixels: int) -> Row:
    """Label the photo at that size in a fresh process."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        size = enlarge(options.photo, folder / "in" / f"{megapixels}.jpg", megapixels)
        report = folder / "report.json"
        done = subprocess.run(
            [sys.executable, "-m", "tests.bench.command", str(report), *run_arguments(folder, options), "--quiet"],
            cwd=ROOT,
            check=False,
        )
        rows = list(read_shards(folder / "out")) if done.returncode == 0 else []
        said = json.loads(report.read_text()) if report.exists() else {"peak_mb": float("nan")}
    ok = [image["status"] for image in rows] == ["ok"]
    found = {
        "size": size,
        "peak_gb": said["peak_mb"] * 2**20 / 1e9,
        "masks": rows[0]["num_masks"] if ok else None,
        "seconds": rows[0]["timings_ms"]["total"] / 1000 if ok else None,
        "ok": ok,
    }
    print(f"  {megapixels} MP: {found['peak_gb']:.2f} GB, {found['masks']} masks", flush=True)
    return found


def run_arguments(folder: Path, options: Options) -> list[str]:
    """Of `sam-amg`: label what lies in `in` of the folder, with the benchmark's settings."""
    given = ["--device", "cpu", "--weights", str(options.weights.resolve()), "--set", f"run.threads={options.threads}"]
    return ["run", str(folder / "in"), "--out", str(folder / "out"), *given, *sets(options.settings)]


def enlarge(photo: Path, target: Path, megapixels: int) -> list[int]:
    """Write the photo resampled to so many megapixels, in its own proportions; (height, width)."""
    target.parent.mkdir(parents=True)
    image = Image.open(photo).convert("RGB")
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    size = round(image.width * factor), round(image.height * factor)
    image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
    return [size[1], size[0]]


def sets(settings: dict[str, Any]) -> list[str]:
    """The reference's arguments as those of `sam-amg run`."""
    unknown = set(settings) - set(GenerateSettings.model_fields)
    assert not unknown, f"no settings of ours: {sorted(unknown)}"
    return [
        argument for name, value in settings.items() for argument in ("--set", f"generate.{name}={json.dumps(value)}")
    ]


def lines(row: Row) -> list[str]:
    return [
        f"{megapixels} MP: peak {image['peak_gb']:.2f} GB (bar {row['bars_gb'][megapixels]} GB), "
        f"{image['masks']} masks" + ("" if image["ok"] else ", FAILED")
        for megapixels, image in row["images"].items()
    ]
