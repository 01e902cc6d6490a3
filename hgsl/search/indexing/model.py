"""The model of an index: given by the user, or the one that embedded its images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from hgsl.common.errors import InputError
from hgsl.models import load_embedder
from hgsl.models.fingerprint import fingerprint_of
from hgsl.search.encoder import Encoder
from hgsl.search.folder.layout import MODEL_COMPLETE
from hgsl.search.stores.protocol import Store


def prepare_encoder(
    store: Store, checkpoint: str | Path | None, device: torch.device, record: Mapping[str, Any]
) -> Encoder:
    """Loads the model of the index, and stores a copy where the store holds one.

    Args:
        store: The index.
        checkpoint: The model given by the user.
        device: Device of the model.
        record: Settings of the index; empty for a new one.

    Raises:
        InputError: The index has no model, or one that ``record`` does not name.
    """
    expected = record["model"].get("fingerprint") if record else None
    if checkpoint is None:
        source = model_source(store, record)
        try:
            encoder = Encoder(load_embedder(source), device)
        except (InputError, FileNotFoundError) as error:
            way_out = "replace the copy of the model" if source == store.model else "give the model"
            raise InputError(f"{error}: {way_out} with --checkpoint RUN") from error
        if record and encoder.fingerprint != expected:
            raise InputError(
                f"{source} is not the model that embedded the images: give that model with --checkpoint RUN"
            )
        return encoder
    encoder = Encoder(load_embedder(checkpoint), device)
    if record and encoder.fingerprint != expected:
        raise InputError(
            f"{store.address} was made with another model than {checkpoint} ({expected}, not {encoder.fingerprint}): "
            "their vectors cannot be compared, so name another place for the index"
        )
    if store.model is not None and not _is_copy(store.model, encoder.fingerprint):
        store.save_model(encoder.model)
    return encoder


def model_source(store: Store, record: Mapping[str, Any]) -> Path | str:
    """The folder or Hub name of the model of an index: its copy, else the checkpoint named in its settings.

    Raises:
        InputError: It has neither.
    """
    if store.model is not None and (store.model / MODEL_COMPLETE).is_file():
        return store.model
    checkpoint = record.get("model", {}).get("checkpoint")
    if store.model is not None or checkpoint is None:
        raise InputError(f"{store.address} has no model yet: give the trained model with --checkpoint RUN")
    return str(checkpoint)


def _is_copy(folder: Path, fingerprint: str) -> bool:
    """Whether the folder holds an undamaged model of this fingerprint."""
    try:
        return (folder / MODEL_COMPLETE).is_file() and fingerprint_of(load_embedder(folder)) == fingerprint
    except (InputError, OSError):
        return False
