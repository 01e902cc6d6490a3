"""Embeddings, exact search, retrieval metrics and reports."""

from hgsl.common.tables import format_table
from hgsl.evaluation.embeddings import evaluate_embeddings
from hgsl.evaluation.extract import Embeddings, embed
from hgsl.evaluation.knn.vectors import load_array
from hgsl.evaluation.ranking import Ranking, rank
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask, make_task

__all__ = [
    "Embeddings",
    "Ranking",
    "RetrievalResult",
    "RetrievalTask",
    "embed",
    "evaluate_embeddings",
    "format_table",
    "load_array",
    "make_task",
    "rank",
]
