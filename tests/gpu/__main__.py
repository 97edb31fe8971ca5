"""Runs the tests or the benchmark of a GPU with the Python at hand, and with the wheels that were carried to it.

    python3 -m tests.gpu test [pytest's arguments]
    python3 -m tests.gpu bench [arguments of tests.bench.on_gpu]

What lies in `.gpu` (`make gpu-wheels`) is used: its wheels are installed into `.gpu/site`, which comes first on the
path, and its weights are MobileSAM's. Needs torch, and no other package before that. `test` exits with 1 where PyTorch
finds no GPU: nothing is skipped in silence.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from tests.gpu.carry import FOLDER, ROOT, WEIGHTS

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "test": ("-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "tests/gpu"),
    "bench": ("-m", "tests.bench.on_gpu"),
}


def main(arguments: list[str]) -> int:
    if not arguments or arguments[0] not in COMMANDS:
        print(__doc__, file=sys.stderr)
        return 2
    if arguments[0] == "test" and (missing := no_gpu()):
        print(f"{missing}: the tests of tests/gpu were not run", file=sys.stderr)
        return 1
    environment = prepared(FOLDER)
    if arguments[0] == "test":
        environment["TRITON_INTERPRET"] = "0"  # the kernels themselves, whatever tests elsewhere run them in
    command = [sys.executable, *COMMANDS[arguments[0]], *arguments[1:]]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False).returncode


def no_gpu() -> str | None:
    """Why there is no GPU; None where there is one."""
    try:
        import torch
    except ImportError as error:
        return f"{sys.executable} has no PyTorch ({error})"
    if torch.cuda.is_available():
        return None
    build = "built without CUDA" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
    return f"PyTorch {torch.__version__}, {build}, finds no GPU here"


def prepared(folder: Path) -> dict[str, str]:
    """The variables under which a process finds what was carried here; wheels are installed on the way.

    Those that this Python has in the same version are not; the others come first on its path.
    """
    found = {"SAM_AMG_CACHE": str(folder)} if (folder / WEIGHTS).exists() else {}
    wheels = [wheel for wheel in sorted(folder.glob("wheels/*.whl")) if not installed(wheel)]
    if wheels:
        site = folder / "site"
        install = ["-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target", str(site)]
        subprocess.run([sys.executable, *install, *map(str, wheels)], check=True)
        found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return found


def installed(wheel: Path) -> bool:
    name, version = wheel.name.split("-")[:2]
    try:
        return metadata.version(name) == version
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
