"""Search a sparse network by Continuous Sparsification; see ``python tools/sparsify.py --help``."""

from hgsl.cli.sparsify import main

if __name__ == "__main__":
    raise SystemExit(main())
