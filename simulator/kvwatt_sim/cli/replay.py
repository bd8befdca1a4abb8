"""`kvwatt replay`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer


def replay(
    plant: Annotated[str, typer.Option(metavar="NAME,...", help="l20, a100-tp2, h200 ...")] = "l20",
    trace: Annotated[
        str,
        typer.Option(metavar="FILE,...", help="Azure CSV, Mooncake JSONL, a recording, or 'builtin'."),
    ] = "builtin",
    load: Annotated[
        str, typer.Option(metavar="SHARE,...", help="Request rates as shares of the plant's capacity.")
    ] = "0.75",
    slo: Annotated[
        str, typer.Option(metavar="NAME,...", help="paper, strict; with --record limits like ttft=3,tbt=0.2.")
    ] = "paper",
    policy: Annotated[
        str, typer.Option(metavar="NAME,...", help="See --policies.")
    ] = "kvwatt,max,best-fixed",
    seeds: Annotated[
        str, typer.Option(metavar="1-4,...", help="Which requests of the trace are kept.")
    ] = "1",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="OUT", help="Write the results; OUT.jsonl keeps each as it comes."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = os.cpu_count() or 1,
    scheduler: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Run on this Dask cluster (extra 'fleet').")
    ] = None,
    policies: Annotated[bool, typer.Option("--policies", help="List the policies and stop.")] = False,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="What if: replay what the daemon recorded ([record] in its configuration)."
        ),
    ] = None,
    what_if: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CHANGE,...",
            help="With --record: tbt=0.08, ttft=2, e2e=30, instances=3, clock=1200; repeatable.",
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --record: a report with plots (extra 'report').")
    ] = None,
) -> None:
    """Replay a trace on a simulated plant under one or more policies, much faster than in real time.

    Lists are combined: every plant with every trace, load, promise, policy and seed. With --json a run that
    was stopped goes on where it was.
    """
    from rich.console import Console

    from kvwatt_sim.replay.command import ReplayFailed, SweepOptions, list_policies, run_sweep
    from kvwatt_sim.replay.what_if_command import WhatIfOptions, run_what_if

    try:
        if policies:
            list_policies(Console())
        elif record is not None:
            run_what_if(WhatIfOptions(record, plant, slo, tuple(what_if or ()), json_file, html), Console())
        else:
            options = SweepOptions(plant, trace, load, slo, policy, seeds, json_file, workers, scheduler)
            run_sweep(options, Console())
    except ReplayFailed as error:
        typer.echo(f"kvwatt replay: {error}", err=True)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt:
        typer.echo("kvwatt replay: stopped; what is done is kept in OUT.jsonl", err=True)
        raise typer.Exit(130) from None
