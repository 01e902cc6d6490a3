"""Export a trained model; see ``python tools/export.py --help``."""

from hgsl.cli.export import main

if __name__ == "__main__":
    raise SystemExit(main())
