"""The objective: schedules of K, masks, and losses that are added to the package."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hgsl.cli import train
from hgsl.common.errors import InputError
from hgsl.config import LossConfig, MaskConfig
from hgsl.engine.folder.logging import read_metrics
from hgsl.engine.parts.masking import MaskedObjective
from hgsl.engine.parts.objective import build_objective, check_loss
from hgsl.losses import LOSSES
from hgsl.losses.functional import hard_global_softmin_loss
from hgsl.sparsity import sparsify

TINY = [
    *("--config", str(Path(train.__file__).parents[2] / "configs" / "folder.yaml"), "--data.image_size", "32"),
    *("--model.backbone", "test_resnet", "--model.weights", "none", "--run.device", "cpu", "--run.threads", "1"),
    *("--data.workers", "0", "--train.epochs", "2", "--eval.before", "false", "--eval.page", "false"),
]


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
    words = [*TINY, "--data.root", str(photo_folder()), "--run.dir", str(tmp_path / "out")]
    words += ["--loss.hard_set", "negatives", "--loss.top_k", "null", "--loss.top_k_schedule", "{0: null, 1: 1}"]
    assert train.main(words) == 0
    assert all(record["grad_norm"] > 0 for record in read_metrics(tmp_path / "out" / "metrics.jsonl"))


def test_the_penalty_of_the_masks_is_added_to_the_loss() -> None:
    inner = build_objective(LossConfig(top_k=2), num_classes=4, embedding_size=3)
    masks = sparsify(torch.nn.Linear(3, 5))[1]
    embeddings, labels = torch.eye(3), torch.arange(3)
    masked = MaskedObjective(inner, masks, MaskConfig(lmbda=0.1), calls=1)
    penalty = 0.1 * 15  # every mask is 1 while its score is at its initial value
    torch.testing.assert_close(masked(embeddings, labels), inner(embeddings, labels) + penalty)
    assert masked.loss_fn is inner.loss_fn


def test_lambda_grows_while_more_is_left_than_the_line_to_the_target_allows() -> None:
    inner = build_objective(LossConfig(top_k=2), num_classes=4, embedding_size=3)
    masks = sparsify(torch.nn.Linear(3, 5), 2.0)[1]
    masked = MaskedObjective(inner, masks, MaskConfig(lmbda=0.1, target=0.4), calls=10)
    masks.ticket = True
    lambdas = []
    for share in (1.0, 1.0, 13 / 15, 0.4, 0.4, 0.4, 0.4, 0.4):
        masks.mask_parameters()[0].data = torch.where(torch.arange(15) < round(15 * share), 1.0, -1.0).view(5, 3)
        masked(torch.eye(3), torch.arange(3))
        lambdas.append(masked.lmbda.item())
    logs = torch.tensor(lambdas).log() - torch.tensor(0.1).log()
    # The line: 1, 0.9, 0.8, 0.7, 0.6, 0.5 and then 0.4.
    expected = torch.tensor([0.0, 0.1, 1 / 15, -0.3, -0.2, -0.1, 0.0, 0.0]).cumsum(0)
    torch.testing.assert_close(logs, expected, atol=1e-5, rtol=0)
    assert masked.state_dict()["call"] == 8


class NormalizedCenters(nn.Module):
    """A loss as a contributor would add it: softmax over the cosines to class centers."""

    def __init__(self, num_classes: int, embedding_size: int, temperature: float = 0.1) -> None:
        super().__init__()
        self.centers = nn.Parameter(torch.randn(num_classes, embedding_size))
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        cosines = nn.functional.normalize(embeddings) @ nn.functional.normalize(self.centers).T
        return nn.functional.cross_entropy(cosines / self.temperature, labels)


def test_a_new_loss_is_one_class_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "NormalizedCenters", NormalizedCenters)
    settings = LossConfig(name="NormalizedCenters", options={"temperature": 0.5})
    check_loss(settings)
    objective = build_objective(settings, num_classes=7, embedding_size=5)
    assert objective.loss_fn.centers.shape == (7, 5)
    assert objective.loss_fn.temperature == 0.5
    assert objective.gather
    embeddings, labels = torch.randn(6, 5), torch.arange(6)
    optimizer = torch.optim.SGD(objective.parameters(), lr=0.5)
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        losses.append(objective(embeddings, labels))
        losses[-1].backward()
        optimizer.step()
    assert losses[1] < losses[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "NormalizedCentres"}, "unknown loss 'NormalizedCentres': did you mean 'NormalizedCenters'"),
        ({"name": "ProxyAnchrLoss"}, "unknown loss 'ProxyAnchrLoss': did you mean 'ProxyAnchorLoss'"),
        ({"name": "TripletMarginLoss", "miner": "TripletMiner"}, "did you mean 'TripletMarginMiner'"),
    ],
)
def test_an_unknown_name_of_a_loss_or_a_miner_is_refused(
    settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytorch_metric_learning")
    monkeypatch.setitem(LOSSES, "NormalizedCenters", NormalizedCenters)
    with pytest.raises(InputError, match=message):
        check_loss(LossConfig(**settings))  # type: ignore[arg-type]


def test_without_the_library_only_the_losses_of_this_package_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning.losses", None)
    check_loss(LossConfig())
    with pytest.raises(InputError, match=r'losses other than HardGlobalSoftminLoss.*pip install "hgsl\[pml\]"'):
        check_loss(LossConfig(name="ProxyAnchorLoss"))
