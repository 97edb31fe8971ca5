"""The short form of `python -m tests.chaos`."""

from pathlib import Path

from tests.chaos.killer import chaos, finish, rows, start
from tests.chaos.standin import make_photos


def test_a_dozen_kills_lose_no_row_and_leave_nothing_behind(tmp_path: Path) -> None:
    photos = make_photos(tmp_path / "photos", 60)
    assert finish(start(photos, tmp_path / "calm"))[0] == 0
    seen = chaos(tmp_path, photos, rows(tmp_path / "calm"), kills=12, seed=3)
    assert (seen.wrong, seen.orphans, seen.deaf) == ([], [], [])
    assert sum(seen.kills.values()) >= 12
