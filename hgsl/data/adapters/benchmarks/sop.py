"""Stanford Online Products (Song et al., 2016): ``Ebay_train.txt``, ``Ebay_test.txt`` and one folder per category."""

from pathlib import Path

from hgsl.data.adapters.benchmarks.lists import read_columns, to_int
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest


def load(root: Path) -> Manifest:
    """Reads both lists: ``image_id class_id super_class_id path`` below a header. Their classes are disjoint.

    Raises:
        FileNotFoundError: A list is missing.
        InputError: A line is malformed.
    """
    root = find_root("sop", root, "Ebay_train.txt", "Stanford_Online_Products")
    paths, numbers, groups, split = [], [], [], []
    for part in ("train", "test"):
        file = root / f"Ebay_{part}.txt"
        for _, number, group, path in read_columns(file, 4, skip=1):
            paths.append(path)
            numbers.append(to_int(number, file))
            groups.append(to_int(group, file) - 1)
            split.append(part)
    classes = sorted(set(numbers))
    index = {number: i for i, number in enumerate(classes)}
    return make_manifest(
        "sop",
        root,
        paths,
        [index[number] for number in numbers],
        [str(number) for number in classes],
        protocol="zero-shot",
        split=split,
        groups=groups,
    )
