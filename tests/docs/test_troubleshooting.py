"""The page of troubleshooting quotes messages that the package still prints."""

import re

from tests.helpers import ROOT


def test_every_quoted_message_is_in_the_source() -> None:
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    messages = [text for text in quoted if text != "message"]
    assert len(messages) > 25
    # Parts of a message stand on several lines, between quotes.
    source = "\n".join(path.read_text() for path in sorted((ROOT / "hgsl").rglob("*.py")))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    assert [text for text in messages if text not in joined] == []
