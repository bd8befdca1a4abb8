"""Pieces that every page is made of."""

from __future__ import annotations

from collections.abc import Iterable

NOTE = "Written by `python -m kvwattd.docs` from the code; edit that instead.\n"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """In Markdown; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
