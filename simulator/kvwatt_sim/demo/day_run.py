"""A compressed day from top to bottom: GPUs, model, daemon with a pool, requests, the same day without it.

Everything that is started is stopped on the way out; the simulated servers, which outlive the daemon as
real ones would, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from kvwatt_sim import cards
from kvwatt_sim.demo import haproxy
from kvwatt_sim.demo.balance import LeastBusy, ThroughRouter
from kvwatt_sim.demo.cpu import LAG_WARN_S
from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.day_results import DayResult, print_day
from kvwatt_sim.demo.day_serve import Day, serve_day
from kvwatt_sim.demo.day_settings import HOURS, LOAD_S, SLO, DayOptions, draw, pace
from kvwatt_sim.demo.fleet import Fleet, make_fleet
from kvwatt_sim.demo.haproxy import Haproxy
from kvwatt_sim.demo.model import cache_dir, cached_model, is_cached
from kvwatt_sim.demo.page import DemoPage, keep_up, tell_kept
from kvwatt_sim.demo.plant import MAX_NUM_BATCHED_TOKENS, MAX_NUM_SEQS, libraries
from kvwatt_sim.demo.run import terminable
from kvwatt_sim.demo.settings import CARD, DemoError
from kvwatt_sim.latency import report
from kvwatt_sim.ports import free_ports
from kvwatt_sim.replay.controller import FixedClock, replay_group
from kvwatt_sim.replay.outcome import Outcome, merged
from kvwatt_sim.traces import TraceRequest
from kvwattd.whole_file import write_whole

URL_S = 90.0
CAPACITY = "demo-capacity"


def run_day(options: DayOptions, console: Console) -> DayResult:
    """Run it all within `options.seconds`, print the table, write the JSON. Raises DemoError."""
    until_s = time.monotonic() + options.seconds
    with terminable(), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvwatt-demo-")))
        page = DemoPage(options.page, folder)
        fleet, daemon, router = _set_up(options, console, stack, folder, page)
        route = LeastBusy(daemon.url) if router is None else ThroughRouter(router.url, daemon.url)
        day, day_s, requests = asyncio.run(serve_day(options, daemon, fleet, route, console, until_s))
        keep_capacity(folder, CAPACITY)
        if options.page.keep:
            _result(options, console, day, day_s, requests, route.name)
            tell_kept(console, daemon.url)
            asyncio.run(_more_days(options, route, day_s, daemon))
    return _result(options, console, day, day_s, requests, route.name)


def _result(
    options: DayOptions,
    console: Console,
    day: Day,
    day_s: float,
    requests: tuple[TraceRequest, ...],
    router: str,
) -> DayResult:
    result = _judge(options, day, day_s, requests, router)
    print_day(console, result)
    if options.json_file is not None:
        _write_json(options.json_file, result)
    return result


async def _more_days(options: DayOptions, route: LeastBusy, day_s: float, daemon: DaemonProcess) -> NoReturn:
    """The same day with other requests, again and again."""
    following = asyncio.create_task(route.follow())
    try:
        await keep_up(route, lambda n: draw(replace(options, seed=options.seed + n), day_s), day_s, daemon)
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)


def _set_up(
    options: DayOptions, console: Console, stack: ExitStack, folder: Path, page: DemoPage
) -> tuple[Fleet, DaemonProcess, Haproxy | None]:
    card = cards.load(CARD)
    console.print(
        f"{options.instances} simulated {card.gpu_name}, none of them used yet ...", highlight=False
    )
    fleet = make_fleet(stack, libraries(), folder, options.instances, LOAD_S)
    (port,) = free_ports(1)
    router = haproxy.start(stack, folder, dict(zip(fleet.names, fleet.ports, strict=True)), port)
    fleet.haproxy = router.socket if router is not None else None
    if not is_cached(card):
        console.print("first run: training the step-time model ...")
    model = cached_model(card)
    take_capacity(folder, CAPACITY)
    text = fleet.configuration(folder, model, SLO, pace(options.seconds), api=page.api)
    stack.callback(stop_servers, folder / "state" / "instances")
    daemon = stack.enter_context(DaemonProcess(fleet.env, text, folder))
    page.tell(console, daemon.wait_url(URL_S))
    console.print(
        "kvwatt runs, starts the first server and learns what one carries; then a day passes. A start takes "
        "about 3 s here, which stands for some 20 minutes of the day: longer than a real one",
        highlight=False,
    )
    return fleet, daemon, router


def _judge(
    options: DayOptions, day: Day, day_s: float, requests: tuple[TraceRequest, ...], router: str
) -> DayResult:
    baseline = always_on(options.instances, requests, day.end_s - day.start_s)
    counts = [count for _, count in day.ready] or [0]
    return DayResult(
        instances=options.instances,
        day_s=day_s,
        duration_s=day.end_s - day.start_s,
        energy_j=day.energy_j,
        latency=report(day.records, SLO, day.end_s),
        baseline=baseline,
        baseline_kept=baseline.attainment(SLO),
        ready_mean=sum(counts) / len(counts),
        ready_most=max(counts),
        ready_least=min(counts),
        events=day.pool.get("scale_events_total", []),
        start_s=_mean_start_s(day.pool),
        router=router,
        seed=options.seed,
        warnings=tuple(_warnings(day)),
        course=[(HOURS * at / day_s, count) for at, count in day.ready],
    )


def always_on(instances: int, requests: tuple[TraceRequest, ...], duration_s: float) -> Outcome:
    """The same requests over as many instances at driver default, in virtual time."""
    card = cards.load(CARD)
    shape = card.engine_shape(max_num_seqs=MAX_NUM_SEQS, max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS)
    return merged(replay_group(card, shape, requests, [FixedClock(None)] * instances, duration_s))


def _mean_start_s(pool: dict[str, Any]) -> float | None:
    starts = [seen for seen in pool.get("start_times", []) if seen["count"]]
    total = sum(seen["count"] for seen in starts)
    return sum(seen["sum_s"] for seen in starts) / total if total else None


def _warnings(day: Day) -> Iterator[str]:
    if day.lag_p99_s > LAG_WARN_S:
        yield (
            f"the load generator's event loop was late by {1000 * day.lag_p99_s:.0f} ms (p99): "
            "this machine is busy and the latencies include that"
        )
    errors = [record.error for record in day.records if record.error is not None]
    if errors:
        yield f"{len(errors)} requests failed; the first: {errors[0]}"


def stop_servers(folder: Path) -> None:
    """End what the daemon's process backend left running, as a stopped kvwatt leaves real servers."""
    for record in folder.glob("*.pid"):
        with suppress(OSError, ValueError, KeyError, TypeError):
            os.kill(int(json.loads(record.read_text(encoding="utf-8"))["pid"]), signal.SIGKILL)


def take_capacity(folder: Path, name: str) -> None:
    """What one instance carries, from the run before: the daemon looks whether it still fits."""
    if (cache_dir() / name).is_dir():
        shutil.copytree(cache_dir() / name, folder / "state" / "capacity", dirs_exist_ok=True)


def keep_capacity(folder: Path, name: str) -> None:
    """For the next run, each file whole; where it cannot be kept, the next one makes it again."""
    made = folder / "state" / "capacity"
    with suppress(OSError):
        for file in made.glob("*/[!.]*"):
            place = cache_dir() / name / file.relative_to(made)
            place.parent.mkdir(parents=True, exist_ok=True)
            write_whole(place, file.read_bytes(), mode=0o644, durable=False)


def _write_json(path: Path, result: DayResult) -> None:
    try:
        path.write_text(json.dumps(result.document(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise DemoError(f"--json {path}: cannot be written: {error.strerror or error}") from error
