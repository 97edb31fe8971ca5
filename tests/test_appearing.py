"""A result of many writes appears whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from amg.errors import OutputRefused, StorageError
from amg.storage.appearing import appearing


def free(target: Path) -> None:
    """Refuses nothing."""


def make(target: Path, *names: str, refuse: Callable[[Path], None] = free, then: Callable[[], object] = bool) -> None:
    """A folder with files of these names, `then` something that happens meanwhile."""
    with appearing(target, refuse=refuse, advice="make room") as making:
        fill(making, *names)
        assert making.parent == Path(os.path.realpath(target)).parent
        then()


def fill(folder: Path, *names: str) -> None:
    folder.mkdir()
    for name in names:
        (folder / name).write_text(name)


def held(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_and_a_folder_appear_with_the_folders_around_them(tmp_path: Path) -> None:
    with appearing(tmp_path / "a" / "b" / "file", refuse=free, advice="") as making:
        making.write_text("new")
        assert not (tmp_path / "a" / "b" / "file").exists()
    make(tmp_path / "a" / "folder", "x", "y")
    assert (tmp_path / "a" / "b" / "file").read_text() == "new"
    assert held(tmp_path / "a") == ["b", "folder"]
    assert held(tmp_path / "a" / "folder") == ["x", "y"]


def test_what_was_there_is_replaced_whole(tmp_path: Path) -> None:
    fill(tmp_path / "folder", "old", "older")
    (tmp_path / "file").write_text("old")
    make(tmp_path / "folder", "new")
    with appearing(tmp_path / "file", refuse=free, advice="") as making:
        making.write_text("new")
    assert held(tmp_path) == ["file", "folder"]
    assert held(tmp_path / "folder") == ["new"]
    assert (tmp_path / "file").read_text() == "new"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    fill(tmp_path / "there", "old")
    (tmp_path / "link").symlink_to("there")
    make(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert held(tmp_path / "there") == ["new"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError(), OSError(28, "No space left on device")])
def test_a_failure_leaves_what_was_there(error: BaseException, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    fill(tmp_path / "folder", "old")
    with pytest.raises(StorageError if isinstance(error, OSError) else type(error)) as raised:
        make(tmp_path / "folder", "new", then=fail)
    if isinstance(error, OSError):
        assert str(raised.value) == f"cannot write {tmp_path / 'folder'}: No space left on device; make room"
    assert held(tmp_path) == ["folder"]
    assert held(tmp_path / "folder") == ["old"]


def test_a_folder_that_cannot_be_replaced_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def stubborn(source: Path, target: Path) -> None:
        if Path(source).suffix == ".inprogress":
            raise OSError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", stubborn)
    fill(tmp_path / "folder", "old")
    with pytest.raises(StorageError, match="folder: Permission denied"):
        make(tmp_path / "folder", "new")
    assert held(tmp_path) == ["folder"]
    assert held(tmp_path / "folder") == ["old"]


def test_what_came_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def taken(target: Path) -> None:
        if target.exists():
            raise OutputRefused(f"{target.name} is there")

    with pytest.raises(OutputRefused, match="folder is there"):
        make(tmp_path / "folder", "mine", refuse=taken, then=lambda: fill(tmp_path / "folder", "theirs"))
    assert held(tmp_path) == ["folder"]
    assert held(tmp_path / "folder") == ["theirs"]


def test_what_is_taken_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    def taken(target: Path) -> None:
        raise OutputRefused(f"{target.name} is there")

    with pytest.raises(OutputRefused, match="x is there"):
        make(tmp_path / "a" / "x", refuse=taken)
    assert held(tmp_path) == []
