"""mkdocs.yml: every page is in the navigation once, and every entry is a page."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docs_text import ROOT, pages

yaml = pytest.importorskip("yaml")


def entries(nav: object) -> Iterator[str]:
    """The files of a navigation, in order."""
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, list | dict):
        for item in nav.values() if isinstance(nav, dict) else nav:
            yield from entries(item)


def test_navigation() -> None:
    """No page is left out (add it to `nav` in mkdocs.yml), none is listed twice, none is missing."""
    site = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    listed = list(entries(site["nav"]))
    there = {str(page.path.relative_to(ROOT / "docs")) for page in pages() if page.name != "README.md"}
    assert set(listed) == there and len(listed) == len(there)
    assert site["strict"] is True


def test_every_title_is_said_once() -> None:
    """Each page begins with one heading of the first level, its own."""
    titles = [page.text.split("\n", 1)[0] for page in pages()]
    assert all(title.startswith("# ") for title in titles)
    assert len(set(titles)) == len(titles)
