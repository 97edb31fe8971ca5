"""`sam-amg` as a command whose memory is written down: python -m tests.bench.command REPORT ARGUMENT..."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from amg.cli.main import main as sam_amg
from tests.bench.children import status_mb


def main(report: str, *arguments: str) -> int:
    sys.argv = ["sam-amg", *arguments]
    status = sam_amg()
    Path(report).write_text(json.dumps({"status": status, "peak_mb": status_mb("VmHWM")}))
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
