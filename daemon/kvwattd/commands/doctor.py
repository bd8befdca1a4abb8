"""`kvwatt doctor`: is everything in place, and what to do where it is not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

DEFAULT_CONFIG = Path("/etc/kvwatt/kvwatt.toml")


def doctor(
    config: Annotated[
        Path | None,
        typer.Option(
            help=f"Configuration file.  [default: {DEFAULT_CONFIG} if it exists]", envvar="KVWATT_CONFIG"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check GPU, driver, permissions, other clock writers, vLLM, model and ports. Changes nothing.

    Ends with 1 where there is a problem; warnings do not count. Examples: kvwatt doctor;
    kvwatt doctor --config kvwatt.toml --json | jq '.findings[] | select(.level == "problem")'
    """
    from kvwattd.doctor import report
    from kvwattd.doctor.collect import collect

    path = config or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    findings = report.examine(asyncio.run(collect(path)))
    if as_json:
        typer.echo(report.as_json(findings))
    else:
        from rich.console import Console

        Console(soft_wrap=True).print(report.as_text(findings))
    raise typer.Exit(1 if report.has_problem(findings) else 0)
