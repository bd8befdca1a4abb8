"""How long, as it is typed: 90, 90s, 10m, 1h."""

from __future__ import annotations

import re

import typer

_TEXT = re.compile(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?")
_SECONDS = {None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: str, option: str, most_s: float) -> float:
    """Raises typer.BadParameter naming the option, the value and what is accepted."""
    found = _TEXT.fullmatch(text.strip().lower())
    value = float(found[1]) * _SECONDS[found[2]] if found is not None else 0.0
    if not 0.0 < value <= most_s:
        told = f"{text!r}: a time such as 90s, 10m or 1h is accepted, at most {most_s:g} s"
        raise typer.BadParameter(told, param_hint=option)
    return value
