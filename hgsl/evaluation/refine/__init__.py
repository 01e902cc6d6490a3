"""Refinements of a retrieval task: whitening, expansion, re-ranking, test-time augmentation."""
