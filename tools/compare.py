"""Compare retrieval reports; see ``python tools/compare.py --help``."""

from hgsl.cli.compare import main

if __name__ == "__main__":
    raise SystemExit(main())
