"""`kvwatt demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    seconds: Annotated[
        float | None,
        typer.Option(help="Bound on everything, setup included.  [default: 60, with --instances 240]"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Replay this Azure 2023 CSV, thinned to the load."),
    ] = None,
    load: Annotated[float, typer.Option(help="Request rate as a share of the plant's capacity.")] = 0.4,
    seed: Annotated[int, typer.Option(help="Draws other requests.")] = 0,
    keep: Annotated[
        bool,
        typer.Option("--keep", help="Stay up after the result, with more requests, until Ctrl-C."),
    ] = False,
    port: Annotated[int, typer.Option(help="Of the live page; 0 takes any free one.")] = 0,
    instances: Annotated[
        int | None,
        typer.Option(help="A compressed day on so many GPUs instead: as many instances run as are needed."),
    ] = None,
) -> None:
    """Show what kvwatt saves, on two simulated GPUs: no GPU, no vLLM, no configuration.

    The same requests go in real time to two simulated servers, one at driver-default clocks, one under
    the real daemon, whose live page is told at the start. Ends with energy and latencies of both. With
    --instances 4 a compressed day passes on four GPUs, and kvwatt starts and stops servers as they are
    needed.
    """
    from rich.console import Console

    from kvwatt_sim.demo.settings import DemoError, PageOptions

    try:
        page = PageOptions(port, keep)
        if instances is None:
            from kvwatt_sim.demo.run import run_demo
            from kvwatt_sim.demo.settings import DemoOptions

            bound_s = 60.0 if seconds is None else seconds
            run_demo(DemoOptions(bound_s, load, seed, trace, json_file, page), Console())
        else:
            from kvwatt_sim.demo.day_run import run_day
            from kvwatt_sim.demo.day_settings import DayOptions

            if trace is not None:
                raise DemoError("--trace: the day of --instances has requests of its own")
            bound_s = 240.0 if seconds is None else seconds
            run_day(DayOptions(instances, bound_s, seed, json_file, page), Console())
    except DemoError as error:
        typer.echo(f"kvwatt demo: {error}", err=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        typer.echo("kvwatt demo: stopped", err=True)
        raise typer.Exit(130) from None
