"""Embeddings, exact search, retrieval metrics and reports."""

from hgsl.common.tables import format_table
from hgsl.evaluation.extract import Embeddings, embed
from hgsl.evaluation.knn.vectors import load_array
from hgsl.evaluation.ranking import evaluate_embeddings, evaluate_task
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask, make_task

__all__ = [
    "Embeddings",
    "RetrievalResult",
    "RetrievalTask",
    "embed",
    "evaluate_embeddings",
    "evaluate_task",
    "format_table",
    "load_array",
    "make_task",
]
