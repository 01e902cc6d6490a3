"""Categories of classes: the coarser class to which all images of a class belong."""

import numpy as np
from numpy.typing import NDArray

from hgsl.common.errors import InputError
from hgsl.data.dataset import RetrievalDataset


def class_categories(dataset: RetrievalDataset) -> NDArray[np.int64]:
    """Returns the category of each class ``(C,)``, numbered from 0 by their names, or -1 for a class without one.

    Raises:
        InputError: A class has images of two categories.
    """
    names: list[str | None] = [None] * dataset.num_classes
    categories = dataset.manifest.categories
    for label, row in zip(dataset.labels.tolist(), dataset.ids.tolist(), strict=True):
        name = categories.get(row)
        if name is not None and names[label] not in (None, name):
            raise InputError(
                f"class {dataset.class_names[label]!r} has images of the categories {names[label]!r} and {name!r}: "
                "the sampler category needs one for each class: name another column by data.options.group_column, or "
                "set data.sampler m_per_class"
            )
        names[label] = name or names[label]
    numbers = {name: number for number, name in enumerate(sorted({name for name in names if name is not None}))}
    return np.array([-1 if name is None else numbers[name] for name in names], np.int64)
