import pytest
import torch
from torch.distributed import ReduceOp

from hgsl.common import ranks


def test_one_process_without_a_group(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert (ranks.rank(), ranks.world_size(), ranks.launched_world_size(), ranks.is_main()) == (0, 1, 1, True)
    ranks.barrier()
    ranks.print_main("score")
    assert capsys.readouterr().out == "score\n"
    value = torch.tensor([1, 2])
    assert ranks.all_reduce(value, ReduceOp.MAX, device=torch.device("cpu")).tolist() == [1, 2]
    assert ranks.all_gather_object("a") == ["a"]


def test_the_processes_that_torchrun_has_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert ranks.launched_world_size() == 4
    assert ranks.world_size() == 1  # none has joined a group
