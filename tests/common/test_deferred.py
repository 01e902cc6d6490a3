import pytest
import torch

from hgsl import HardGlobalSoftminLoss
from hgsl.common.deferred import check_numbers, checks_are_deferred, deferred_checks
from hgsl.common.errors import InputError


def refuse_negative(numbers) -> None:
    if min(numbers) < 0:
        raise InputError(f"negative: {numbers}")


def test_checks_run_at_once_or_when_their_numbers_are_read() -> None:
    with pytest.raises(InputError, match="negative"):
        check_numbers(torch.tensor([1.0, -2.0]), refuse_negative)
    with deferred_checks() as checks:
        assert checks_are_deferred()
        check_numbers(torch.tensor([1.0, 2.0]), refuse_negative)
        check_numbers(torch.tensor([3.0, -4.0, 5.0]), refuse_negative)
    assert not checks_are_deferred()
    numbers = checks.tensor([torch.tensor(7), torch.tensor(0.5)], torch.float64).tolist()
    assert numbers == [7.0, 0.5, 1.0, 2.0, 3.0, -4.0, 5.0]
    with pytest.raises(InputError, match=r"negative: \[3.0, -4.0, 5.0\]"):
        checks.run(numbers[2:])


@pytest.mark.parametrize("top_k", [None, 2])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y, loss: x.mul_(float("nan")), "embeddings hold NaN or infinity: the network"),
        (lambda x, y, loss: loss.alpha.data.fill_(-1.0), "alpha is -1"),
        (lambda x, y, loss: loss.centers.data[3].fill_(float("inf")), "centers are not finite, .* in row 3"),
    ],
    ids=["embeddings", "alpha", "centers"],
)
def test_a_loss_reports_wrong_values_when_they_are_read(top_k, change, message) -> None:
    torch.manual_seed(0)
    loss, x, y = HardGlobalSoftminLoss(64, 8, top_k=top_k, decorrelation=0.0), torch.randn(4, 8), torch.arange(4)
    with deferred_checks() as checks:
        right = loss(x, y)
    assert right.equal(loss(x, y))
    checks.run(torch.cat(checks.values).tolist())
    change(x, y, loss)
    with deferred_checks() as checks:
        loss(x, y)  # does not raise
    with pytest.raises(InputError, match=message):
        checks.run(torch.cat(checks.values).tolist())


def test_a_deferred_check_names_the_extreme_labels() -> None:
    loss = HardGlobalSoftminLoss(4, 8)
    with deferred_checks() as checks:
        loss(torch.randn(3, 8), torch.tensor([0, 5, -1]))
    with pytest.raises(InputError, match="labels -1, 5 are out of range: there are 4 classes"):
        checks.run(torch.cat(checks.values).tolist())
