"""Rules about the whole package that no linter checks."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import amg

PACKAGE = Path(amg.__file__).parent
TORCH_FREE = [
    "amg", "amg.config", "amg.decode", "amg.errors", "amg.geometry", "amg.rle", "amg.storage.url", "amg.values",
    "amg.cli.main", "amg.export.formats", "amg.review.view", "amg.run.logs", "amg.run.plan", "amg.run.progress",
    "amg.run.compact", "amg.run.generations", "amg.run.job", "amg.run.leases",
    "amg.run.listing", "amg.run.local", "amg.run.machine", "amg.run.workers",
    "amg.run.growth", "amg.run.preview", "amg.run.retry", "amg.run.runner", "amg.run.survey", "amg.sources.manifest",
    "amg.run.status", "amg.run.verify", "amg.sam.weights", "amg.shards.reader", "amg.shards.writer",
    "amg.sources.files", "amg.sources.inputs",
]  # fmt: skip
DEVICE_ROOMS = [*(PACKAGE / "sam").glob("*.py"), *(PACKAGE / "masks").glob("*.py"), PACKAGE / "generate.py"]
CROSSINGS = {"cpu", "item", "tolist", "numpy"}
ALLOWED = {"sam/predictor.py"}
"""The interface of the original package answers in NumPy, for one prompt at a time."""


@pytest.mark.parametrize("module", TORCH_FREE)
def test_planning_reading_and_viewing_import_no_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'torchvision', 'numba', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_shards_and_sources_through_the_front_door_imports_no_torch() -> None:
    code = "import sys, amg; amg.read_shards, amg.open_source, amg.MaskSet, amg.AmgError; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_generates_masks_starts_without_torchvision() -> None:
    """It brings PyTorch's compiler along: two seconds of every worker's start."""
    code = "import sys, amg.generate, amg.sam.load; print('torchvision' in sys.modules, 'torch._dynamo' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False False"


def test_the_front_door_opens_to_what_it_promises() -> None:
    assert sorted(amg.__all__) == amg.__all__
    assert set(amg.__all__) == set(amg._HOMES)
    for name in amg.__all__:
        assert getattr(amg, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'generate_mask'"):
        _ = amg.generate_mask  # type: ignore[attr-defined]


@pytest.mark.parametrize("file", DEVICE_ROOMS, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_numbers_leave_the_device_in_one_place(file: Path) -> None:
    calls = [
        (node.lineno, node.func.attr)
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CROSSINGS
    ]
    assert str(file.relative_to(PACKAGE)) in ALLOWED or not calls, "use amg.tensors.to_host"


def test_no_module_reads_the_environment_or_the_device_when_it_is_imported() -> None:
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.ImportFrom | ast.Import):
                continue
            text = ast.unparse(node)
            assert not any(word in text for word in ("environ[", "getenv", "is_available(", "basicConfig")), (
                f"{file}: {text}"
            )
