"""Every command with its options, from the same objects that print `--help`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

from kvwattd.cli import COMMANDS, ENTRY_POINTS
from kvwattd.commands.exits import EPILOG
from kvwattd.docs.text import NOTE, table


def page() -> str:
    """All commands of this distribution, in the order of `kvwatt --help`."""
    overview = table(
        ["command", "does"], ([f"[`kvwatt {n}`](#kvwatt-{n})", c.help] for n, c in COMMANDS.items())
    )
    details = "\n".join(
        text for name in COMMANDS for text in _described(f"kvwatt {name}", click_command(name))
    )
    return f"# Command line\n\n{NOTE}\n{EPILOG}\n\n{overview}\n\n{details}"


def click_command(name: str) -> Any:  # noqa: ANN401 (a command of click, or of the copy that typer carries)
    """What runs for `kvwatt NAME`."""
    place = COMMANDS[name].target
    if place is None:
        (point,) = entry_points(group=ENTRY_POINTS, name=name)
        target = point.load()
    else:
        module, _, attribute = place.partition(":")
        target = getattr(import_module(module), attribute)
    if not isinstance(target, typer.Typer):
        app = typer.Typer(add_completion=False)
        app.command()(target)
        target = app
    return typer.main.get_command(target)


def _described(name: str, command: Any) -> Iterator[str]:  # noqa: ANN401 (as above)
    """The section of a command, then those of its own commands."""
    yield f"{'##' if name.count(' ') == 1 else '###'} {name}\n\n{_prose(command.help)}\n"
    rows = [_row(one) for one in command.params if not getattr(one, "hidden", False) and one.name != "help"]
    if rows:
        yield table(["option", "default", "meaning"], rows) + "\n"
    for sub, under in getattr(command, "commands", {}).items():
        if not under.hidden:
            yield from _described(f"{name} {sub}", under)


def _prose(text: str | None) -> str:
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(text or "")).replace("\f", "").strip()


def _row(one: Any) -> list[str]:  # noqa: ANN401 (as above)
    if one.param_type_name == "option":
        words = ", ".join(f"`{word}`" for word in (*one.opts, *one.secondary_opts))
    else:
        words = f"`{one.name.upper()}`"
    said = " ".join((getattr(one, "help", None) or "–").split())
    return [words, _default(one), said + (f" Environment: `{one.envvar}`." if one.envvar else "")]


def _default(one: Any) -> str:  # noqa: ANN401 (as above)
    if one.required:
        return "required"
    if isinstance(getattr(one, "show_default", None), str):
        return str(one.show_default)
    value = one.default
    if callable(value) or value is None or value == () or value is False:
        return "–"
    if isinstance(value, Path) and value.is_relative_to(Path.home()) and Path.home() != Path("/"):
        value = "~/" + str(value.relative_to(Path.home()))
    return f"`{getattr(value, 'value', value)}`"
