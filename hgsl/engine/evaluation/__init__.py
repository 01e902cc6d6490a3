"""Evaluation of a model on a data set, of the settings of a run, or of embeddings in files."""

from hgsl.engine.evaluation.evaluate import evaluate, evaluate_model, prepare
from hgsl.engine.evaluation.evaluation import Evaluation
from hgsl.engine.evaluation.options import EvalOptions

__all__ = ["EvalOptions", "Evaluation", "evaluate", "evaluate_model", "prepare"]
