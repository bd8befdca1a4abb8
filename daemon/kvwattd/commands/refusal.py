"""How a command ends that cannot go on: what is wrong, then the next step."""

from __future__ import annotations

from typing import NoReturn

import typer


def refuse(command: str, error: object, next_step: str, code: int = 2) -> NoReturn:
    """Two lines on standard error, and the exit code."""
    typer.echo(f"kvwatt {command}: {error}\nnext: {next_step}", err=True)
    raise typer.Exit(code)
