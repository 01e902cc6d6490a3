"""Retrieval scores of a model on a split: the end of training and the evaluation command are this one function."""

from typing import Any

from hgsl.config import EvalConfig
from hgsl.data import RetrievalDataset
from hgsl.engine.build import Place
from hgsl.evaluation import embed, evaluate_embeddings
from hgsl.models import Embedder


def evaluate(model: Embedder, dataset: RetrievalDataset, settings: EvalConfig, place: Place) -> dict[str, Any]:
    """Embeds ``dataset``, searches every query among the gallery and returns the report's numbers.

    The dictionary has the scores in [0, 1] (``recall@1``, ``r_precision``, ``map@r``, ...), the counts, the protocol,
    the split's hash, and the notes that a reader must know (such as a crop to boxes).
    """
    found = embed(
        model,
        dataset,
        batch_size=settings.batch_size,
        num_workers=place.workers,
        device=place.device,
        precision=place.precision,
    )
    manifest = dataset.manifest
    query, gallery = manifest.is_query, manifest.is_gallery
    result = evaluate_embeddings(
        found.embeddings[query],
        found.labels[query],
        settings.ks,
        ids=found.ids[query],
        gallery_embeddings=found.embeddings[gallery],
        gallery_labels=found.labels[gallery],
        gallery_ids=found.ids[gallery],
    )
    return {
        **result.to_dict(),
        "dataset": manifest.name,
        "protocol": manifest.protocol,
        "split_hash": manifest.split_hash,
        "notes": list(manifest.notes),
    }
