"""In-shop Clothes Retrieval of DeepFashion (Liu et al., 2016): ``list_eval_partition.txt`` and ``img/``."""

from pathlib import Path

from hgsl.common.errors import InputError
from hgsl.data.adapters.benchmarks.lists import read_columns
from hgsl.data.build_manifest import make_manifest
from hgsl.data.files.layout import find_root
from hgsl.data.manifest import Manifest

STATUS = ("train", "query", "gallery")
LIST = "list_eval_partition.txt"


def load(root: Path) -> Manifest:
    """Reads the list: its count, a header, then ``image_name item_id evaluation_status``.

    The list is in ``Eval/`` of the unpacked archive or in the root; images are in ``Img/img/`` or ``img/``.

    Raises:
        FileNotFoundError: The list is missing.
        InputError: A line is malformed, or the count in the first line differs.
    """
    folder = find_root("inshop", root, LIST, "Eval")
    file = folder / LIST
    rows = read_columns(file, 3, skip=2)
    total = file.read_text(encoding="utf-8").split(maxsplit=1)[0]
    if total != str(len(rows)):
        raise InputError(f"{file} has {len(rows)} images, expected {total} as its first line states: it is incomplete")
    for number, (_, _, status) in enumerate(rows, 3):
        if status not in STATUS:
            raise InputError(f"{file}, line {number}: the status {status!r} is none of {', '.join(STATUS)}")
    names = sorted({item for _, item, _ in rows})
    index = {name: i for i, name in enumerate(names)}
    images = root / "Img" if (root / "Img" / "img").is_dir() else root
    return make_manifest(
        "inshop",
        images,
        [path for path, _, _ in rows],
        [index[item] for _, item, _ in rows],
        names,
        protocol="query-gallery",
        split=["train" if status == "train" else "test" for _, _, status in rows],
        is_query=[status != "gallery" for _, _, status in rows],
        is_gallery=[status != "query" for _, _, status in rows],
    )
