"""``python -m hgsl``."""

from hgsl.cli.about import main

if __name__ == "__main__":
    raise SystemExit(main())
