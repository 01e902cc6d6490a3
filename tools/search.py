"""Index a folder of photos and search it; see ``python tools/search.py --help``."""

from hgsl.cli.search import main

if __name__ == "__main__":
    raise SystemExit(main())
