"""ResNet-20: the published parameter count, and an import without faiss."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from hgsl.models.resnet_cifar import resnet20


def test_resnet20_has_the_published_size() -> None:
    net = resnet20()
    convolutions = [name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)]
    assert len([name for name in convolutions if "shortcut" not in name]) == 19
    assert sum(parameter.numel() for parameter in net.parameters()) == 272_474
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert net.layer3(net.layer2(net.layer1(net.conv1(torch.randn(1, 3, 32, 32))))).shape == (1, 64, 8, 8)


@pytest.mark.slow
def test_it_imports_without_faiss() -> None:
    code = "import sys; sys.modules['faiss'] = None; import hgsl.engine.sparsify.search, hgsl.engine.sparsify.problems"
    subprocess.run([sys.executable, "-c", code], check=True)
