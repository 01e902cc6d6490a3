"""The folder of an unpacked archive."""

from pathlib import Path


def find_root(name: str, root: Path, marker: str, *folders: str) -> Path:
    """Returns ``root``, or the first of ``folders`` below it, that contains ``marker``.

    An archive unpacks to a folder, so the root may be that folder or its parent.

    Raises:
        FileNotFoundError: None of them contains it.
    """
    for candidate in (root, *(root / folder for folder in folders)):
        if (candidate / marker).exists():
            return candidate
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: the data root {root.absolute()} does not exist")
    also = f" (nor in its folder {' or '.join(folders)})" if folders else ""
    raise FileNotFoundError(
        f"{name}: {marker} is not in {root}{also}: give the folder of the unpacked official archive"
    )
