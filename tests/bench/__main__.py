"""Everything that is claimed about speed and memory, measured: a row a claim.

    python -m tests.bench [--rows reference,memory] [--photo PHOTO] [--photos FOLDER] [--set points_per_side=16 ...]

reference  one photo against the reference generator at its defaults
tuned      the same against the reference at its best batch size, with a tuned allocator
sa1b       the same with 21 crops and 3072 points
pipeline   a ViT-B against the mask-generation pipeline of transformers
memory     peak memory of the command on images of 12 and 100 megapixels
ceiling    seconds, operations and bytes by stage, and the share of this machine's measured ceiling
cores      how busy the command keeps the cores over a folder of photos
parity     the masks of a folder of photos against the reference's
itself     a photo above 2 megapixels: ours against the reference, and the reference against itself at another batch
precision  the masks of `model.precision: fast` against those of `parity`, on a folder of photos

Each row is measured in fresh processes and can be had alone. The last line is one JSON document. Exit status 1 when a
row misses its bar. `python -m tests.bench.library` measures the model without the generator. Linux only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench import (
    against_pipeline,
    against_reference,
    ceiling,
    cores,
    memory,
    options,
    precision,
    same_masks,
)
from tests.bench.measuring import Measurement, measure_rows, some_of
from tests.bench.options import Options

ROWS: Mapping[str, Measurement[Options]] = {
    "reference": Measurement(against_reference.default_row, against_reference.lines),
    "tuned": Measurement(against_reference.tuned_row, against_reference.lines),
    "sa1b": Measurement(against_reference.sa1b_row, against_reference.lines),
    "pipeline": Measurement(against_pipeline.row, against_pipeline.lines),
    "memory": Measurement(memory.row, memory.lines),
    "ceiling": Measurement(ceiling.row, ceiling.lines),
    "cores": Measurement(cores.row, cores.lines),
    "parity": Measurement(same_masks.row, same_masks.lines),
    "itself": Measurement(same_masks.itself_row, same_masks.itself_lines),
    "precision": Measurement(precision.row, precision.lines),
}


def main(arguments: list[str] | None = None) -> int:
    parsed = parse(arguments)
    told = options.from_arguments(parsed)
    return measure_rows(ROWS, parsed.rows, told, save=parsed.save)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=some_of("row", ROWS), default=list(ROWS), help="some of them, with commas; all")
    parser.add_argument("--save", type=Path, help="put the results into this file, beside others that are there")
    options.add_options(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
