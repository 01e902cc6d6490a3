"""Files from the web, whole or not at all: resumed after a cut, checked by size and checksum."""

import http.client
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from hgsl.common.errors import InputError
from hgsl.common.fingerprint import file_checksum

CHUNK = 1 << 20
RETRIES = 4  # attempts in a row that bring nothing new


def download(
    url: str, path: Path, size: int | None = None, checksums: Sequence[str] = (), *, pause: float = 2.0
) -> None:
    """Fetches ``url`` to ``path``; does nothing if a right file is there.

    Until it is complete and checked, the file is called ``NAME.part``; a later call goes on where that ends.

    Args:
        url: http or https.
        path: Where the file goes.
        size: Expected bytes, if known.
        checksums: What the file may have, such as ``md5:97ec...``; one match is enough, none skips the check.
        pause: Seconds to wait after a failed attempt.

    Raises:
        InputError: The server cannot be reached or does not send the whole file (run again to go on), or the file is
            another one than expected (a fresh one is then removed).
        OSError: The file cannot be written.
    """
    if path.exists():
        wrong = _wrong(path, size, checksums)
        if wrong:
            raise InputError(f"{path} has {wrong}: remove it and run the command again")
        return
    if not url.startswith(("http://", "https://")):
        raise InputError(f"cannot download {url}: only http and https are supported")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    free = shutil.disk_usage(path.parent).free
    if size is not None and free < size:
        raise InputError(f"{url} has {size:,} bytes, and only {free:,} are free in {path.parent}")
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
            break
        failed = 0 if _length(part) > before else failed + 1
        if failed >= RETRIES:
            kept = f"; {_length(part):,} bytes are kept, run the command again to go on" if _length(part) else ""
            raise InputError(f"cannot download {url}: {reason}{kept}")
        time.sleep(pause)
    wrong = _wrong(part, size, checksums)
    if wrong:
        part.unlink()
        raise InputError(f"{path.name}, as {url} sends it, has {wrong}: it was removed, run the command again")
    part.replace(path)


def _fetch(url: str, part: Path, size: int | None) -> bool:
    """One attempt, from the end of ``part`` on; whether the file is complete."""
    have = _length(part)
    request = urllib.request.Request(url, headers={"User-Agent": "hgsl", "Range": f"bytes={have}-"})
    if not have:
        request.remove_header("Range")
    try:
        answer = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        if size is None or have == size:  # nothing is left to send
            return True
        part.unlink()
        return False
    with answer:
        if answer.status != 206:
            have = 0  # the server starts over
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else size
        if size is not None and total is not None and total != size:
            raise InputError(f"{url} has {total:,} bytes where {size:,} are expected: it is not the file on the card")
        bar = tqdm(total=total, initial=have, unit="B", unit_scale=True, desc=part.stem, disable=None)
        with bar, part.open("ab" if have else "wb") as file:
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
    return total is None or _length(part) >= total


def _wrong(path: Path, size: int | None, checksums: Sequence[str]) -> str:
    """What is wrong with the size or the checksum of a file, or ""."""
    if size is not None and _length(path) != size:
        return f"{_length(path):,} bytes where {size:,} are expected"
    algorithms = [checksum.partition(":")[0] for checksum in checksums]
    actual = {algorithm: f"{algorithm}:{file_checksum(path, algorithm)}" for algorithm in algorithms}
    if checksums and not set(checksums) & set(actual.values()):
        return f"checksum {actual[algorithms[0]]} where {checksums[0]} is expected"
    return ""


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
