"""Embeddings, exact search, retrieval metrics and reports."""

from hgsl.evaluation.evaluate import RetrievalResult, evaluate_embeddings
from hgsl.evaluation.extract import Embeddings, embed
from hgsl.evaluation.report import format_table

__all__ = ["Embeddings", "RetrievalResult", "embed", "evaluate_embeddings", "format_table"]
