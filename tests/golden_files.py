"""Texts that are compared whole: tests/golden/ has what is expected, to be read and reviewed.

`GOLDEN=write make test-unit` writes them anew; what the change was is then in the diff.
"""

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    path = FOLDER / name
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert path.exists(), f"{path} is not there: GOLDEN=write writes it"
    assert text == path.read_text()
