"""The search by groups of centers, whose Triton kernels an interpreter runs on a CPU."""

import os
import subprocess
import sys

import pytest

from tests.helpers import ROOT

SCRIPT = """
import torch
from hgsl.losses.scoring.group_search import FURTHER, search_by_groups
from hgsl.losses.scoring.kernels import GROUP, cosines_of_groups, group_maxima

for batch, count, dimensions, k in ((3, 40, 7, 1), (130, 150, 33, 11), (2, 5, 3, 5)):
    torch.manual_seed(count)
    x = torch.nn.functional.normalize(torch.randn(batch, dimensions), dim=1)
    centers = torch.randn(count, dimensions) * torch.rand(count, 1) * 3
    centers[count // 2] = 0
    norms = centers.norm(dim=1)
    cosines = x.double() @ centers.double().T / norms.where(norms > 0, 1).double()
    padded = torch.full((batch, count + -count % GROUP), -torch.inf, dtype=torch.float64)
    padded[:, :count] = cosines
    expected = padded.unflatten(1, (-1, GROUP))

    maxima, found_norms = group_maxima(x, centers)
    torch.testing.assert_close(found_norms, norms)
    assert (maxima - expected.amax(2)).abs().max() <= 3 * 2.0**-16
    groups = torch.arange(expected.shape[1]).expand(batch, -1).contiguous()
    torch.testing.assert_close(cosines_of_groups(x, centers, groups).double(), padded, rtol=0, atol=3e-7)

    rows, extremes = search_by_groups(x, centers, k)
    torch.testing.assert_close(cosines.gather(1, rows), cosines.topk(k, dim=1).values, rtol=0, atol=3e-7)
    assert all(len(set(row)) == k for row in rows.tolist())
    torch.testing.assert_close(extremes, torch.stack(norms.aminmax()))
print("done")
"""


@pytest.mark.slow
def test_kernels_give_the_products_of_float64() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.stdout == "done\n", result.stderr
