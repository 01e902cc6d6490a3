"""Location of data sets on disk: the folder of the cards, and the default roots."""

from pathlib import Path

# For a root that is an address.
ROOT_HINT = "list the images in a local table (data set csv), whose paths or option image_root may be addresses"


def datasets_dir() -> Path:
    """The folder of the cards, one folder per data set: in a checkout, a link to its ``datasets/``."""
    return Path(__file__).parents[1] / "datasets"


def default_root(name: str) -> Path:
    """Default root of a data set: ``datasets/NAME`` of the checkout.

    Where hgsl is installed without a checkout, it is ``datasets/NAME`` in the current working directory.
    """
    cards = datasets_dir()
    return (cards.resolve() if cards.is_symlink() else Path("datasets")) / name
