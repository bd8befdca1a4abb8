"""docs/reference says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvwattd.docs import EXAMPLE, FOLDER, pages

ROOT = Path(__file__).parents[2]
PAGES = pages((ROOT / EXAMPLE).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_up_to_date(name: str) -> None:
    """Every configuration key, metric and REST call stands there as it is; else: python -m kvwattd.docs."""
    assert (ROOT / FOLDER / name).read_text(encoding="utf-8") == PAGES[name]


@pytest.mark.parametrize(("name", "least"), [("configuration.md", 50), ("metrics.md", 70), ("rest.md", 20)])
def test_every_row_has_a_meaning(name: str, least: int) -> None:
    """No row ends empty, and there are as many as there must be."""
    rows = [line for line in PAGES[name].splitlines() if line.startswith("| `")]
    assert len(rows) > least
    assert not [row for row in rows if len(row.split(" | ")[-1].strip(" |")) < 10]
