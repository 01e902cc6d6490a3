from pathlib import Path

import pytest

from hgsl.engine.folder.logging import MetricLog


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is one of Linux")
def test_a_full_disk_names_the_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*/metrics\.jsonl'"), MetricLog(tmp_path) as log:
        log.write(1, loss=0.5)
        log.flush()
