"""What a benchmark is told, and what it says about the machine it ran on."""

from __future__ import annotations

import argparse
import os
import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

import amg
from tests import parity, reference_amg

DEFAULT_PHOTO = reference_amg.PHOTOS / "studio.jpg"  # 1200 x 1800


@dataclass(frozen=True, slots=True)
class Options:
    """`settings` are the reference's own arguments, for all rows; `threads` are those of both sides."""

    photo: Path
    photos: Path
    weights: Path
    settings: dict[str, Any]
    threads: int
    repeats: int
    reference_records: Path | None

    def job(self, **more: Any) -> dict[str, Any]:
        """What every child is told."""
        return {
            "photo": str(self.photo.resolve()),
            "weights": str(self.weights.resolve()),
            "settings": self.settings,
            "threads": self.threads,
            "repeats": self.repeats,
            **more,
        }


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--photo", type=Path, default=DEFAULT_PHOTO, help="for the rows of one photo")
    parser.add_argument("--photos", type=Path, default=reference_amg.PHOTOS, help="a folder, for `cores` and `parity`")
    parser.add_argument("--weights", type=Path, help="mobile_sam.pt; without it, the weights of this project's cache")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=reference_amg.setting
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="for both sides; all cores")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls of `ceiling` and of the library")
    parser.add_argument(
        "--reference-records",
        type=Path,
        help="a folder where `parity` keeps what the reference gave, so that the next run need not ask it again",
    )


def from_arguments(parsed: argparse.Namespace) -> Options:
    return Options(
        photo=parsed.photo,
        photos=parsed.photos,
        weights=parity.find_weights(parsed.weights),
        settings=dict(parsed.settings),
        threads=parsed.threads,
        repeats=parsed.repeats,
        reference_records=parsed.reference_records,
    )


def machine(threads: int) -> dict[str, Any]:
    """What the numbers depend on; nothing by which the machine could be found."""
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "system": platform.system(),
        "libc": " ".join(platform.libc_ver()),
        "versions": {
            "python": platform.python_version(),
            "sam-amg": amg.__version__,
            **{name: version(name) for name in (*reference_amg.PACKAGES, "transformers", "numba")},
        },
    }


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
