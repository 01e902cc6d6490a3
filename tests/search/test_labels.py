"""Labels of an index from class folders and split folders, with the notes where the two could be confused."""

import pytest

from hgsl.search.indexing.labels import read_attributes


def labels_of(*paths):
    notes = []
    return read_attributes("folders", None, paths, notes).labels, notes


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "Valid", "TEST"), ("training", "validation")])
def test_split_folders_are_no_labels(splits):
    paths = [f"{split}/{name}/1.jpg" for split in splits for name in ("rose", "oak")]
    labels, notes = labels_of(*paths, "docs/diagram.png")
    assert {labels[path] for path in paths} == {"rose", "oak"}
    assert "docs/diagram.png" not in labels
    names = ", ".join(sorted(splits))
    assert notes == [
        f"labels are the class folders inside the split folders {names}; 1 images outside them have no label"
    ]


def test_a_class_named_like_a_split_is_noted():
    labels, notes = labels_of("train/1.jpg", "bus/1.jpg", "bus/red/2.jpg")
    assert labels == {"train/1.jpg": "train", "bus/1.jpg": "bus", "bus/red/2.jpg": "bus"}
    assert notes == ["the folder train is taken as a class, not as a split: --labels TABLE.csv gives other labels"]


def test_class_folders_need_no_note():
    assert labels_of("rose/1.jpg", "2.jpg") == ({"rose/1.jpg": "rose"}, [])
