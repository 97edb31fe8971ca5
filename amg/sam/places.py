"""One file from one address: streamed, resumed, checked."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Never

if TYPE_CHECKING:
    import requests
    from tqdm import tqdm

CONNECT_SECONDS = 5.0
STALL_SECONDS = 60.0
CHUNK_BYTES = 1 << 18  # a cut loses at most this much


class PlaceFailed(Exception):
    """A place did not give the file; the text is the reason, and the next place is tried."""


def digest(path: Path) -> str:
    """The file's sha256 in hex; 30 ms for MobileSAM, 2 to 10 s for ViT-H."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    partial: Path,
    *,
    size_bytes: int | None,
    sha256: str | None,
    progress: bool,
    session: requests.Session | None = None,
) -> None:
    """Fill `partial` with what `url` serves, going on where an earlier try stopped.

    The part already there may come from another place: every place must serve the same bytes, and the digest at the
    end decides. When it differs, the file is removed; if part of it was old, the whole is loaded once more.
    `size_bytes` and `sha256` are None where nobody told them; then only the server's own length is checked.
    """
    import requests

    resumed = _length(partial) > 0
    with session or requests.Session() as client:
        _stream_to_the_end(client, url, partial, size_bytes=size_bytes, progress=progress)
    if sha256 is None:
        return
    found = digest(partial)
    if found == sha256:
        return
    partial.unlink()
    if not resumed:
        raise PlaceFailed(f"serves other bytes: sha256 {found}, wanted {sha256}")
    download(url, partial, size_bytes=size_bytes, sha256=sha256, progress=progress, session=session)


def reason(error: BaseException) -> str:
    """The root of a chain of exceptions in one line, without addresses (they can hold a password)."""
    import requests

    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS:.0f} s"
    while cause := error.__cause__ or error.__context__:
        error = cause
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _stream_to_the_end(
    session: requests.Session, url: str, partial: Path, *, size_bytes: int | None, progress: bool
) -> None:
    """Ask again after each cut, as long as the file has grown since the last time."""
    import requests

    while True:
        have = _length(partial)
        try:
            return _stream(session, url, partial, size_bytes=size_bytes, progress=progress)
        except requests.RequestException as error:
            if _length(partial) <= have:
                raise PlaceFailed(reason(error)) from error


def _stream(session: requests.Session, url: str, partial: Path, *, size_bytes: int | None, progress: bool) -> None:
    have = _length(partial)
    if have == size_bytes:
        return
    if size_bytes is not None and have > size_bytes:
        partial.unlink()
        have = 0
    # Compressed on the way, neither Range nor Content-Length would count the file's own bytes.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
        status, announced = response.status_code, response.headers.get("Content-Length", "")
        goes_on = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and status in (206, 416) and not goes_on:
            partial.unlink()
            return _stream(session, url, partial, size_bytes=size_bytes, progress=progress)
        if status != 200 and not goes_on:
            raise PlaceFailed(f"HTTP {status} {response.reason}".rstrip())
        if status == 200:  # no ranges here: what was there is written over
            have = 0
        total = have + int(announced) if announced.isdigit() else size_bytes
        if size_bytes not in (None, total):
            raise PlaceFailed(f"offers {total:,} bytes, wanted {size_bytes:,}")
        with _bar(partial.name.removesuffix(".inprogress"), have, total, progress=progress) as bar:
            _write(response, partial, have, total, bar)


def _write(response: requests.Response, partial: Path, have: int, total: int | None, bar: tqdm[Never]) -> None:
    import requests

    with partial.open("ab" if have else "wb") as file:
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
            have += len(chunk)
            if total is not None and have > total:
                break
    if total is None or have == total:
        return
    if have < total:
        raise requests.ConnectionError(f"the connection ended after {have:,} of {total:,} bytes")
    partial.unlink()
    raise PlaceFailed(f"sends more than the {total:,} bytes wanted")


def _bar(name: str, have: int, total: int | None, *, progress: bool) -> tqdm[Never]:
    """A bar on stderr, or nothing where stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        initial=have,
        desc=name,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    )


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
