"""The real daemon with the process backend over simulated GPUs, and requests that follow its list."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from kvwatt_sim import cards
from kvwatt_sim.demo.balance import LeastBusy
from kvwatt_sim.demo.daemon_process import DaemonProcess
from kvwatt_sim.demo.day_run import keep_capacity, stop_servers, take_capacity
from kvwatt_sim.demo.fleet import PoolPace, make_fleet
from kvwatt_sim.demo.model import cached_model
from kvwatt_sim.demo.plant import libraries
from kvwatt_sim.demo.settings import CARD, SLO
from kvwatt_sim.loadgen import LoadGenerator, LoadOptions
from kvwatt_sim.traces import TraceRequest
from kvwattd.api.tokens import digest

PATIENCE_S = 90.0
CAPACITY = "pool-test-capacity"
TOKEN = "a token that only tests use"
PACE = PoolPace(
    period_s=0.5,
    cooldown_s=2.0,
    less_for_s=1.0,
    start_s=2.0,
    drain_s=1.0,
    stay_s=20.0,
    settle_s=0.6,
    start_timeout_s=40.0,
    # A forecast that follows a jump within seconds, and forgets it as quickly.
    forecast_quantile=0.6,
    day_s=8_000.0,
)


class PoolStage:
    """`folder` holds everything; the servers end with `stack`."""

    def __init__(self, stack: ExitStack, folder: Path, count: int = 2, mode: str = "active") -> None:
        self.folder = folder
        self.fleet = make_fleet(stack, libraries(), folder, count)
        tokens = folder / "tokens.toml"
        tokens.write_text(f'[[token]]\nname = "tests"\nscope = "control"\nsha256 = "{digest(TOKEN)}"\n')
        tokens.chmod(0o600)
        stack.callback(stop_servers, folder / "state" / "instances")
        self._stack = stack
        # A connection each: a kept one may be closed by the server at the moment at which it is used again.
        once = httpx.Limits(max_keepalive_connections=0)
        self._http = stack.enter_context(httpx.Client(timeout=30.0, trust_env=False, limits=once))
        take_capacity(folder, CAPACITY)
        self.start(mode)

    def start(self, mode: str = "active") -> None:
        """Another daemon over the same state."""
        model = cached_model(cards.load(CARD))
        text = self.fleet.configuration(self.folder, model, SLO, PACE, mode)
        text = text.replace("port = 0", f'port = 0\ntoken_file = "{self.folder}/tokens.toml"')
        self.daemon = DaemonProcess(self.fleet.env, text, self.folder)
        self._stack.enter_context(self.daemon)
        self.daemon.wait_url(PATIENCE_S)

    def put(self, path: str, body: object) -> httpx.Response:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        return self._http.put(f"{self.daemon.url}{path}", json=body, headers=headers)

    def pool(self) -> dict[str, Any]:
        """/api/v1/pool."""
        found: dict[str, Any] = self._http.get(f"{self.daemon.url}/api/v1/pool").json()
        return found

    def regimes(self) -> list[str]:
        """Of the instances."""
        found = self._http.get(f"{self.daemon.url}/api/v1/instances").json()
        return [str(item["regime"]) for item in found]

    def statuses(self) -> dict[str, str]:
        """Member -> status."""
        return {member["name"]: member["status"] for member in self.pool()["members"]}

    def count(self, status: str) -> int:
        """How many members are so."""
        return list(self.statuses().values()).count(status)

    def pids(self) -> dict[str, str]:
        """What the process backend wrote of each running member."""
        records = (self.folder / "state" / "instances").glob("*.pid")
        return {record.stem: record.read_text() for record in records}

    def keep_capacity(self) -> None:
        """So that the next run of these tests need not make the table."""
        keep_capacity(self.folder, CAPACITY)

    async def until(self, holds: Callable[[], bool], what: str, limit_s: float = PATIENCE_S) -> None:
        """Wait until it holds; fails only after a time that no working system needs."""
        end_s = time.monotonic() + limit_s
        while not await asyncio.to_thread(holds):
            assert time.monotonic() < end_s, f"{what}\n{self.pool()}\n{self.daemon.log()[-6000:]}"
            await asyncio.sleep(0.2)

    @asynccontextmanager
    async def load(self, rate_per_s: float, seconds: float = 300.0) -> AsyncIterator[LoadGenerator]:
        """Short requests at a rate; at the end of the block no more are sent, and all sent have ended."""
        route = LeastBusy(self.daemon.url)
        following = asyncio.create_task(route.follow())
        await self.until(lambda: bool(route.listed), "nobody is listed")
        stop = asyncio.Event()
        load = LoadGenerator(route, (), LoadOptions())
        sending = asyncio.create_task(_send(load, rate_per_s, seconds, stop))
        try:
            yield load
        finally:
            stop.set()
            await sending
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)


async def _send(load: LoadGenerator, rate_per_s: float, seconds: float, stop: asyncio.Event) -> None:
    """A chunk of requests at a time, until told to stop; then wait for the answers."""
    end_s = time.monotonic() + seconds
    async with asyncio.TaskGroup() as group:
        while not stop.is_set() and time.monotonic() < end_s:
            chunk = LoadGenerator(load._route, _chunk(rate_per_s), LoadOptions())
            chunk.records = load.records
            group.create_task(chunk.run(time.monotonic()))
            await asyncio.sleep(1.0)


def _chunk(rate_per_s: float) -> tuple[TraceRequest, ...]:
    count = max(round(rate_per_s), 1)
    return tuple(TraceRequest(n / count, 400, 24) for n in range(count))
