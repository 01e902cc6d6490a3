"""Where a data set lies on disk: its card, its root, and the file that proves it is the right folder."""

from pathlib import Path


def datasets_dir() -> Path:
    """The folder that holds the cards, one folder a data set: in a checkout, a link to its ``datasets/``."""
    return Path(__file__).parents[2] / "datasets"


def default_root(name: str) -> Path:
    """Where a data set lies unless told otherwise: ``datasets/NAME`` of the checkout.

    Where hgsl is installed without a checkout, that of the working folder: photos have no place among packages.
    """
    cards = datasets_dir()
    return (cards.resolve() if cards.is_symlink() else Path("datasets")) / name


def find_root(name: str, root: Path, marker: str, *folders: str) -> Path:
    """Returns ``root``, or the one of ``folders`` below it, that holds ``marker``.

    An archive unpacks to a folder of its own name, so a user may rightly give that folder or the one around it.

    Raises:
        FileNotFoundError: Neither does.
    """
    for candidate in (root, *(root / folder for folder in folders)):
        if (candidate / marker).exists():
            return candidate
    if not root.is_dir():
        raise FileNotFoundError(f"{name}: the data root {root} does not exist")
    also = f" (nor in its folder {' or '.join(folders)})" if folders else ""
    raise FileNotFoundError(
        f"{name}: {marker} is not in {root}{also}: give the folder of the unpacked official archive"
    )
