"""Search settings; see ``python tools/tune.py --help``."""

from hgsl.cli.tune import main

if __name__ == "__main__":
    raise SystemExit(main())
