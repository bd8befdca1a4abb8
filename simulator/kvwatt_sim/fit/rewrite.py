"""Putting fitted numbers into a card's file and leaving every other character as it is."""

from __future__ import annotations

import re
from collections.abc import Mapping

_SECTION = re.compile(r"^\[(?P<name>[^\]]+)\]\s*$")
_ROW = re.compile(r"^(?P<head>(?P<key>\w+) = \{ value = )(?P<value>[^,]+)(?P<tail>,.*)$")


def rewrite(text: str, values: Mapping[str, Mapping[str, float]]) -> str:
    """`values` are by section, then by key. Raises KeyError for a number that the text does not hold."""
    missing = {(section, key) for section, rows in values.items() for key in rows}
    section = ""
    lines = []
    for line in text.splitlines(keepends=True):
        if header := _SECTION.match(line):
            section = header["name"]
        row = _ROW.match(line)
        if row and (section, row["key"]) in missing:
            missing.remove((section, row["key"]))
            line = f"{row['head']}{values[section][row['key']]!r}{row['tail']}\n"
        lines.append(line)
    if missing:
        raise KeyError(f"not in the card: {sorted(missing)}")
    return "".join(lines)
