from collections.abc import Callable
from pathlib import Path

import torch

from hgsl.cli import train
from hgsl.config import LossConfig
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import build_objective
from hgsl.losses.functional import hard_global_softmin_loss
from hgsl.sparsity import sparsify


def test_the_nearest_negatives_under_a_schedule() -> None:
    settings = LossConfig(hard_set="negatives", top_k_schedule={0: None, 1: 3, 2: 1, 3: 99}, decorrelation=0.0)
    objective = build_objective(settings, num_classes=7, embedding_size=5)
    embeddings, labels = torch.randn(6, 5), torch.arange(6)
    for epoch, k in enumerate([None, 3, 1, None]):
        objective.start_epoch(epoch)
        expected = hard_global_softmin_loss(
            embeddings, objective.loss_fn.centers, labels, 0.1, k, "negatives", decorrelation=0.0
        )
        torch.testing.assert_close(objective(embeddings, labels), expected)


def test_a_run_under_a_schedule_of_nearest_negatives(photo_folder: Callable[..., Path], tmp_path: Path) -> None:
    words = ["--config", str(Path(train.__file__).parents[2] / "configs" / "folder.yaml")]
    words += ["--data.root", str(photo_folder()), "--run.dir", str(tmp_path / "out"), "--data.image_size", "32"]
    words += ["--model.backbone", "test_resnet", "--model.weights", "none", "--run.device", "cpu", "--run.threads", "1"]
    words += ["--data.workers", "0", "--train.epochs", "2", "--eval.before", "false", "--eval.page", "false"]
    words += ["--loss.hard_set", "negatives", "--loss.top_k", "null", "--loss.top_k_schedule", "{0: null, 1: 1}"]
    assert train.main(words) == 0
    assert all(record["grad_norm"] > 0 for record in read_metrics(tmp_path / "out" / "metrics.jsonl"))


def test_the_penalty_of_the_masks_is_added_to_the_loss() -> None:
    inner = build_objective(LossConfig(top_k=2), num_classes=4, embedding_size=3)
    masks = sparsify(torch.nn.Linear(3, 5))[1]
    embeddings, labels = torch.eye(3), torch.arange(3)
    masked = MaskedObjective(inner, masks, lmbda=0.1)
    penalty = 0.1 * 15  # every mask is 1 while its score is at its initial value
    torch.testing.assert_close(masked(embeddings, labels), inner(embeddings, labels) + penalty)
    assert masked.loss_fn is inner.loss_fn
