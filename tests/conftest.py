"""Set before torch is imported: tests share their cores, and threads that spin while they wait would fight for them."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

pytest_plugins = ["tests.object_store"]
