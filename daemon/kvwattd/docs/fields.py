"""Fields of a class with the comments beside them: the code is where a field's meaning is written."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass

_FIELD = re.compile(
    r"^    (?P<name>[A-Za-z_]\w*)(?:: (?P<type>.+?))?(?: = (?P<value>.+?))?(?:  # (?P<said>.*))?$"
)
_CHECKED = re.compile(r"^Annotated\[(.+?), \w+\.Meta\(.*\)\]$")  # bounds are the code's business


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    type: str
    value: str  # the default as written, or an enumeration's value; empty without one
    said: str  # the comment on its line; empty without one


def fields_of(kind: type) -> list[Field]:
    """Of a dataclass, a struct, a model or an enumeration, in order of definition."""
    body = inspect.getsource(kind).split("\n")[1:]
    found = []
    for line in _without_docstring(body):
        match = _FIELD.match(line)
        if line.startswith(("    def ", "    @")):
            break
        if (
            match
            and (match["type"] or match["value"])
            and not match["name"].startswith(("_", "model_config"))
        ):
            found.append(Field(match["name"], match["type"] or "", match["value"] or "", match["said"] or ""))
    return found


def _without_docstring(lines: list[str]) -> list[str]:
    start = next((i for i, line in enumerate(lines) if line.startswith('    """')), None)
    if start is None:
        return lines
    if lines[start].count('"""') == 2:
        return lines[start + 1 :]
    end = next(i for i in range(start + 1, len(lines)) if '"""' in lines[i])
    return lines[end + 1 :]


def rows(kind: type) -> list[list[str]]:
    """name, type with its default, meaning."""
    return [[f"`{one.name}`", _type(one), one.said or "–"] for one in fields_of(kind)]


def _type(one: Field) -> str:
    shown = _CHECKED.sub(r"\1", one.type)
    return f"`{shown}` = `{one.value}`" if one.value else f"`{shown}`"
