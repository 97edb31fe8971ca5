"""What a user installs: the wheel, in an empty environment, away from the clone, labels a photo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
UV = shutil.which("uv") or str(ROOT / ".uv" / "bin" / "uv")

pytestmark = pytest.mark.wheel


def call(*command: str | Path, cwd: Path) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, env=clean)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder outside the clone with an environment that holds the wheel and nothing else of ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    call(UV, "build", "--wheel", "--quiet", "--out-dir", folder / "dist", ROOT, cwd=folder)
    call(UV, "venv", "--quiet", "--python", sys.executable, folder / "venv", cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    constraints = ROOT / "tests" / "constraints.txt"
    call(UV, "pip", "install", "-q", "--python", folder / "venv", "-c", constraints, wheel, cwd=folder)
    return folder


def test_the_installed_command_labels_a_photo(elsewhere: Path) -> None:
    command = elsewhere / "venv" / "bin" / "sam-amg"
    shutil.copy(ROOT / "tests" / "photos" / "coffee.jpg", elsewhere / "coffee.jpg")
    said = call(
        command, "run", "coffee.jpg", "--out", "out", "--set", "generate.points_per_side=4", "--json", cwd=elsewhere
    )
    summary = json.loads(said.splitlines()[-1])
    assert summary["rows"] == {"ok": 1}
    assert summary["masks"] > 0
    call(command, "show", "out", cwd=elsewhere)
    assert (elsewhere / "out" / "review" / "index.html").stat().st_size > 10_000


def test_presets_types_and_licences_travel_with_the_wheel(elsewhere: Path) -> None:
    python = elsewhere / "venv" / "bin" / "python"
    command = elsewhere / "venv" / "bin" / "sam-amg"
    home = Path(call(python, "-c", "import amg; print(amg.__file__)", cwd=elsewhere).strip()).parent
    assert ROOT not in home.parents
    assert (home / "py.typed").exists()
    assert "crop_n_layers: 2" in call(command, "config", "--preset", "sa1b", cwd=elsewhere)
    assert "Apache-2.0" in call(command, "weights", "list", cwd=elsewhere)
    licences = list(home.parent.glob("sam_amg-*.dist-info/licenses/LICENSE"))
    assert len(licences) == 1
    assert "Apache License" in licences[0].read_text()
