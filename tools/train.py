"""Train an embedding model; see ``python tools/train.py --help``."""

from hgsl.cli.train import main

if __name__ == "__main__":
    raise SystemExit(main())
