"""What the README shows, run as it stands: the commands, the SQL and the Python, with the real weights."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
QUERIES = [
    q.strip() for block in re.findall(r"```sql\n(.*?)```", README, re.DOTALL) for q in block.split(";") if q.strip()
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos/` labeled into `labels/` by the README's command on a coarse grid, and the sample photos."""
    here = tmp_path_factory.mktemp("examples")
    (here / "photos").mkdir()
    shutil.copy(ROOT / "tests" / "photos" / "coffee.jpg", here / "photos")
    shutil.copytree(ROOT / "tests" / "photos", here / "tests" / "photos")
    command = [sys.executable, "-m", "amg", "run", "photos", "--out", "labels", "--set", "generate.points_per_side=8"]
    done = subprocess.run(command, cwd=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1 labeled, 0 failed" in done.stdout
    return here


def test_the_readme_has_examples() -> None:
    assert len(BLOCKS) >= 4
    assert len(QUERIES) >= 2


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.strip().splitlines()[0])
def test_python_in_the_readme_runs(block: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools.decode sets an array's shape
        exec(block, names)
    if "annotations" in names:
        assert len(names["annotations"]) > 3  # type: ignore[arg-type]
    if "scores" in names:
        assert names["masks"].shape == (3, 400, 600)  # type: ignore[attr-defined]
    if "pixels" in names:
        assert names["pixels"].any()  # type: ignore[attr-defined]


@pytest.mark.parametrize("query", QUERIES)
def test_sql_in_the_readme_runs(query: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import duckdb

    monkeypatch.chdir(folder)
    assert duckdb.sql(query).fetchall()
