"""Location of data sets on disk: cards, default root, and the folder of an unpacked archive."""

from pathlib import Path


def datasets_dir() -> Path:
    """The folder of the cards, one folder per data set: in a checkout, a link to its ``datasets/``."""
    return Path(__file__).parents[2] / "datasets"


def default_root(name: str) -> Path:
    """Default root of a data set: ``datasets/NAME`` of the checkout.

    Where hgsl is installed without a checkout, it is ``datasets/NAME`` in the current working directory.
    """
    cards = datasets_dir()
    return (cards.resolve() if cards.is_symlink() else Path("datasets")) / name


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
