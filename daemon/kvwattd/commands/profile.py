"""`kvwatt profile`: measure a running server over clocks, batches and contexts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kvwattd.commands.exits import DONE, FAILED, INTERRUPTED

if TYPE_CHECKING:
    from kvwattd.profiler.session import ProfileRequest
    from kvwattd.profiler.sweep import SweepReport


Url = Annotated[str, typer.Option(help="The vLLM server, http://HOST:PORT.")]
Gpus = Annotated[list[str], typer.Option(help="GPU of the server, by UUID or index; repeat for several.")]
Live = Annotated[
    bool,
    typer.Option(help="No load of its own: learn from the traffic, one clock down at a time, under SLO."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print what was measured as JSON.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="CSV to write.")]
# The guard
GuardSocket = Annotated[Path, typer.Option(help="Socket of the guard.", envvar="KVWATT_GUARD__SOCKET")]
SpawnGuard = Annotated[
    bool,
    typer.Option("--spawn-guard", help="Start a guard for the time of the sweep (needs its privileges)."),
]
# How long and how well
Minutes = Annotated[float, typer.Option(min=0.05, max=1440, help="Bound on the whole sweep.")]
TargetError = Annotated[
    float, typer.Option(min=0.001, max=0.5, help="Stop when unseen loads are predicted this well.")
]
Window = Annotated[float, typer.Option(min=0.2, max=30, help="Seconds per measurement.")]
# Promises that the sweep keeps
SloTbt = Annotated[float, typer.Option(min=0.001, help="Seconds between tokens never to exceed.")]
SloTtft = Annotated[float | None, typer.Option(min=0.001, help="Seconds to first token of a single prompt.")]
# Clocks
Clocks = Annotated[int, typer.Option(min=2, max=64, help="Number of clocks to measure at.")]
MinMhz = Annotated[int | None, typer.Option(help="Lowest clock; default 30 % of the highest.")]
MaxMhz = Annotated[int | None, typer.Option(help="Highest clock; default the highest supported.")]
# The server
AsStarted = Annotated[int, typer.Option(min=1, help="As the server was started.")]
LastTokenId = Annotated[int, typer.Option(min=200, help="Prompts are random tokens up to this.")]
Engine = Annotated[str | None, typer.Option(help="Engine label, where the page has several.")]


def profile(
    url: Url,
    gpu: Gpus,
    guard_socket: GuardSocket = Path("/run/kvwatt/guard.sock"),
    spawn_guard: SpawnGuard = False,
    output: Output = Path("profile.csv"),
    minutes: Minutes = 10.0,
    slo_tbt: SloTbt = 0.2,
    slo_ttft: SloTtft = None,
    clocks: Clocks = 7,
    min_mhz: MinMhz = None,
    max_mhz: MaxMhz = None,
    max_num_seqs: AsStarted = 256,
    max_num_batched_tokens: AsStarted = 2048,
    last_token_id: LastTokenId = 31_999,
    engine: Engine = None,
    live: Live = False,
    target_error: TargetError = 0.03,
    window: Window = 1.2,
    as_json: AsJson = False,
) -> None:
    """Measure the most informative loads and clocks first and write what each step took and drew.

    Loads are requests of its own, and a server that serves others is refused; with --live there are none,
    and short excursions below the default clock end at the first sign that a promise suffers. Clocks are
    reset at the end, and by the guard if this process dies. Where a problem or Ctrl-C stops it, rows so far
    are kept. Examples: kvwatt profile --url http://127.0.0.1:8000 --gpu 0 -o profile.csv;
    kvwatt profile --url http://127.0.0.1:8000 --gpu 0 --live --minutes 60
    """
    from kvwattd.profiler.session import ProfileRequest

    request = ProfileRequest(
        url=url,
        gpus=tuple(gpu),
        guard_socket=guard_socket,
        output=output,
        budget_s=60 * minutes,
        slo_tbt_s=slo_tbt,
        slo_ttft_s=slo_ttft,
        clocks=clocks,
        min_mhz=min_mhz,
        max_mhz=max_mhz,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        last_token_id=last_token_id,
        engine=engine,
        live=live,
        window_s=window,
        target_error=target_error,
        spawn_guard=spawn_guard,
    )
    raise typer.Exit(_run(request, as_json))


def _run(request: ProfileRequest, as_json: bool) -> int:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from kvwattd.profiler.session import PROBLEMS, profile_server

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    try:
        with Progress(*columns, console=console) as bar:
            task = bar.add_task("starting", total=1.0)
            report = asyncio.run(
                profile_server(request, lambda text, done: bar.update(task, description=text, completed=done))
            )
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print(f"interrupted; rows so far are in {request.output}", markup=False)
        return INTERRUPTED
    except PROBLEMS as error:
        console.print(f"kvwatt profile: {error}", style="red", markup=False)
        told = f"next: kvwatt doctor; then the same command again (rows so far: {request.output})"
        console.print(told, markup=False)
        return FAILED
    for line in _told(report, request):
        console.print(line, markup=False)
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps({"output": str(request.output), **asdict(report)}, indent=2))
    return DONE if report.rows else FAILED


def _told(report: SweepReport, request: ProfileRequest) -> Iterator[str]:
    """What was measured, how good a model of it would be, and what comes next."""
    for reason in report.skipped:
        yield f"left out: {reason}"
    yield f"{report.rows} rows from {report.loads} of {report.planned_loads} loads in {request.output}"
    if report.error is not None and report.bound is not None:
        error = f"error {100 * report.error:.1f} %, 90 % bound x {report.bound:.3f}"
        yield f"loads left out of training: {error}, after {report.seconds:.0f} s"
    elif not request.live:
        yield "too few loads to judge a model by: a longer --minutes is better"
    if report.rows:
        yield f"next: kvwatt train --profile {request.output} -o MODEL"
    else:
        yield "next: kvwatt doctor; then the same command with a longer --minutes"
