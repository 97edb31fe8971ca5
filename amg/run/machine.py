"""What this machine has for a job: its devices and its cores.

Asked without torch where the answer is certain, else of torch in a process of its own (`probe`): torch and a long list
of images need not share the memory of one process, and what is wrong is said before anything is planned.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import psutil

from amg import errors
from amg.config import RunSettings
from amg.errors import AmgError, ConfigError


def pick_devices(run: RunSettings, *, weights: Path | None = None, precision: str = "parity") -> list[str]:
    """One device a worker, in turn. `auto` takes CUDA where there is one, else the CPU.

    `weights`: a file to be tried on the way. ConfigError for devices that are not there, do not fit each other or do
    not do the arithmetic, WeightsError for a file that holds no model.
    """
    names = [name.strip() for name in run.device.split(",") if name.strip()] or ["auto"]
    _check_names(names, run)
    if names == ["auto"] and not may_have_cuda():
        names = ["cpu"]
    if weights is not None or precision != "parity" or any(name != "cpu" for name in names):
        names = ask_torch(names, weights, precision)
    return [names[n % len(names)] for n in range(run.workers or len(names))]


def check_kernels(kernels: str, devices: Sequence[str]) -> None:
    """ConfigError for Triton kernels on devices that are no GPUs; Triton's interpreter takes any for one."""
    others = sorted({name for name in devices if not name.startswith("cuda")})
    if kernels == "triton" and others and os.environ.get("TRITON_INTERPRET") != "1":
        raise ConfigError(
            f"model.kernels is triton and the job runs on {', '.join(others)}: Triton kernels run on CUDA devices; use "
            "torch, or --device cuda"
        )


def cores() -> int:
    """Threads that a model has to itself: OMP_NUM_THREADS, else the cores that this process may use."""
    said = os.environ.get("OMP_NUM_THREADS", "")
    if said.isdecimal() and int(said):
        return int(said)
    allowed = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return min(allowed, psutil.cpu_count(logical=False) or allowed)


def may_have_cuda() -> bool:
    """False where torch, whatever it is asked, can have no CUDA: built without it, or no driver to be loaded."""
    try:
        build = version("torch").partition("+")[2]
    except PackageNotFoundError:
        return True
    if build == "cpu" or sys.platform == "darwin":
        return False
    if build.startswith("rocm"):
        return True
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def ask_torch(names: Sequence[str], weights: Path | None, precision: str) -> list[str]:
    """The devices of these names, once torch has found them and has loaded `weights`; as `probe.answer`."""
    if "torch" in sys.modules:
        from amg.run.probe import answer

        return answer(names, weights, precision)
    question = json.dumps([*names, weights and os.fspath(weights), precision])
    done = subprocess.run(
        [sys.executable, "-P", "-m", "amg.run.probe", question],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path)},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    try:
        said = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        last = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise AmgError(
            f"PyTorch could not say whether {', '.join(names)} can be used: the process that asked it ended with "
            f"{done.returncode} and said {last!r}; see whether `python -c 'import torch'` works, or use --device cpu"
        ) from error
    if "error" in said:
        raise getattr(errors, said["error"])(said["text"])
    return said["devices"]


def _check_names(names: Sequence[str], run: RunSettings) -> None:
    for name in names:
        if names != ["auto"] and not re.fullmatch(r"(cpu|cuda|mps)(:\d+)?", name):
            raise ConfigError(f"run.device: {name!r} is no device; wanted auto, cpu, cuda, cuda:N or mps")
    if len({name.partition(":")[0] for name in names}) > 1:
        raise ConfigError(
            f"run.device is {run.device!r}: devices of one job are of one kind, because masks differ in the last digits"
        )
    if run.workers is not None and run.workers < len(names):
        raise ConfigError(
            f"run.workers is {run.workers}, run.device names {len(names)} devices: {names[-1]} has no worker"
        )
