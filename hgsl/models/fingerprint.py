"""Fingerprint of an embedding model: equal for two models if and only if weights and preprocessing are."""

import json

from hgsl.common.fingerprint import fingerprint
from hgsl.models.embedder import Embedder


def fingerprint_of(model: Embedder) -> str:
    """A hash of the weights and the preprocessing of a model."""
    settings = {"architecture": model.architecture, "data_config": model.data_config}
    return fingerprint(model, json.dumps(settings, sort_keys=True))[:16]
