"""The measured part: the same requests to both plants at the same moments, watched until both are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import httpx

from kvwatt.state import Metric
from kvwatt_sim.demo.cpu import LagMeter
from kvwatt_sim.demo.daemon import Daemon, DaemonStatus
from kvwatt_sim.demo.plant import EngineGauges, Plant
from kvwatt_sim.demo.settings import KVWATT
from kvwatt_sim.demo.view import Frame, PlantView, View
from kvwatt_sim.latency import observed_s
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions, RequestRecord
from kvwatt_sim.traces import TraceRequest

FRAME_PERIOD_S = 0.5
SCRAPE_FRAMES = 2  # pages and daemon status every second frame: a scrape costs the server about 4 ms
LEAD_S = 0.3  # from setting up the replay to its first request


@dataclass
class Replay:
    """One plant's share of the run."""

    plant: Plant
    generator: LoadGenerator
    start_j: float = 0.0
    end_j: float = 0.0
    changes_before: int = 0
    clocks_mhz: list[int] = field(default_factory=list)
    gauges: EngineGauges | None = None

    @property
    def records(self) -> Sequence[RequestRecord]:
        """Requests sent so far."""
        return self.generator.records

    @property
    def energy_j(self) -> float:
        """From the GPU's counter, between the first request and the end of the horizon."""
        return self.end_j - self.start_j

    @property
    def mean_clock_mhz(self) -> float:
        """Mean of the sampled clock."""
        return sum(self.clocks_mhz) / max(len(self.clocks_mhz), 1)

    @property
    def clock_changes(self) -> int:
        """Changes since the first request."""
        return self.plant.clock_changes() - self.changes_before


@dataclass(frozen=True, slots=True)
class Served:
    """Both replays and the horizon they share (monotonic seconds)."""

    replays: tuple[Replay, ...]
    start_s: float
    end_s: float
    lag_p99_s: float


async def serve(
    plants: Sequence[Plant],
    daemon: Daemon | None,
    requests: Sequence[TraceRequest],
    seed: int,
    bound_s: float,
    view: View,
) -> Served:
    """Replay `requests` on every plant until all have drained or `bound_s` after the first arrival."""
    options = LoadOptions(seed=seed)
    replays = tuple(Replay(p, LoadGenerator(p.server.base_url, requests, options)) for p in plants)
    start_s = time.monotonic() + LEAD_S
    lag = LagMeter()
    async with httpx.AsyncClient() as client:
        watch = _Watch(replays, daemon, len(requests), start_s, bound_s, view, client)
        helpers = [asyncio.create_task(lag.run()), asyncio.create_task(watch.run())]
        try:
            await asyncio.sleep(start_s - time.monotonic())
            for replay in replays:
                replay.start_j = replay.plant.counter_j()
                replay.changes_before = replay.plant.clock_changes()
            await _drained(replays, start_s, bound_s, helpers[1])
            end_s = time.monotonic()
            for replay in replays:
                replay.end_j = replay.plant.counter_j()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
    return Served(replays, start_s, end_s, lag.quantile_s(0.99))


async def _drained(
    replays: Sequence[Replay], start_s: float, bound_s: float, watching: asyncio.Task[None]
) -> None:
    """Return when every request has ended or the bound is reached; raises what the watch raised."""
    loads = [asyncio.create_task(replay.generator.run(start_s)) for replay in replays]
    everything = asyncio.gather(*loads)
    try:
        async with asyncio.timeout(start_s + bound_s - time.monotonic()):
            await asyncio.wait((everything, watching), return_when=asyncio.FIRST_COMPLETED)
        if watching.done():
            watching.result()
        await everything
    except TimeoutError:
        return  # what is in flight stays unfinished and is counted as such
    finally:
        everything.cancel()
        for load in loads:
            load.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*loads, return_exceptions=True)


class _Watch:
    """Samples both plants for the view; raises DemoError when the daemon ends."""

    def __init__(
        self,
        replays: Sequence[Replay],
        daemon: Daemon | None,
        requests: int,
        start_s: float,
        bound_s: float,
        view: View,
        client: httpx.AsyncClient,
    ) -> None:
        self._replays = replays
        self._daemon = daemon
        self._requests = requests
        self._start_s, self._bound_s = start_s, bound_s
        self._view = view
        self._client = client
        self._status: DaemonStatus | None = None

    async def run(self) -> None:
        """Sample until cancelled."""
        frame = 0
        while True:
            if self._daemon is not None:
                self._daemon.check()
            if frame % SCRAPE_FRAMES == 0:
                await self._scrape()
            now_s = time.monotonic()
            self._view.show(self._frame(now_s))
            frame += 1
            await asyncio.sleep(max(0.0, FRAME_PERIOD_S - (time.monotonic() - now_s)))

    async def _scrape(self) -> None:
        pages = await asyncio.gather(*(replay.plant.gauges(self._client) for replay in self._replays))
        for replay, page in zip(self._replays, pages, strict=True):
            replay.gauges = page
            replay.plant.clock_changes()
        if self._daemon is not None:
            self._status = await self._daemon.status(self._client) or self._status

    def _frame(self, now_s: float) -> Frame:
        status = self._status
        return Frame(
            elapsed_s=max(now_s - self._start_s, 0.0),
            total_s=self._bound_s,
            sent=len(self._replays[0].records),
            requests=self._requests,
            plants=tuple(_plant_view(replay, now_s >= self._start_s) for replay in self._replays),
            regime=status.regime if status else "no answer",
            reason=status.reason if status else "the daemon has not answered yet",
        )


def _plant_view(replay: Replay, started: bool) -> PlantView:
    reading, gauges = replay.plant.read(), replay.gauges
    if started:
        replay.clocks_mhz.append(reading.clock_mhz)
    open_tbt_s = [
        tbt_s
        for record in replay.records
        if record.done_s is None and (tbt_s := observed_s(record, Metric.TBT)) is not None
    ]
    lock = "driver default" if reading.lock_mhz is None else f"locked to {reading.lock_mhz[1]}"
    return PlantView(
        name="under kvwatt" if replay.plant.name == KVWATT else "driver default",
        clock_mhz=reading.clock_mhz,
        lock=lock,
        power_w=reading.power_w,
        energy_j=reading.visible_j - replay.start_j if started else 0.0,
        running=gauges.running if gauges else None,
        waiting=gauges.waiting if gauges else None,
        kv_usage=gauges.kv_usage if gauges else None,
        tbt_s=sum(open_tbt_s) / len(open_tbt_s) if open_tbt_s else None,
        tbt_worst_s=max(open_tbt_s, default=None),
        finished=sum(r.done_s is not None and r.error is None for r in replay.records),
        tokens=sum(r.tokens for r in replay.records),
    )
