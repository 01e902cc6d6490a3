"""Downloads over HTTP: resumable, checked by size and checksum, and atomic."""

import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.common.fingerprint import file_checksum
from hgsl.common.progress import progress_bar

CHUNK = 1 << 20
RETRIES = 4  # consecutive attempts without a new byte


def download(
    url: str, path: Path, size: int | None = None, checksums: Sequence[str] = (), *, pause: float = 2.0
) -> None:
    """Downloads ``url`` to ``path``; does nothing if the expected file exists.

    Until it is complete and checked, the file is called ``NAME.part``; a later call resumes at its end.

    Args:
        url: http or https.
        path: The target file.
        size: Expected bytes, if known.
        checksums: Accepted checksums, such as ``md5:97ec...``; one match is enough, an empty list skips the check.
        pause: Seconds to wait after a failed attempt.

    Raises:
        InputError: The server cannot be reached or does not send the whole file (a later call resumes), or the file
            differs from the expected one (and is removed if it was just downloaded).
        OSError: The file cannot be written.
    """
    if path.exists():
        mismatch = _mismatch(path, size, checksums)
        if mismatch:
            raise InputError(f"{path} has {mismatch}: remove it and run the command again")
        return
    if not url.startswith(("http://", "https://")):
        raise InputError(f"cannot download {url}: only http and https are supported")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    free = shutil.disk_usage(path.parent).free
    if size is not None and free < size - _length(part):
        raise InputError(
            f"{url} has {size - _length(part):,} bytes to download, and only {free:,} are free in {path.parent}"
        )
    _fetch_all(url, part, size, pause)
    mismatch = _mismatch(part, size, checksums)
    if mismatch:
        part.unlink()
        raise InputError(f"{path.name} from {url} has {mismatch}: it was removed, run the command again")
    part.replace(path)


def _fetch_all(url: str, part: Path, size: int | None, pause: float) -> None:
    """Appends to ``part`` until the file is complete or ``RETRIES`` consecutive attempts bring no new byte."""
    failed = 0
    while True:
        before = _length(part)
        try:
            complete, reason = _fetch(url, part, size), "the connection was cut"
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            complete, reason = False, str(getattr(error, "reason", "") or error) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError) and error.code in (401, 403, 404, 410):
                failed = RETRIES
        if complete:
            return
        failed = 0 if _length(part) > before else failed + 1
        if failed >= RETRIES:
            resume = f"; {_length(part):,} bytes are kept, run the command again to resume" if _length(part) else ""
            raise InputError(f"cannot download {url}: {reason}{resume}")
        time.sleep(pause)


def _fetch(url: str, part: Path, size: int | None) -> bool:
    """One attempt, from the end of ``part`` on; returns whether the file is complete."""
    offset = _length(part)
    request = urllib.request.Request(url, headers={"User-Agent": "hgsl", "Range": f"bytes={offset}-"})
    if not offset:
        request.remove_header("Range")
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if size is None or offset == size:  # the file is complete
            return True
        part.unlink()
        return False
    with response:
        if response.status != 206:
            offset = 0  # the server sends the whole file
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else size
        if size is not None and total is not None and total != size:
            raise InputError(f"{url} has {total:,} bytes, expected {size:,}: it is not the file that the card names")
        bar = progress_bar(total=total, initial=offset, unit="B", unit_scale=True, desc=part.stem)
        with bar, part.open("ab" if offset else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _length(part) >= total


def _mismatch(path: Path, size: int | None, checksums: Sequence[str]) -> str:
    """The size or checksum of a file and the expected one, in words, if they differ, else ""."""
    if size is not None and _length(path) != size:
        return f"{_length(path):,} bytes, expected {size:,}"
    algorithms = [checksum.partition(":")[0] for checksum in checksums]
    actual = {algorithm: f"{algorithm}:{file_checksum(path, algorithm)}" for algorithm in algorithms}
    if checksums and not set(checksums) & set(actual.values()):
        return f"checksum {actual[algorithms[0]]}, expected {checksums[0]}"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
