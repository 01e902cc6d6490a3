from pathlib import Path

import pytest

from hgsl.common.errors import InputError
from hgsl.common.no_match import read_no_match, write_no_match


def test_what_is_written_is_read(tmp_path: Path) -> None:
    assert read_no_match(tmp_path) is None
    content = {"threshold": 0.25, "metric": "cosine", "post_processing": []}
    assert write_no_match(tmp_path, content) == tmp_path / "no_match.json"
    assert read_no_match(tmp_path) == content


@pytest.mark.parametrize("text", ["[]", "{", '{"threshold": 0.5}', '{"metric": "cosine", "threshold": null}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "no_match.json").write_text(text)
    with pytest.raises(InputError, match=r"no_match\.json"):
        read_no_match(tmp_path)
