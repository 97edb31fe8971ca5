"""Set before torch is imported, for this process and those that the tests start.

Tests share their cores, and threads that spin while they wait would fight for them. And many processes import the same
modules: compiled once they start in a fraction of the time, also where Python is told to keep no bytecode.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if not Path("/dev/nvidiactl").exists():  # read when Triton is first imported, which torchvision does
    os.environ.setdefault("TRITON_INTERPRET", "1")

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(Path(sys.prefix) / "bytecode")
sys.dont_write_bytecode = False

pytest_plugins = ["tests.object_store"]
