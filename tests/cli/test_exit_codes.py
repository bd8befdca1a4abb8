"""One table of exit codes: in the help of every command and in the documentation."""

from __future__ import annotations

from pathlib import Path

from kvwattd.commands.exits import CODES, EPILOG

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_the_documentation_has_every_code_with_its_meaning() -> None:
    page = PAGE.read_text()
    for code, meaning in CODES.items():
        assert f"| {code} | {meaning} |" in page
        assert f"{code} {meaning}" in EPILOG
