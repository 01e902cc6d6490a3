"""An index of a folder of photos: built once, kept up to date, searched by photo from Python, a command or a page."""

from hgsl.search.build import IndexReport, build_index
from hgsl.search.index import Hit, SearchIndex

__all__ = ["Hit", "IndexReport", "SearchIndex", "build_index"]
