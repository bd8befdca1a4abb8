"""The demonstration from top to bottom: plants, model, daemon, requests, verdict.

Everything that is started is stopped on the way out, in the reverse order, whatever the way is.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from kvwatt_sim import cards, traces, workload
from kvwatt_sim.demo.cpu import LAG_WARN_S, CpuMeter, children
from kvwatt_sim.demo.daemon import Daemon
from kvwatt_sim.demo.model import cached_model, is_cached
from kvwatt_sim.demo.page import DemoPage, keep_up, tell_kept
from kvwatt_sim.demo.plant import Plant, libraries, start_plants
from kvwatt_sim.demo.results import DemoResult, PlantResult
from kvwatt_sim.demo.serve import Replay, Served, serve
from kvwatt_sim.demo.settings import (
    BASELINE,
    CAPACITY_PER_S,
    CARD,
    KVWATT,
    SLO,
    DemoError,
    DemoOptions,
    Schedule,
    schedule,
)
from kvwatt_sim.demo.table import print_result
from kvwatt_sim.demo.view import LineView, LiveView, View
from kvwatt_sim.latency import report
from kvwatt_sim.traces import TraceError, TraceRequest

DROPPED_WARN_S = 0.1
KEPT_S = 60.0  # requests are drawn for so long at a time while all stays up


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Run it all within `options.seconds`, print the table, write the JSON. Raises DemoError."""
    deadline_s = time.monotonic() + options.seconds
    with terminable(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvwatt-demo-")))
        page = DemoPage(options.page, folder)
        plants, daemon = _set_up(options, console, stack, folder, page, deadline_s)
        plan = schedule(deadline_s - time.monotonic())
        coming_s = plan.warmup_s + plan.arrivals_s
        requests = draw(options, coming_s)
        _announce(console, options, requests, plan)
        meter = CpuMeter(_processes(plants, daemon))
        view: View = LiveView(console, SLO) if console.is_terminal else LineView(console)
        with view:
            served = asyncio.run(serve(plants, daemon, requests, options.seed, plan, view))
        result = _judge(options, served, meter, plan, len(requests) / coming_s)
        if options.page.keep:
            _tell(options, console, result)
            tell_kept(console, daemon.url)
            asyncio.run(keep_up(plants[1].server.base_url, partial(_more, options), KEPT_S, daemon))
    _tell(options, console, result)
    return result


def _tell(options: DemoOptions, console: Console, result: DemoResult) -> None:
    print_result(console, result)
    if options.json_file is not None:
        _write_json(options.json_file, result)


def _more(options: DemoOptions, number: int) -> tuple[TraceRequest, ...]:
    """Other requests at the same load."""
    return draw(replace(options, seed=options.seed + number), KEPT_S)


def draw(options: DemoOptions, arrivals_s: float) -> tuple[TraceRequest, ...]:
    """The requests: built in, or the file's thinned to the load; the first arrives at 0 s."""
    rate_per_s = options.load * CAPACITY_PER_S
    if options.trace is None:
        requests = workload.generate(rate_per_s, arrivals_s, options.seed)
    else:
        try:
            whole = traces.load_azure(options.trace)
            requests = _cut(whole, rate_per_s, arrivals_s, options.seed)
        except (TraceError, ValueError) as error:
            raise DemoError(f"--trace: {error}") from error
    if not requests:
        raise DemoError(f"no request in {arrivals_s:.0f} s at {rate_per_s:.3f} requests/s: raise --load")
    return traces.window(requests, arrivals_s, requests[0].arrival_s)


def _cut(
    whole: tuple[TraceRequest, ...], rate_per_s: float, duration_s: float, seed: int
) -> tuple[TraceRequest, ...]:
    """A piece of the trace from anywhere in it, thinned to the rate; a slow trace is sped up first.

    Thinned by the piece's own rate: an hour's mean says little about half a minute.
    """
    mean_per_s = traces.mean_rate_per_s(whole)
    if mean_per_s < rate_per_s:
        whole = traces.scale_rate(whole, rate_per_s / mean_per_s)
    spare_s = max(whole[-1].arrival_s - duration_s, 0.0)
    piece = traces.window(whole, duration_s, random.Random(seed).uniform(0.0, spare_s))
    wanted = rate_per_s * duration_s
    return traces.thin(piece, min(1.0, wanted / len(piece)), seed) if piece else ()


def _set_up(
    options: DemoOptions,
    console: Console,
    stack: ExitStack,
    folder: Path,
    page: DemoPage,
    deadline_s: float,
) -> tuple[tuple[Plant, ...], Daemon]:
    card = cards.load(CARD)
    if options.trace is not None and not options.trace.is_file():
        raise DemoError(f"--trace {options.trace}: no such file")
    _say(console, "building the simulated GPU ...")
    libs = libraries()
    _say(console, f"starting two simulated {card.gpu_name} with a server each ...")
    plants = start_plants(stack, libs, folder, (BASELINE, KVWATT))
    if not is_cached(card):
        _say(console, "first run: training the step-time model ...")
    model = cached_model(card)
    _say(console, "starting kvwatt beside one of them ...")
    daemon = stack.enter_context(Daemon(plants[1], model, folder, SLO, page.api))
    page.tell(console, daemon.wait_url(max(deadline_s - time.monotonic(), 1.0)))
    daemon.wait_active(max(deadline_s - time.monotonic(), 1.0))
    return plants, daemon


def _announce(
    console: Console, options: DemoOptions, requests: tuple[TraceRequest, ...], plan: Schedule
) -> None:
    promises = ", ".join(
        f"{name} <= {target.limit_s:g} s"
        for name, target in (("TTFT", SLO.ttft), ("mean TBT", SLO.tbt), ("E2E", SLO.e2e))
        if target is not None
    )
    _say(
        console,
        f"{len(requests)} requests in {plan.warmup_s:.0f} s of warm-up and {plan.arrivals_s:.0f} s, "
        f"{_workload(options)}, to both; promised to 99 % of them: {promises}",
    )


def _workload(options: DemoOptions) -> str:
    return "built-in conversations" if options.trace is None else options.trace.name


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _processes(plants: tuple[Plant, ...], daemon: Daemon) -> dict[str, int]:
    named = {"load generators and view": os.getpid(), "daemon": daemon.pid}
    named |= {f"server {plant.name}": plant.server.pid for plant in plants}
    guards = children(daemon.pid)
    return named | {f"guard {pid}" if len(guards) > 1 else "guard": pid for pid in guards}


def _judge(
    options: DemoOptions, served: Served, meter: CpuMeter, plan: Schedule, rate_per_s: float
) -> DemoResult:
    baseline, kvwatt = (_plant_result(replay, served) for replay in served.replays)
    return DemoResult(
        baseline=baseline,
        kvwatt=kvwatt,
        slo=SLO,
        warmup_s=plan.warmup_s,
        rate_per_s=rate_per_s,
        load=options.load,
        seed=options.seed,
        workload=_workload(options),
        cpu_shares=meter.shares(),
        loop_lag_p99_s=served.lag_p99_s,
        warnings=tuple(_warnings(served)),
    )


def _plant_result(replay: Replay, served: Served) -> PlantResult:
    return PlantResult(
        energy_j=replay.energy_j,
        energy_with_warmup_j=replay.energy_with_warmup_j,
        duration_s=served.end_s - served.start_s,
        tokens=replay.tokens,
        latency=report(replay.measured(served.start_s), SLO, served.end_s),
        clock_changes=replay.clock_changes,
        mean_clock_mhz=replay.mean_clock_mhz,
    )


def _warnings(served: Served) -> Iterator[str]:
    """A host that cannot keep up makes the figures say more about itself than about the plants."""
    if served.lag_p99_s > LAG_WARN_S:
        yield (
            f"the load generators' event loop was late by {1000 * served.lag_p99_s:.0f} ms (p99): "
            "this machine is busy and the latencies include that"
        )
    for replay in served.replays:
        if (dropped_s := replay.plant.dropped_s()) > DROPPED_WARN_S:
            yield (
                f"the server {replay.plant.name} lost {dropped_s:.1f} s because this machine is busy: "
                "its latencies and energy are not to be trusted"
            )
        errors = [record.error for record in replay.records if record.error is not None]
        if errors:
            yield f"{len(errors)} requests to the server {replay.plant.name} failed; the first: {errors[0]}"


def _write_json(path: Path, result: DemoResult) -> None:
    try:
        path.write_text(json.dumps(result.document(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"--json {path}: cannot be written: {error.strerror or error}") from error


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM takes the way of Ctrl-C, so that it stops everything too."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started in the background of a shell script
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
