"""`kvwatt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seconds: Annotated[float, typer.Option(help="Bound on everything, setup included.")] = 60.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Replay this Azure 2023 CSV, thinned to the load."),
    ] = None,
    load: Annotated[float, typer.Option(help="Request rate as a share of the plant's capacity.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Draws other requests.")] = 0,
) -> None:
    """Show what kvwatt saves, on two simulated GPUs: no GPU, no vLLM, no configuration.

    The same requests go in real time to two simulated servers, one at driver-default clocks, one under
    the real daemon. Ends with energy and latencies of both.
    """
    from rich.console import Console

    from kvwatt_sim.demo.run import run_demo
    from kvwatt_sim.demo.settings import DemoError, DemoOptions

    try:
        run_demo(DemoOptions(seconds, load, seed, trace, json_file), Console())
    except DemoError as error:
        typer.echo(f"kvwatt demo: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("kvwatt demo: stopped", err=True)
        raise typer.Exit(130) from None
