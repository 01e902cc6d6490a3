import pytest
from torch import nn

from hgsl.common.modules import evaluation_mode


def test_each_module_returns_to_its_own_mode_even_after_an_error() -> None:
    first, second = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train(), nn.Linear(2, 2).train()
    first[1].eval()  # a frozen batch norm
    with pytest.raises(ZeroDivisionError), evaluation_mode(first, second):
        assert not any(module.training for network in (first, second) for module in network.modules())
        raise ZeroDivisionError
    assert [module.training for module in (first, first[0], first[1], second)] == [True, True, False, True]
