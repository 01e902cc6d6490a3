"""Split folders: top-level folders such as train, valid and test, which hold the class folders of a split."""

from collections.abc import Mapping

from hgsl.data.manifest import SPLIT_NAMES


def split_folders(top_folders: Mapping[str, bool]) -> dict[str, str]:
    """Split of each top-level folder that is a split folder; empty where the top-level folders are classes.

    Names are matched case-insensitively: train, training, val, valid, validation, test, testing. Since a class may also
    be called "train", folders with these names are splits only if there are no other folders, or if they stand for at
    least two different splits and no image lies directly in them.

    Args:
        top_folders: Top-level folder -> whether images lie directly in it.

    >>> split_folders({"Train": False, "valid": False, "docs": True})
    {'Train': 'train', 'valid': 'val'}
    >>> split_folders({"train": True, "bus": True})
    {}
    """
    splits = {top: SPLIT_NAMES[top.lower()] for top in top_folders if top.lower() in SPLIT_NAMES}
    several = len(set(splits.values())) >= 2 and not any(top_folders[top] for top in splits)
    return splits if several or len(splits) == len(top_folders) else {}
