"""docs/reference says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kvwattd.docs import FOLDER, artifacts, fields, guard, pages

ROOT = Path(__file__).parents[2]
PAGES = pages(ROOT)


@pytest.mark.parametrize("name", PAGES)
def test_the_reference_is_up_to_date(name: str) -> None:
    """Every key, metric, call, command and file stands there as it is; else: python -m kvwattd.docs."""
    assert (ROOT / FOLDER / name).read_text(encoding="utf-8") == PAGES[name]


@pytest.mark.parametrize(
    ("name", "least"), [("configuration.md", 50), ("metrics.md", 70), ("rest.md", 20), ("cli.md", 60)]
)
def test_every_row_has_a_meaning(name: str, least: int) -> None:
    """No row ends empty, and there are as many as there must be."""
    rows = [line for line in PAGES[name].splitlines() if line.startswith("| `")]
    assert len(rows) > least
    assert not [row for row in rows if len(row.split(" | ")[-1].strip(" |")) < 10]


def test_what_is_told_beside_the_code_is_complete() -> None:
    """Operations of the guard, keys of the manifest and columns of the profile: all of them and no others."""
    server = (ROOT / "daemon/kvwattd/guard/server.py").read_text()
    assert set(re.findall(r'(?:case|operation ==) "(\w+)":', server)) == guard.OPERATIONS.keys()
    said = {one.name for one in artifacts.fields_of(artifacts.Manifest) if one.said}
    assert set(artifacts.manifest_keys()) == said | artifacts.MANIFEST.keys()
    assert set(artifacts.COLUMNS) == artifacts.PROFILE.keys()


def test_no_field_of_a_file_or_message_is_left_out() -> None:
    """What is read from the sources, with its comments, are all fields that there are at run time."""
    modules = (artifacts.wire, artifacts.told, artifacts.lines, guard.protocol)
    kinds = [kind for module in modules for kind in vars(module).values() if hasattr(kind, "__match_args__")]
    kinds += [artifacts.Entry, artifacts.Record, artifacts.Current, artifacts.Manifest]
    assert len(kinds) > 12
    for kind in kinds:
        assert [one.name for one in fields.fields_of(kind)] == list(kind.__annotations__), kind
