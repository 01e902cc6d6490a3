"""Fetch, check and list a data set; see ``python tools/prepare_dataset.py --help``."""

from hgsl.cli.prepare_dataset import main

if __name__ == "__main__":
    raise SystemExit(main())
