"""`kvwatt guard`: becomes the guard process, which then holds nothing but the guard."""

from __future__ import annotations

import os
import sys

import typer

MODULE = "kvwattd.guard"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(
    add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)
def guard(ctx: typer.Context) -> None:
    """Run the guard; every option is its own (`kvwatt guard --help`)."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, [sys.executable, "-m", MODULE, *ctx.args])  # noqa: S606 (no shell is meant)
