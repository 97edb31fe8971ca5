"""`python -m tests.chaos --kills 100`: the long form; the last line of its output is one JSON document."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.chaos.disk import tiny_disk
from tests.chaos.killer import Row, chaos, finish, rows, start
from tests.chaos.on_ray import ChaosOnRay, chaos_on_ray, cluster_of_raylets
from tests.chaos.standin import POISON, make_photos
from tests.object_store import serving


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--images", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--ray", action="store_true", help="on a cluster of raylets, to a full disk and an object store"
    )
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = make_photos(folder / "photos", arguments.images, names=POISON if arguments.ray else ())
        settings = ("--workers", "2", "--set", "run.image_timeout_s=4") if arguments.ray else ()
        status, said = finish(start(photos, folder / "calm", *settings), timeout=1200)
        assert status == 0, said
        calm = rows(folder / "calm")
        if arguments.ray:
            seen = on_ray(folder, photos, calm, kills=arguments.kills, seed=arguments.seed)
        else:
            seen = chaos(folder, photos, calm, kills=arguments.kills, seed=arguments.seed)
    result = asdict(seen) | {"images": len(calm), "seconds": round(time.monotonic() - began, 1)}
    print(json.dumps(result))
    return 1 if any(result.get(name) for name in ("wrong", "orphans", "deaf")) else 0


def on_ray(folder: Path, photos: Path, calm: Sequence[Row], *, kills: int, seed: int) -> ChaosOnRay:
    """Outputs on a disk of 1 MB that runs full, and in an object store where one request in twenty goes wrong."""
    with serving() as remote, tiny_disk(folder / "disk", "1m") as disk:
        os.environ |= remote.env
        remote.faults.at_random(0.05, seed=seed)
        with cluster_of_raylets(folder) as cluster:
            places = [str(disk), remote.url]
            return chaos_on_ray(places, photos, calm, cluster, kills=kills, seed=seed, disk=disk)


if __name__ == "__main__":
    sys.exit(main())
