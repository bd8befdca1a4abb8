"""How a command ends that cannot go on: what is wrong, then the next step."""

from __future__ import annotations

from typing import NoReturn

import typer

LONGEST = 4000


def refuse(command: str, error: object, next_step: str, code: int = 2) -> NoReturn:
    """Two lines on standard error, and the exit code.

    What a file held may stand in the error: only what can be printed is shown, and not all of it.
    """
    told = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in str(error))
    typer.echo(f"kvwatt {command}: {told[:LONGEST]}\nnext: {next_step}", err=True)
    raise typer.Exit(code)
