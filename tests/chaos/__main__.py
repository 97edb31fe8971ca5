"""`python -m tests.chaos --kills 100`: the long form; the last line of its output is one JSON document."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from tests.chaos.killer import chaos, finish, rows, start
from tests.chaos.standin import make_photos


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_photos(folder / "photos", arguments.images)
        status, said = finish(start(photos, folder / "calm"))
        assert status == 0, said
        calm = rows(folder / "calm")
        seen = chaos(folder, photos, calm, kills=arguments.kills, seed=arguments.seed)
    result = asdict(seen) | {"images": len(calm), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result))
    return 1 if seen.wrong or seen.orphans or seen.deaf else 0


if __name__ == "__main__":
    sys.exit(main())
