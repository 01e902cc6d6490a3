"""The measured overlap of an approximate index with exact search."""

import numpy as np

from hgsl.search.indexing.overlap import measure_overlap
from hgsl.search.stores.protocol import Hit


class Half:
    """An index of 40 images on a line whose search finds an image itself and its neighbors on the right alone."""

    exact = False
    record = {"index_type": "half"}  # noqa: RUF012

    def __len__(self):
        return 40

    def spread(self, count):
        return list(range(10, 30))

    def vectors(self, numbers):
        angles = np.asarray(numbers) / 40
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)

    def search_exactly(self, queries, k):
        return [self._hits(number, range(40), k) for number in range(10, 30)]

    def search(self, queries, k):
        return [self._hits(number, range(number, 40), k) for number in range(10, 30)]

    def _hits(self, number, among, k):
        nearest = sorted(among, key=lambda other: abs(other - number))[:k]
        return [Hit(other, f"{other}.jpg", None, 1.0 - abs(other - number) / 40) for other in nearest]


def test_an_image_is_no_neighbor_of_its_own():
    notes = []
    record = measure_overlap(Half(), {}, notes)
    assert record == {"overlap": 0.5, "queries": 20, "depth": 10, "images": 40}
    assert notes == ["the index finds 50.0% of the 10 nearest images of 20 images of the index"]
    assert measure_overlap(Half(), {"overlap": record, "index_type": "half"}, notes) == record
    assert len(notes) == 1
