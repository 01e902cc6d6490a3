"""Printed summary of a finished run."""

from pathlib import Path

import pytest

from hgsl.engine.folder.summary import print_summary


@pytest.mark.parametrize(
    ("count", "counts", "steps"),
    [
        (1, "1 query, 1 image, in percent", "1 step in 2 s"),
        (1200, "1,200 queries, 1,200 images,", "1,200 steps in 2 s"),
    ],
)
def test_one_is_singular(
    count: int, counts: str, steps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = {"num_queries": count, "num_gallery": count, "recall@1": 1.0, "notes": []}
    training = {"steps": count, "loss_first_epoch": 2.0, "loss_last_epoch": 1.0}
    training |= {"images_per_second": 8.0, "data_wait_share": 0.0}
    report = {"before": None, "after": scores, "training": training, "seconds": 2.0, "selection": {}}
    print_summary(tmp_path, report)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(counts)
    assert any(line.startswith(f"{steps}; ") for line in lines)
