"""Image search: an index of a folder of images, kept up to date, and the queries against it.

The public names are imported on first use, so that a command can check its arguments before PyTorch is loaded.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hgsl.search.index import SearchIndex
    from hgsl.search.indexing.build import build_index
    from hgsl.search.indexing.report import IndexReport
    from hgsl.search.stores.protocol import Hit

_MODULE_OF = {
    "Hit": "hgsl.search.stores.protocol",
    "IndexReport": "hgsl.search.indexing.report",
    "SearchIndex": "hgsl.search.index",
    "build_index": "hgsl.search.indexing.build",
}

__all__ = ["Hit", "IndexReport", "SearchIndex", "build_index"]


if not TYPE_CHECKING:  # a type checker that saw it would accept every name

    def __getattr__(name):
        if name not in _MODULE_OF:
            raise AttributeError(f"module 'hgsl.search' has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULE_OF[name]), name)
