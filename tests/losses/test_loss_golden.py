"""The published formulas, as float64 results of an independent implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hgsl.losses import HardGlobalSoftminLoss

GOLDEN = np.load(Path(__file__).with_name("hgsl_loss.npz"), allow_pickle=False)


def settings(case: str) -> dict[str, str]:
    return dict(part.split("=") for part in case.split(";"))


@pytest.mark.parametrize("number", range(len(GOLDEN["cases"])), ids=[str(case) for case in GOLDEN["cases"]])
def test_loss_and_gradients_match_the_golden_values(number):
    case = settings(str(GOLDEN["cases"][number]))
    embeddings = torch.from_numpy(GOLDEN["embeddings"]).requires_grad_()
    centers = torch.from_numpy(GOLDEN["centers"])
    loss_fn = HardGlobalSoftminLoss(
        *centers.shape,
        top_k=int(case["top_k"]),
        hard_set=case["hard_set"],
        alpha=float(case["alpha"]),
        decorrelation=float(case["decorrelation"]),
    ).double()
    with torch.no_grad():
        loss_fn.centers.copy_(centers)
        loss_fn.alpha.fill_(float(case["alpha"]))  # 0.1 in float32 is not 0.1 in float64

    loss = loss_fn(embeddings, torch.from_numpy(GOLDEN["labels"]))
    loss.backward()

    actual = {
        "loss": loss,
        "grad_embeddings": embeddings.grad,
        "grad_centers": loss_fn.centers.grad,
        "grad_alpha": loss_fn.alpha.grad,
    }
    for name, value in actual.items():
        expected = GOLDEN[f"{name}_{number}"]
        worst = np.abs(value.detach().numpy() - expected).max() / max(1e-3, np.abs(expected).max())
        assert worst <= 1e-5, name
