"""The measured part: the same requests to both plants at the same moments, watched until both are done."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx

from kvwatt.state import Metric
from kvwatt_sim.demo.cpu import LagMeter
from kvwatt_sim.demo.daemon import Daemon, DaemonStatus
from kvwatt_sim.demo.plant import EngineGauges, Plant
from kvwatt_sim.demo.settings import KVWATT, Schedule
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
    first_j: float = 0.0
    start_j: float = 0.0
    end_j: float = 0.0
    tokens_before: int = 0
    clock_changes: int = 0  # within the horizon
    clocks_mhz: list[int] = field(default_factory=list)
    gauges: EngineGauges | None = None

    @property
    def records(self) -> Sequence[RequestRecord]:
        """Requests sent so far."""
        return self.generator.records

    @property
    def energy_j(self) -> float:
        """From the GPU's counter, over the horizon: from the end of the warm-up to the end."""
        return self.end_j - self.start_j

    @property
    def energy_with_warmup_j(self) -> float:
        """From the first request to the end."""
        return self.end_j - self.first_j

    @property
    def tokens(self) -> int:
        """Tokens that came within the horizon, the rest of the warm-up's answers included."""
        return sum(record.tokens for record in self.records) - self.tokens_before

    def begin(self) -> None:
        """The warm-up is over: from here on it counts."""
        self.start_j = self.plant.counter_j()
        self.clock_changes = -self.plant.clock_changes()
        self.tokens_before = sum(record.tokens for record in self.records)
        self.clocks_mhz.clear()

    def end(self) -> None:
        """The horizon ends here."""
        self.end_j = self.plant.counter_j()
        self.clock_changes += self.plant.clock_changes()

    def measured(self, start_s: float) -> list[RequestRecord]:
        """The requests that were due within the horizon."""
        return [record for record in self.records if record.due_s >= start_s]

    @property
    def mean_clock_mhz(self) -> float:
        """Mean of the sampled clock."""
        return sum(self.clocks_mhz) / max(len(self.clocks_mhz), 1)


@dataclass(frozen=True, slots=True)
class Served:
    """Both replays and the horizon they share: from the end of the warm-up on (monotonic seconds)."""

    replays: tuple[Replay, ...]
    start_s: float
    end_s: float
    lag_p99_s: float


async def serve(
    plants: Sequence[Plant],
    daemon: Daemon | None,
    requests: Sequence[TraceRequest],
    seed: int,
    plan: Schedule,
    view: View,
) -> Served:
    """Replay `requests` on every plant until all have drained or the plan's bound after the first arrival."""
    options = LoadOptions(seed=seed)
    replays = tuple(Replay(p, LoadGenerator(p.server.base_url, requests, options)) for p in plants)
    first_s = time.monotonic() + LEAD_S
    lag = LagMeter()
    async with httpx.AsyncClient() as client:
        watch = _Watch(replays, daemon, len(requests), first_s, plan, view, client)
        async with _background(lag.run(), watch.run(), _begin(replays, first_s, plan.warmup_s)) as tasks:
            await _drained(replays, first_s, plan.bound_s, tasks)
            end_s = time.monotonic()
            for replay in replays:
                replay.end()
    return Served(replays, first_s + plan.warmup_s, end_s, lag.quantile_s(0.99))


async def _begin(replays: Sequence[Replay], first_s: float, warmup_s: float) -> None:
    """Note where energy, tokens and changes stand at the first request and after the warm-up."""
    await asyncio.sleep(first_s - time.monotonic())
    for replay in replays:
        replay.first_j = replay.plant.counter_j()
    await asyncio.sleep(first_s + warmup_s - time.monotonic())
    for replay in replays:
        replay.begin()


@asynccontextmanager
async def _background(*jobs: Coroutine[None, None, None]) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Tasks that end with the block."""
    tasks = [asyncio.create_task(job) for job in jobs]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _drained(
    replays: Sequence[Replay], first_s: float, bound_s: float, background: Sequence[asyncio.Task[None]]
) -> None:
    """Return when every request has ended or the bound is reached; raise what a background task raised."""
    async with _background(*(replay.generator.run(first_s) for replay in replays)) as loads:
        open_tasks = {*loads, *background}
        while not all(load.done() for load in loads):
            left_s = first_s + bound_s - time.monotonic()
            done, open_tasks = await asyncio.wait(
                open_tasks, timeout=max(left_s, 0.0), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                task.result()
            if not done:
                return  # the bound: what is in flight stays unfinished and is counted as such


class _Watch:
    """Samples both plants for the view; raises DemoError when the daemon ends."""

    def __init__(
        self,
        replays: Sequence[Replay],
        daemon: Daemon | None,
        requests: int,
        first_s: float,
        plan: Schedule,
        view: View,
        client: httpx.AsyncClient,
    ) -> None:
        self._replays = replays
        self._daemon = daemon
        self._requests = requests
        self._first_s, self._plan = first_s, plan
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
            elapsed_s=max(now_s - self._first_s, 0.0),
            warmup_s=self._plan.warmup_s,
            total_s=self._plan.bound_s,
            sent=len(self._replays[0].records),
            requests=self._requests,
            plants=tuple(_plant_view(replay, now_s >= self._first_s) for replay in self._replays),
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
        energy_j=reading.visible_j - replay.first_j if started else 0.0,
        running=gauges.running if gauges else None,
        waiting=gauges.waiting if gauges else None,
        kv_usage=gauges.kv_usage if gauges else None,
        tbt_s=sum(open_tbt_s) / len(open_tbt_s) if open_tbt_s else None,
        tbt_worst_s=max(open_tbt_s, default=None),
        finished=sum(r.done_s is not None and r.error is None for r in replay.records),
        tokens=sum(r.tokens for r in replay.records),
    )
