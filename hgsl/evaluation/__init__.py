"""Embeddings, exact search, retrieval metrics and reports."""

from hgsl.evaluation.evaluate import evaluate_embeddings, evaluate_task
from hgsl.evaluation.extract import Embeddings, embed
from hgsl.evaluation.report import format_table
from hgsl.evaluation.result import RetrievalResult
from hgsl.evaluation.task import RetrievalTask, make_task
from hgsl.evaluation.vectors import load_array

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
