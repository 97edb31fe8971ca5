"""Gathers what a machine with a GPU and without a network lacks, in the ignored folder `.gpu` of the project.

    python -m tests.gpu.carry [--weights mobile_sam.pt]

The wheels are those of `wheels.txt`, in the versions of `tests/constraints.txt`, for Python 3.12 on Linux x86-64; what
PyTorch's own images hold (torch, torchvision, triton, numba, transformers, timm, pyarrow, pytest) is not among them.
With them come the weights of MobileSAM. The folder and the project's files stay below `MOST_MB` together.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FOLDER = ROOT / ".gpu"
WEIGHTS = "mobile_sam.pt"

PYTHON = "3.12"
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
MOST_MB = 64


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, help="mobile_sam.pt; without it, the weights of this project's cache")
    parsed = parser.parse_args(arguments)
    wheels = FOLDER / "wheels"
    shutil.rmtree(wheels, ignore_errors=True)
    subprocess.run([sys.executable, *download(pinned(names()), wheels)], check=True)
    shutil.copyfile(weights_file(parsed.weights), FOLDER / WEIGHTS)
    size_mb = total_bytes([*carried_files(), *project_files()]) / 2**20
    print(f"{len(list(wheels.glob('*.whl')))} wheels and {WEIGHTS} in {FOLDER}: {size_mb:.1f} MiB with the project")
    if size_mb > MOST_MB:
        print(f"that is more than {MOST_MB} MiB; take wheels out of {HERE / 'wheels.txt'}", file=sys.stderr)
        return 1
    return 0


def names() -> list[str]:
    return (HERE / "wheels.txt").read_text().split()


def pinned(wanted: Iterable[str]) -> list[str]:
    """NAME==VERSION of each, as the tests elsewhere are run with."""
    text = (ROOT / "tests" / "constraints.txt").read_text()
    found = dict(re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE))
    return [f"{name}=={found[name]}" for name in wanted]


def download(requirements: list[str], folder: Path) -> list[str]:
    """The arguments of `python` that load them as wheels for the other machine, and nothing that they need."""
    platforms = [word for name in PLATFORMS for word in ("--platform", f"{name}_x86_64")]
    exact = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
    return ["-m", "pip", "download", "-q", *exact, "-d", str(folder), *requirements]


def weights_file(given: Path | None) -> Path:
    if given is not None:
        return given
    from amg.sam import weights

    return weights.fetch("mobile-sam")


def project_files() -> list[Path]:
    """Those that git knows, and those that it does not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [ROOT / name for name in listed.stdout.splitlines()]


def carried_files() -> list[Path]:
    """What is carried beside the project: not the copies that are made of the wheels where they are installed."""
    return [*FOLDER.glob("wheels/*"), FOLDER / WEIGHTS]


def total_bytes(files: Iterable[Path]) -> int:
    """A link counts as a link."""
    return sum(file.lstat().st_size for file in files)


if __name__ == "__main__":
    sys.exit(main())
