"""Folders with everything that people have in them."""

from __future__ import annotations

import os
import subprocess
import time
import tracemalloc
from pathlib import Path

import pytest

from amg.errors import SourceError
from amg.sources.inputs import open_source
from amg.sources.kinds import is_image
from amg.sources.paths import from_text, to_text
from amg.sources.source import Skipped, Source
from amg.values import Failure, ImageRef, Status

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


def make(root: Path, *names: str, content: bytes = PNG) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def listing(source: Source) -> tuple[list[str], dict[str, str]]:
    skipped: list[Skipped] = []
    keys = [ref.key for ref in source.refs(skipped=skipped.append)]
    return keys, {each.path: each.reason for each in skipped}


def keys_of(*inputs: str | Path) -> list[str]:
    return listing(open_source(*inputs))[0]


def test_lists_a_folder_by_the_bytes_of_its_paths(tmp_path):
    names = ["b.jpg", "a/z.PNG", "a-b.jpg", "a.jpg", "a/b/c.webp", "Z.jpeg", "ä.gif", "a b.tif", "new\nline.bmp"]
    make(tmp_path, *names)
    refs = list(open_source(tmp_path).refs())
    assert [ref.key for ref in refs] == sorted(names, key=str.encode)
    assert [ref.row for ref in refs] == list(range(len(names)))
    assert refs[0].uri == str(tmp_path / refs[0].key)
    assert refs[0].size_bytes == len(PNG)
    assert refs[0].tag == str((tmp_path / refs[0].key).stat().st_mtime_ns)


def test_a_name_or_first_bytes_make_an_image_and_the_rest_is_told(tmp_path):
    make(tmp_path, "png-without-suffix", "photo.jpg.part", "really.dat")
    make(tmp_path, "empty.jpg", "empty", "notes.weird", content=b"")
    make(tmp_path, "lies.txt", "readme.md", "labels.json")
    os.mkfifo(tmp_path / "pipe.jpg")
    keys, skipped = listing(open_source(tmp_path))
    assert keys == ["empty.jpg", "photo.jpg.part", "png-without-suffix", "really.dat"]
    assert skipped == {
        "empty": "not an image by its first bytes",
        "notes.weird": "not an image by its first bytes",
        "lies.txt": "not an image: a .txt file",
        "readme.md": "not an image: a .md file",
        "labels.json": "not an image: a .json file",
        "pipe.jpg": "not a regular file",
    }


def test_hidden_names_are_skipped_unless_named(tmp_path):
    make(tmp_path, ".hidden.jpg", ".git/a.jpg", "._a.jpg", "a.jpg", ".thumbs/b.jpg")
    keys, skipped = listing(open_source(tmp_path))
    assert keys == ["a.jpg"]
    assert set(skipped) == {".hidden.jpg", ".git", "._a.jpg", ".thumbs"}
    assert keys_of(tmp_path / ".thumbs") == ["b.jpg"]
    assert keys_of(tmp_path / ".hidden.jpg") == [".hidden.jpg"]
    assert keys_of(f"{tmp_path}/.h*.jpg") == [".hidden.jpg"]
    assert keys_of(f"{tmp_path}/*.jpg") == ["a.jpg"]


def test_other_outputs_of_this_program_are_not_input(tmp_path):
    make(tmp_path, "a.jpg", "out/pictures/a.png")
    make(tmp_path, "out/_plan/plan.json", content=b"{}")
    keys, skipped = listing(open_source(tmp_path))
    assert keys == ["a.jpg"]
    assert skipped == {"out": "an output of sam-amg"}


def test_links_are_followed_but_not_in_circles(tmp_path):
    make(tmp_path, "real/a.jpg", "real/sub/b.jpg")
    (tmp_path / "real/sub/up").symlink_to(tmp_path / "real")
    (tmp_path / "other").symlink_to("real/sub")
    (tmp_path / "round.jpg").symlink_to("round.jpg")
    (tmp_path / "nothing.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "nothing").symlink_to("nowhere")
    keys, skipped = listing(open_source(tmp_path))
    assert keys == [
        "nothing.jpg",
        "other/b.jpg",
        "other/up/a.jpg",
        "real/a.jpg",
        "real/sub/b.jpg",
        "round.jpg",
    ]
    assert skipped["real/sub/up"] == "a link to a folder that it lies in"
    assert skipped["other/up/sub"] == "a link to a folder that it lies in"
    assert skipped["nothing"].startswith("a link to nothing")


def test_folders_nested_deeper_than_python_recurses(tmp_path):
    here = os.open(tmp_path, os.O_RDONLY)
    depth = 1200
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x.jpg", os.O_CREAT, dir_fd=here))
    os.close(here)
    try:
        assert keys_of(tmp_path) == ["d/" * depth + "x.jpg"]
    finally:  # pytest's own clean-up recurses
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)


def test_undecodable_names_are_escaped_and_come_back(tmp_path):
    names = [b"caf\xe9.jpg", b"100%.jpg", b"%E9.jpg", "日本 \u00a0.jpg".encode(), b"a\xff\xfe\xed\xa0\x80.png"]
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(name)
    source = open_source(tmp_path)
    refs = list(source.refs())
    assert {ref.key for ref in refs} >= {"caf%E9.jpg", "100%25.jpg", "%25E9.jpg", "日本 \u00a0.jpg"}
    assert sorted(source.read(ref) for ref in refs) == sorted(names)
    for ref in refs:
        ref.key.encode()


def test_escaping_is_reversible_for_any_bytes():
    every = bytes(range(1, 256))
    for path in (every, every[::-1], b"%41%", b"\xc3\xa9%C3%A9", "𝕊é".encode()):
        assert from_text(to_text(path)) == path
    assert len({to_text(bytes([n])) for n in range(1, 256)}) == 255


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "x/b.jpg", "x/y/c.jpg", "z/d.jpg"]),
        ("x/**/*.jpg", ["b.jpg", "y/c.jpg"]),
        ("*/*.jpg", ["x/b.jpg", "z/d.jpg"]),
        ("**/y/*", ["x/y/c.jpg", "x/y/e.png"]),
        ("[xz]", ["x/b.jpg", "x/y/c.jpg", "x/y/e.png", "z/d.jpg"]),
        ("x/**", ["b.jpg", "y/c.jpg", "y/e.png"]),
        ("?/*/?.png", ["x/y/e.png"]),
        ("**/**/c.jpg", ["x/y/c.jpg"]),
    ],
)
def test_globs(tmp_path, pattern, expected):
    make(tmp_path, "a.jpg", "x/b.jpg", "x/y/c.jpg", "x/y/e.png", "z/d.jpg", ".h/f.jpg")
    assert keys_of(f"{tmp_path}/{pattern}") == expected


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path):
    make(tmp_path, "photos [2020]/a.jpg")
    assert keys_of(tmp_path / "photos [2020]") == ["a.jpg"]


def test_several_inputs_keep_their_order_and_share_no_key(tmp_path):
    make(tmp_path, "a/x.jpg", "a/y.jpg", "b/x.jpg", "c/b/x.jpg", "one.jpg")
    inputs = [tmp_path / name for name in ("one.jpg", "b", "a", "c/b")]
    refs = list(open_source(*inputs).refs())
    assert [ref.key for ref in refs] == ["one.jpg", "x.jpg", "a/x.jpg", "y.jpg", "b/x.jpg"]
    assert [ref.row for ref in refs] == [0, 1, 2, 3, 4]


def test_a_path_listed_twice_is_one_image(tmp_path, monkeypatch):
    make(tmp_path, "a/x.jpg", "a/y.jpg")
    monkeypatch.chdir(tmp_path)
    assert keys_of("a/x.jpg", "a", "./a/../a/x.jpg", "a/*.jpg", tmp_path / "a") == ["x.jpg", "y.jpg"]


def test_two_files_with_the_same_stem_are_two_images(tmp_path):
    make(tmp_path, "a.jpg", "a.png", "a/a.jpg")
    assert keys_of(tmp_path) == ["a.jpg", "a.png", "a/a.jpg"]


def test_file_urls_are_paths(tmp_path):
    make(tmp_path, "with space/a.jpg")
    assert keys_of((tmp_path / "with space").as_uri()) == ["a.jpg"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nowhere", "no file or folder 'nowhere'.*wanted a file, a folder or a glob"),
        ("nowhere/*.jpg", "folder /.*/nowhere before the wildcards is not there"),
        ("dangling", "is a link to nothing"),
        ("", "no file or folder ''"),
    ],
)
def test_inputs_that_are_not_there_say_so(tmp_path, monkeypatch, given, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dangling").symlink_to("nothing")
    with pytest.raises(SourceError, match=message):
        open_source(given)


def test_a_folder_without_images_is_an_error_that_says_what_was_there(tmp_path):
    with pytest.raises(SourceError, match=r"no images in .*: 0 entries were skipped; give a folder"):
        list(open_source(tmp_path).refs())
    make(tmp_path, "notes.txt")
    with pytest.raises(SourceError, match=r"1 entries were skipped, the first is notes.txt \(not an image"):
        list(open_source(tmp_path).refs())
    with pytest.raises(SourceError, match="no input was given"):
        open_source()


def test_what_cannot_be_read_is_a_failure_with_its_reason(tmp_path, monkeypatch):
    make(tmp_path, "a.jpg", "b.jpg", "c.jpg", "d.jpg")
    source = open_source(tmp_path)
    refs = list(source.refs())
    (tmp_path / "a.jpg").unlink()
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "b.jpg").mkdir()
    with (tmp_path / "d.jpg").open("r+b") as sparse:
        sparse.truncate((1 << 32) + 1)
    failures = [source.read(ref) for ref in refs]
    assert [each.status for each in failures if isinstance(each, Failure)] == [
        Status.MISSING,
        Status.MISSING,
        Status.TOO_LARGE,
    ]
    assert failures[2] == PNG

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert source.read(refs[2]) == Failure(refs[2], Status.MISSING, "the file cannot be read: Permission denied")


def test_a_folder_that_cannot_be_listed_is_told_and_the_rest_goes_on(tmp_path, monkeypatch):
    make(tmp_path, "a/x.jpg", "locked/y.jpg")
    scandir = os.scandir

    def guarded(path):
        if os.fsencode(path).endswith(b"locked"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    keys, skipped = listing(open_source(tmp_path))
    assert keys == ["a/x.jpg"]
    assert skipped == {"locked": "the folder cannot be listed: Permission denied"}
    with pytest.raises(SourceError, match="locked: the folder cannot be listed: Permission denied; see to"):
        list(open_source(tmp_path / "locked").refs())


def test_first_bytes_tell_images_from_text():
    for start in (b"\xff\xd8\xff\xe0", b"II*\0", b"RIFF\1\2\3\4WEBP", b"\0\0\0\x20ftypavif", b"P6\n640", b"GIF89a"):
        assert is_image(start + b"\0" * 20)
    bmp = b"BM" + b"\0" * 12 + b"\x28\0\0\0"
    assert is_image(bmp)
    for start in (b"", b"BM is a text", b"P1 is a text", b"RIFF\1\2\3\4WAVE", b"IIx", b"%PDF-1.7", b"\0" * 32):
        assert not is_image(start)


def test_many_files_list_fast_and_streamed(tmp_path):
    for n in range(20_000):
        if n % 1000 == 0:
            (tmp_path / str(n)).mkdir()
        os.close(os.open(tmp_path / str(n // 1000 * 1000) / f"{n:06}.jpg", os.O_CREAT))
    tracemalloc.start()
    started = time.perf_counter()
    assert sum(1 for _ in open_source(tmp_path).refs()) == 20_000
    seconds, (_, peak) = time.perf_counter() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 10
    assert peak < 3e6


def test_refs_are_the_contract(tmp_path):
    make(tmp_path, "a.jpg")
    assert list(open_source(tmp_path).refs()) == [
        ImageRef(0, "a.jpg", str(tmp_path / "a.jpg"), None, len(PNG), str((tmp_path / "a.jpg").stat().st_mtime_ns))
    ]
