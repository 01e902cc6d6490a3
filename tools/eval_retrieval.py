"""Measure retrieval with a trained model; see ``python tools/eval_retrieval.py --help``."""

from hgsl.cli.eval_retrieval import main

if __name__ == "__main__":
    raise SystemExit(main())
