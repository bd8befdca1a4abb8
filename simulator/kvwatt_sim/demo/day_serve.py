"""The day itself: a warm-up until the pool knows its capacity, then the day's requests, watched."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console

from kvwatt_sim.demo.balance import LeastBusy
from kvwatt_sim.demo.cpu import LagMeter
from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.day_settings import NIGHT_SHARE, DayOptions, clock_of, steady
from kvwatt_sim.demo.fleet import Fleet
from kvwatt_sim.demo.settings import DemoError
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, RequestRecord
from kvwatt_sim.traces import TraceRequest

WATCH_S = 1.0
LINE_S = 5.0
CHUNK_S = 3.0
LEAD_S = 0.3
LISTED_S = 30.0
DRAIN_S = 30.0


@dataclass
class Day:
    """What was seen of it."""

    start_s: float = 0.0
    end_s: float = 0.0
    energy_j: float = 0.0
    records: Sequence[RequestRecord] = ()
    ready: list[tuple[float, int]] = field(default_factory=list)  # seconds into the day, instances in service
    pool: dict[str, Any] = field(default_factory=dict)
    lag_p99_s: float = 0.0


class PoolWatch:
    """Reads /api/v1/pool, and says a line every few seconds."""

    def __init__(self, daemon: DaemonProcess, fleet: Fleet, console: Console) -> None:
        self._daemon, self._fleet, self._console = daemon, fleet, console
        self._client = httpx.AsyncClient(trust_env=False, timeout=5.0)
        self._line_s = 0.0
        self.pool: dict[str, Any] = {}

    async def look(self) -> dict[str, Any]:
        """The pool now; the last one where it does not answer. Raises DemoError when the daemon ended."""
        self._daemon.check()
        with suppress(httpx.HTTPError, ValueError):
            answer = await self._client.get(f"{self._daemon.url}/api/v1/pool")
            self.pool = answer.raise_for_status().json()
        return self.pool

    def line(self, when: str, sent: int, total: int) -> None:
        """At most one every few seconds."""
        if time.monotonic() < self._line_s or not self.pool:
            return
        self._line_s = time.monotonic() + LINE_S
        states = " ".join(_SHOWN.get(m["status"], "?") for m in self.pool["members"])
        rate = self.pool["forecast"]
        told = f"{rate['now_per_s']:4.1f}/s, up to {rate['quantile_per_s']:4.1f}/s" if rate else "no rate yet"
        text = f"[{when}] {sent}/{total} sent | {states} | {self._fleet.power_w():4.0f} W | {told}"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    async def close(self) -> None:
        await self._client.aclose()


_SHOWN = {"ready": "●", "starting": "◔", "draining": "◑", "asleep": "○", "stopped": "·", "failed": "✗"}


async def serve_day(
    options: DayOptions,
    daemon: DaemonProcess,
    fleet: Fleet,
    route: LeastBusy,
    console: Console,
    until_s: float,
) -> tuple[Day, float, tuple[TraceRequest, ...]]:
    """Warm up, then the day, so long that all is over at `until_s`; the day's length and its requests too."""
    from kvwatt_sim.demo.day_settings import LEAST_DAY_S, STOP_RESERVE_S, draw

    watch, lag = PoolWatch(daemon, fleet, console), LagMeter()
    background = [asyncio.create_task(route.follow()), asyncio.create_task(lag.run())]
    try:
        await _warm_up(options, route, watch, until_s)
        day_s = until_s - STOP_RESERVE_S - time.monotonic()
        if day_s < LEAST_DAY_S:
            raise DemoError(
                f"setup left {day_s:.0f} s for the day, {LEAST_DAY_S:g} s are needed: raise --seconds"
            )
        requests = draw(options, day_s)
        day = await _day(requests, day_s, route, watch, fleet, until_s)
        day.lag_p99_s = lag.quantile_s(0.99)
        return day, day_s, requests
    finally:
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await watch.close()


async def _warm_up(options: DayOptions, route: LeastBusy, watch: PoolWatch, until_s: float) -> None:
    """Requests at the night's rate until the capacity of one instance is known."""
    deadline_s = time.monotonic() + LISTED_S
    while not route.listed:
        await watch.look()
        if time.monotonic() > deadline_s:
            raise DemoError(f"no instance came into service within {LISTED_S:g} s")
        await asyncio.sleep(0.2)
    rate_per_s, seed = max(options.peak_per_s * NIGHT_SHARE, 1.0), options.seed + 1_000
    patience_s = time.monotonic() + (until_s - time.monotonic()) / 3.0
    async with asyncio.TaskGroup() as chunks:
        while not _capacity_known(await watch.look()) and time.monotonic() < patience_s:
            seed += 1
            load = LoadGenerator(route, steady(rate_per_s, CHUNK_S, seed), LoadOptions(seed=seed))
            chunks.create_task(load.run(time.monotonic()))
            watch.line("warm-up", 0, 0)
            await asyncio.sleep(CHUNK_S)


def _capacity_known(pool: dict[str, Any]) -> bool:
    return any(kind["capacity_per_s"] is not None for kind in pool.get("kinds", ()))


async def _day(
    requests: Sequence[TraceRequest],
    day_s: float,
    route: LeastBusy,
    watch: PoolWatch,
    fleet: Fleet,
    until_s: float,
) -> Day:
    load = LoadGenerator(route, requests, LoadOptions(seed=len(requests)))
    day = Day(start_s=time.monotonic() + LEAD_S, records=load.records)
    before_j = fleet.energy_j()
    running = asyncio.create_task(load.run(day.start_s))
    try:
        while not running.done() and time.monotonic() < until_s:
            pool = await watch.look()
            elapsed_s = time.monotonic() - day.start_s
            if 0.0 <= elapsed_s <= day_s and pool:
                day.ready.append((elapsed_s, sum(kind["ready"] for kind in pool["kinds"])))
            watch.line(clock_of(day_s, elapsed_s), len(load.records), len(requests))
            await asyncio.wait([running], timeout=WATCH_S)
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    day.end_s, day.energy_j = time.monotonic(), fleet.energy_j() - before_j
    day.pool = await watch.look()
    return day
